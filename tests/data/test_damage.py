"""One flipped bit anywhere in a table's files is found by name, or changes nothing; and it never ends a run."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch

from terminus import cli
from terminus.data import checksums
from terminus.data.batch import Batch
from terminus.data.checksums import NAMES
from terminus.data.curate import curate
from terminus.data.damage import Damage
from terminus.data.encode import encode_latents
from terminus.data.grouped import Grouped
from terminus.data.latent_rows import LatentRows
from terminus.data.loader import Loader
from terminus.data.order import Order
from terminus.data.pixels import PixelRows
from terminus.data.record import LatentRow
from terminus.data.settings import DataConfig
from terminus.data.store import Store, pack_posterior
from terminus.data.verify import Verified, verify_store
from terminus.data.waiting import waiting_cuts
from terminus.errors import UserError
from terminus.model.vae import VAE

from .test_loader import latent

SPEC = "a 'quoted' spec"
COUNT = 48
"""Of the rows that are trained on."""


def row(number: int) -> LatentRow:
    """A latent of 4 x 8 x 8, as all others random numbers of its own."""
    posterior = np.random.default_rng(number).standard_normal((2, 4, 8, 8)).astype(np.float16)
    shape = {"latent_channels": 4, "latent_height": 8, "latent_width": 8}
    split = "train" if number < COUNT else "validation"
    plain = replace(latent(2 * number + 1), vae="vae", split=split, source="first" if number % 3 else "second")
    return replace(plain, posterior=pack_posterior(posterior), **shape)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows in two files."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    store = Store(str(folder))
    for first in (0, 30):
        store.latents.append([row(number) for number in range(first, first + 30)])
    return folder


def copied(whole: Path, target: Path) -> Store:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target)
    return Store(str(target))


def files(store: Store) -> list[Path]:
    """In the order of their rows; their names are random."""
    fragments = lance.dataset(store.latents.uri).get_fragments()
    return [Path(store.latents.uri, "data", one.path) for fragment in fragments for one in fragment.data_files()]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def batches(store: Store, split: str = "train", threads: int = 0) -> list[Batch]:
    """Three passes in micro-batches."""
    rows = LatentRows(store.latents.required(), "vae", SPEC, split)
    loader = Loader(rows, Order(3, rows.sizes, 4), accumulation=1, threads=threads)
    return [batch for step in loader.steps(0, 3 * COUNT // 4) for batch in step]


def same(one: Batch, two: Batch) -> bool:
    plain = ("positions", "keys", "captions", "conditioning", "epoch")
    equal = all(getattr(one, name) == getattr(two, name) for name in plain)
    return equal and torch.equal(one.values, two.values)


def verified(store: Store) -> list[Verified]:
    """What `verify` says; none if it is content."""
    try:
        verify_store(store.location)
    except UserError as error:
        return [Verified(str(error))]
    return []


def test_a_flipped_bit_is_found_by_name_or_harmless(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    expected = batches(copied(whole, tmp_path / "as it was"))
    written = {number: row(number) for number in range(60)}
    posterior = {latent.key: latent.posterior for latent in written.values()}
    found: dict[str, int] = {"harmless": 0, "named when read": 0, "named when opened": 0}
    for seed in range(30):
        draw = random.Random(seed)
        store = copied(whole, tmp_path / "store")
        path = files(store)[draw.randrange(2)]
        flip(path, draw.randrange(8 * path.stat().st_size))
        caplog.clear()
        read = batches(store)
        names = {name for batch in read for name in batch.damaged}
        opened = any("left out" in message for message in caplog.messages)
        for batch in read:
            for key, values in zip(batch.keys, batch.values, strict=True):
                assert values.numpy().astype(np.float16).tobytes() == posterior[key]
        if all(map(same, read, expected)):
            found["harmless"] += 1
        else:
            assert names or opened, f"seed {seed}: other rows, and nobody says so"
            found["named when read" if names else "named when opened"] += 1
        if names or opened:
            assert verified(store), f"seed {seed}: {names} in training, and nothing found by verify"
    assert min(found.values()) > 0, found


def damage_moments(store: Store, number: int) -> None:
    """Flips a bit in the moments of a row."""
    values = row(number).posterior
    for path in files(store):
        place = path.read_bytes().find(values)
        if place >= 0:
            flip(path, 8 * (place + 100) + 3)
            return
    raise AssertionError("these moments are in no file")


def test_a_damaged_row_costs_itself_and_every_other_keeps_its_place(whole: Path, tmp_path: Path):
    expected = batches(copied(whole, tmp_path / "as it was"))
    store = copied(whole, tmp_path / "store")
    batches(store)  # begun before the damage
    damage_moments(store, 7)
    damage_moments(store, 31)
    read = batches(store)
    names = {name.split(" ")[0] for batch in read for name in batch.damaged}
    assert names == {"first/15", "first/63"}
    replaced = 0
    for one, two in zip(read, expected, strict=True):
        assert (one.positions, one.epoch) == (two.positions, two.epoch)
        for place, (key, before) in enumerate(zip(one.keys, two.keys, strict=True)):
            if before in ("key 15", "key 63"):
                replaced += 1
                assert key != before
                number = int(key.removeprefix("key ")) // 2
                assert row(number).source == "first", "another row of its source"
            else:
                assert (key, one.captions[place]) == (before, two.captions[place])
                assert torch.equal(one.values[place], two.values[place])
    assert replaced == 6, "each of the two in each of three passes"
    again = batches(store, threads=2)
    assert all(same(one, two) for one, two in zip(read, again, strict=True)), "and the same when it is continued"


def test_where_nothing_of_a_bucket_is_sound_another_is_read(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    store.latents.append([latent(number) for number in (1, 2, 3, 8, 9, 11)])  # two of one shape, four of another
    names = [f"key {number}" for number in (2, 8)]
    lance.dataset(store.latents.uri).update({"checksum": "1"}, where=f"key in ('{names[0]}', '{names[1]}')")
    rows = Grouped(store.latents.required(), {})
    small = [bucket for bucket, size in enumerate(rows.sizes) if size == 2]
    found, damaged = rows.sound(small[0], [0, 1], [10, 11])
    assert len(damaged) == 2
    assert {str(one["bucket"]) for one in found} == {"16x24"}
    lance.dataset(store.latents.uri).update({"checksum": "1"})
    rows = Grouped(store.latents.required(), {})
    with pytest.raises(UserError, match="data verify"):
        rows.sound(0, [0, 1], [10, 11])


def test_a_disk_that_does_not_answer_is_no_damage(whole: Path, tmp_path: Path):
    store = copied(whole, tmp_path / "store")
    batches(store)
    files(store)[0].unlink()
    with pytest.raises(UserError, match="a file is gone"):
        batches(store)
    with pytest.raises(UserError, match="damaged rows: 30 of latents"):
        verify_store(store.location)


def test_each_column_counts(whole: Path):
    [stored] = Store(str(whole)).latents.required().dataset.take([1]).to_pylist()
    assert checksums.checksum(stored) == stored["checksum"]
    for name, value in stored.items():
        if name not in NAMES:
            assert checksums.checksum(stored | {name: changed(value)}) != stored["checksum"], name


def changed(value: object) -> object:
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, list):
        return [*value, *value]
    return {str: f"{value}x", int: -1, type(None): b"\xff"}[type(value)]


def test_a_revision_keeps_the_checksums_right_and_damage_what_it_is(whole: Path, tmp_path: Path):
    store = copied(whole, tmp_path / "store")
    damage_moments(store, 7)
    images = [f"image {2 * number + 1}" for number in (7, 8, 40)]
    captions = pa.array([[f"new {image}", "ü"] for image in images], pa.list_(pa.string()))
    weights = pa.array([[0.1, 0.3]] * 3, pa.list_(pa.float32()))
    store.latents.revise(pa.table({"image_key": images, "captions": captions, "caption_weights": weights}), "image_key")
    with pytest.raises(UserError, match="damaged rows: 1 of latents"):
        verify_store(store.location)
    texts = {caption.text for batch in batches(store) for captions in batch.captions for caption in captions}
    assert {"new image 17", "new image 81"} < texts
    assert "new image 15" not in texts
    assert {name.split(" ")[0] for batch in batches(store) for name in batch.damaged} == {"first/15"}


def without_checksums(store: Store) -> Store:
    """The store as an earlier version wrote it."""
    lance.dataset(store.latents.uri).drop_columns(list(NAMES))
    return store


def test_a_store_of_before_is_read_as_it_is_and_says_so(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    expected = batches(copied(whole, tmp_path / "as it was"))
    store = without_checksums(copied(whole, tmp_path / "store"))
    assert all(map(same, batches(store), expected))
    batches(store)
    assert [message for message in caplog.messages if "without checksums" in message] == [
        f"{store.latents.uri} was written without checksums: damage to it cannot be seen. Prepared anew, it has them"
    ]
    assert cli.main(["data", "verify", store.location]) == 2
    assert "60 of latents" in capsys.readouterr().err
    images = pa.table({"image_key": ["image 3"], "captions": pa.array([["new"]], pa.list_(pa.string()))})
    store.latents.revise(images, "image_key")
    store.latents.append([row(number) for number in range(60, 70)])
    assert store.latents.count() == 70
    damage_moments(store, 65)
    assert cli.main(["data", "verify", store.location]) == 2
    printed = capsys.readouterr()
    assert "latents: first/131 (key key 131): not what was written" in printed.out
    assert "70 rows, 1 damaged, 60 without a checksum" in printed.out


def test_verify_names_what_is_damaged_and_remove_takes_it_out(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = copied(whole, tmp_path / "store")
    assert cli.main(["data", "verify", store.location]) == 0
    assert "latents: 60 rows\n" in capsys.readouterr().out
    damage_moments(store, 7)
    path = next(path for path in files(store) if row(31).posterior in path.read_bytes())
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))  # nothing of this file can be read any more
    assert cli.main(["data", "verify", store.location]) == 2
    printed = capsys.readouterr()
    assert "latents: first/15 (key key 15): not what was written, by its checksum\n" in printed.out
    assert "latents: row 3" in printed.out
    assert "damaged rows: 31 of latents" in printed.err
    assert cli.main(["data", "verify", store.location, "--remove"]) == 0
    assert cli.main(["data", "verify", store.location]) == 0
    assert {batch.damaged for batch in batches(store)} == {()}
    assert store.latents.count() == 29


def test_the_rows_of_a_split_do_not_vanish(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A row of which the split is no longer "train" is in no selection: nobody would ask for it."""
    store = copied(whole, tmp_path / "store")
    lance.dataset(store.latents.uri).update({"split": "'trbin'"}, where="key in ('key 15', 'key 63')")
    read = batches(store)
    assert any("2 damaged rows are left out" in message and "first/15" in message for message in caplog.messages)
    assert not {"key 15", "key 63"} & {key for batch in read for key in batch.keys}


def test_images_are_checked_before_they_become_latents_or_are_trained_on(
    images: Path, config: Callable[..., DataConfig], vae: VAE
):
    data = config(images, validation_fraction=0.0)
    store = Store(data.store)
    curate(data, store, lambda _: None)
    [path] = Path(store.images.uri, "data").iterdir()
    file = store.images.required().scan(["source_id", "data"], "source_id = '3.jpg'").to_pylist()[0]["data"]
    flip(path, 8 * (path.read_bytes().find(file) + len(file) - 200))
    told: list[Damage] = []
    rows = waiting_cuts(store, data.transform.spec, vae.id)
    assert encode_latents(store, rows, vae, lambda _: None, told.append) == 7
    assert ["folder/3.jpg" in str(one) for one in told] == [True]
    pixels = PixelRows(store.images.required(), data.transform.spec, "train")
    found = [pixels.read(bucket, range(size), range(size), 0) for bucket, size in enumerate(pixels.sizes)]
    assert sum(len(batch.damaged) for batch in found) == 1
    with pytest.raises(UserError, match="damaged rows: 1 of images"):
        verify_store(store.location)
    verify_store(store.location, remove=True)
    curate(data, store, lambda _: None)
    assert encode_latents(store, waiting_cuts(store, data.transform.spec, vae.id), vae, lambda _: None) == 1
    verify_store(store.location)
    assert (store.images.count(), store.latents.count()) == (8, 8)


def test_what_lance_panics_about_is_damage(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class PanicException(BaseException):
        """As pyo3's, which is in no module."""

    def panic(*_: object, **__: object) -> None:
        raise PanicException("the offset + length of the sliced Buffer cannot exceed the existing length")

    view = copied(whole, tmp_path / "store").latents.required()
    monkeypatch.setattr(lance.LanceDataset, "to_table", panic)
    with pytest.raises(UserError, match="Lance does not understand its content"):
        view.scan(["key"])
