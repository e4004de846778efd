"""Rows reach the step paired by key, whatever the store went through, and threads change nothing and do not leak."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terminus.conditioning import Crop, Size
from terminus.data.batch import Batch
from terminus.data.geometry import CropPlan
from terminus.data.grouped import Grouped
from terminus.data.latent_rows import LatentRows
from terminus.data.loader import Loader
from terminus.data.order import Order
from terminus.data.record import LatentRow
from terminus.data.scanning import Runs
from terminus.data.store import Store, View, pack_posterior


def latent(number: int) -> LatentRow:
    """Everything in this row says its number; every fifth is held out, and two shapes alternate."""
    shape = (2, 1, 2, 3) if number % 2 else (2, 1, 2, 2)
    plan = CropPlan(Size(100 + number, 100), Size(16, 8 * shape[3]), Crop(number, 0), Size(16, 8 * shape[3]))
    return LatentRow(
        key=f"key {number}",
        image_key=f"image {number}",
        image_hash=f"hash {number}",
        source="test",
        source_id=str(number),
        split="validation" if number % 5 == 0 else "train",
        captions=(f"caption {number}",),
        caption_origins=("test",),
        plan=plan,
        posterior=pack_posterior(np.full(shape, number, np.float16)),
        latent_channels=1,
        latent_height=2,
        latent_width=shape[3],
        vae="vae" if number % 7 else "another",
        transform="a 'quoted' spec",
        caption_weights=(1.0,),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Forty rows in four fragments."""
    store = Store(str(tmp_path / "store"))
    for first in range(0, 40, 10):
        store.latents.append([latent(number) for number in range(first, first + 10)])
    return store


def rows_of(store: Store, split: str = "train") -> LatentRows:
    view = store.latents.latest()
    assert view is not None
    return LatentRows(view, "vae", "a 'quoted' spec", split)


def numbers(batch: Batch) -> list[int]:
    """The number that each sample's key says, after checking that all its other parts say the same."""
    found = [int(key.removeprefix("key ")) for key in batch.keys]
    assert [captions[0].text.split(",")[0] for captions in batch.captions] == [f"caption {number}" for number in found]
    assert [one.crop.top for one in batch.conditioning] == found
    assert [value.unique().tolist() for value in batch.values] == [[number] for number in found]
    return found


def everything(rows: LatentRows) -> set[int]:
    batches = [rows.read(bucket, range(size), range(size), 0) for bucket, size in enumerate(rows.sizes)]
    return {number for batch in batches for number in numbers(batch)}


EXPECTED = {number for number in range(40) if number % 5 and number % 7}


def test_rows_of_several_appends_are_paired_by_key(store: Store):
    assert everything(rows_of(store)) == EXPECTED
    assert everything(rows_of(store, "validation")) == {5, 10, 15, 20, 25, 30}


def test_after_a_revision_of_captions(store: Store):
    changed = ["key 3", "key 22", "key 38"]
    captions = pa.array([[f"caption {key[4:]}, revised"] for key in changed], pa.list_(pa.string()))
    store.latents.revise(pa.table({"key": changed, "captions": captions}), on="key")
    rows = rows_of(store)
    assert everything(rows) == EXPECTED
    batches = [rows.read(bucket, range(size), range(size), 0) for bucket, size in enumerate(rows.sizes)]
    revised = {k for b in batches for k, c in zip(b.keys, b.captions, strict=True) if c[0].text.endswith("revised")}
    assert revised == set(changed)


def test_after_rows_were_deleted_updated_and_a_fragment_is_gone(store: Store):
    dataset = lance.dataset(store.latents.uri)
    dataset.delete(
        "key in ('key 1', 'key 4', 'key 26') or source_id in ('10','11','12','13','14','15','16','17','18','19')"
    )
    # Who changes a table without us takes the checksums away.
    dataset.update({"source": "'moved'", "checksum": "NULL", "group_checksum": "NULL"}, where="key = 'key 31'")
    assert everything(rows_of(store)) == EXPECTED - {1, 4, 26} - set(range(10, 20))


def test_repeated_rows_come_as_often_as_asked_and_in_order(store: Store):
    rows = rows_of(store)
    whole = numbers(rows.read(0, range(rows.sizes[0]), range(rows.sizes[0]), 0))
    asked = [3, 0, 3, 5, 0]
    assert numbers(rows.read(0, asked, range(5), 0)) == [whole[row] for row in asked]


def batches(rows: LatentRows, threads: int) -> list[Batch]:
    loader = Loader(rows, Order(3, rows.sizes, 4), accumulation=2, threads=threads)
    return [batch for step in loader.steps(2, 9) for batch in step]


def test_threads_change_nothing(store: Store):
    rows = rows_of(store)
    for one, two in zip(batches(rows, 0), batches(rows, 2), strict=True):
        assert (one.keys, one.positions, one.captions, one.epoch) == (two.keys, two.positions, two.captions, two.epoch)
        assert torch.equal(one.values, two.values)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_threads_end_when_the_consumer_does(store: Store):
    rows = rows_of(store)
    steps = Loader(rows, Order(0, rows.sizes, 4), 1, threads=2).steps(0, 1000)
    next(steps)
    assert loader_threads()
    steps.close()
    assert not loader_threads()


class Failing:
    """Breaks at one place of the order."""

    sizes = (8,)

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        if positions[0] == 12:
            raise RuntimeError("the disk is gone")
        return Batch(tuple(positions), tuple(map(str, rows)), ((),) * 4, (), torch.zeros(4), epoch)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_a_thread_reaches_the_loop_at_its_own_step(threads: int):
    seen: list[int] = []
    with pytest.raises(RuntimeError, match="the disk is gone"):
        seen.extend(batch.positions[0] for (batch,) in Loader(Failing(), Order(0, (8,), 4), 1, threads).steps(0, 9))
    assert seen == [0, 4, 8]
    assert not loader_threads()


def test_a_pinned_version_does_not_see_what_comes_later(store: Store):
    view = store.latents.latest()
    assert isinstance(view, View)
    store.latents.append([latent(41)])
    assert everything(LatentRows(store.latents.at(view.version), "vae", "a 'quoted' spec", "train")) == EXPECTED


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=6), min_size=1, max_size=4)
)
def test_runs_are_the_rows_that_they_were_made_of(pieces: list[list[tuple[int, int]]]):
    expected = [first + i for piece in pieces for first, length in piece for i in range(length)]
    columns = [np.array(piece, dtype=np.int64).T for piece in pieces]
    runs = Runs.joined([(first, lengths) for first, lengths in columns])
    assert len(runs) == len(expected)
    assert runs.numbers(range(len(expected))).tolist() == expected
    touching = sum(a + 1 == b for a, b in pairwise(expected))
    assert len(runs.first) == len(expected) - touching


def test_sources_follow_each_other_and_consecutive_rows_are_one_run(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    for first in range(1, 40, 10):
        rows = [replace(latent(2 * n + 1), split="train", vae="vae") for n in range(first, first + 10)]
        store.latents.append([replace(row, source="second" if i % 2 else "first") for i, row in enumerate(rows)])
    view = store.latents.latest()
    assert view is not None
    mixed = Grouped(view, {})
    assert mixed.sources == ({"first": 20, "second": 20},)
    found, _ = mixed.sound(0, range(40), range(40))
    assert [row["source"] for row in found] == ["first"] * 20 + ["second"] * 20
    # Four commits, one run: the memory of a large table is that of its interruptions.
    assert len(Grouped(view, {"split": ("train",)}).rows[0].first) == 40
    alone = [replace(latent(2 * n + 1), split="train") for n in range(30)]
    other = Store(str(tmp_path / "other"))
    for first in range(0, 30, 10):
        other.latents.append(alone[first : first + 10])
    view = other.latents.latest()
    assert view is not None
    assert [len(rows.first) for rows in Grouped(view, {}).rows] == [1]


def test_masks_and_weights_of_captions_come_along(tmp_path: Path):
    store = Store(str(tmp_path / "store"))
    half = bytes([0, 51, 255, 255, 0, 0])
    plain = [replace(latent(number), caption_weights=(0.5 * number,)) for number in (1, 3, 9, 11)]
    store.latents.append([*plain[:2], replace(plain[2], mask=half), plain[3]])
    rows = rows_of(store)
    batch = rows.read(0, range(4), range(4), 0)
    assert [caption.weight for (caption,) in batch.captions] == [0.5, 1.5, 4.5, 5.5]
    assert batch.mask is not None
    assert batch.mask.shape == (4, 1, 2, 3)
    assert batch.mask[2].flatten().tolist() == pytest.approx([0, 0.2, 1, 1, 0, 0])
    assert (batch.mask[[0, 1, 3]] == 1).all()
    assert rows.read(0, [0, 3], range(2), 0).mask is None


def test_other_cuts_are_read_only_where_asked_for(store: Store):
    store.latents.append([replace(latent(1), key="key 1", transform="a 'quoted' spec cut 1")])
    view = store.latents.latest()
    assert view is not None
    count = sum(rows_of(store).sizes)
    assert sum(LatentRows(view, "vae", "a 'quoted' spec", "train", crops=2).sizes) == count + 1


def test_a_version_is_scanned_once(store: Store, monkeypatch: pytest.MonkeyPatch):
    def keys(rows: LatentRows) -> list[tuple[str, ...]]:
        return [batch.keys for batch in batches(rows, 0)]

    expected, sources = keys(rows_of(store)), rows_of(store).sources
    folder = Path(f"{store.latents.uri}.index")
    assert len(list(folder.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(View, "batches", None)
        kept = rows_of(store)
        assert (kept.sources, keys(kept)) == (sources, expected)
    assert rows_of(store, "validation").sizes == (3, 3), "another condition is another file"
    store.latents.append([latent(number) for number in range(40, 50)])
    assert sum(rows_of(store).sizes) > sum(kept.sizes), "and so is another version"
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == 3
    for path, data in files.items():
        path.write_bytes(data[: len(data) // 2])
    assert keys(rows_of(store)), "a damaged one is found anew"
    assert sum(path.read_bytes() == data for path, data in files.items()) == 1
    place, whole = next((path, data) for path, data in files.items() if path.read_bytes() == data)
    for bit in range(0, 8 * len(whole), 13):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        place.write_bytes(flipped)
        assert everything(rows_of(store)) == {n for n in range(50) if n % 5 and n % 7}
    # Made anew at the same place, with the same version numbers.
    shutil.rmtree(store.latents.uri)
    for first in range(0, 100, 20):
        store.latents.append([latent(number) for number in range(first, first + 20)])
    assert everything(rows_of(store)) == {n for n in range(100) if n % 5 and n % 7}


def test_a_place_that_cannot_be_written_is_scanned_each_time(store: Store):
    Path(f"{store.latents.uri}.index").write_text("a file where the folder should be")
    assert rows_of(store).sizes == rows_of(store).sizes
