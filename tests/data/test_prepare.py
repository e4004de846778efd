from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from terminus.data.curate import Curated, curate
from terminus.data.encode import encode_latents
from terminus.data.filters import Filters
from terminus.data.pixels import training_pixels
from terminus.data.prepare import PrepareReport, prepare
from terminus.data.record import ImageRow
from terminus.data.schema import GEOMETRY, plan_of, read_row
from terminus.data.settings import AspectBuckets, DataConfig
from terminus.data.sources.embedded import EmbeddedSource
from terminus.data.store import Store, Table, unpack_posterior
from terminus.data.verify import verify_store
from terminus.data.waiting import waiting_cuts
from terminus.errors import UserError
from terminus.model.vae import VAE, to_signal

from .conftest import noise, random_vae, save
from .sources.test_webdataset import shard

Build = Callable[..., DataConfig]


def quiet(data: DataConfig) -> PrepareReport:
    return prepare(data, None, Console(file=StringIO()))


def rows(table: Table, *columns: str) -> list[dict[str, object]]:
    view = table.latest()
    return view.scan(columns or table.schema.names).to_pylist() if view else []


def encode_all(data: DataConfig, vae: VAE) -> int:
    store = Store(data.store)
    return encode_latents(store, waiting_cuts(store, data.transform.spec, vae.id), vae, lambda _: None)


def test_a_bad_folder_is_prepared_to_the_end(images: Path, config: Build):
    whole = (images / "0.jpg").read_bytes()
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("this is no image")
    save(images / "bomb.png", Image.new("1", (12000, 12000)))
    save(images / "line.png", Image.new("RGB", (60000, 1)))
    save(images / "mute.png", Image.fromarray(noise(50, 100, 100)), caption=None)
    save(images / "empty-caption.png", Image.fromarray(noise(51, 100, 100)), caption=" \n")
    save(images / "small.png", Image.fromarray(noise(52, 63, 100)))
    save(images / "latin.png", Image.fromarray(noise(53, 100, 100)))
    (images / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (images / "copy.jpg").write_bytes(whole)
    (images / "notes.md").write_text("not an image")
    (images / "loop.png").symlink_to("loop.png")
    (images / "around").symlink_to(images)
    (images / "outside.png").symlink_to("/etc/hostname")
    os.mkfifo(images / "pipe.png")
    strange = os.fsdecode(b"caf\xe9 -rf\n\x1b[31m.png")
    save(images / strange, Image.fromarray(noise(54, 100, 100)))
    for name in ("half", "text", "copy", "loop", "outside", "pipe"):
        (images / f"{name}.txt").write_text("a caption")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(images / "socket.png"))
        (images / "socket.txt").write_text("a caption")
        report = quiet(config(images))

    expected = {
        "half.jpg": "truncated", "text.png": "not a JPEG, PNG or WebP image", "bomb.png": "too many pixels",
        "line.png": "too elongated", "mute.png": "no caption", "empty-caption.png": "no caption",
        "small.png": "smaller than its bucket", "latin.png": "caption cannot be read",
        "copy.jpg": "exact duplicate", "0.jpg": None, "notes.md": "not a JPEG, PNG or WebP image",
        "loop.png": "symbolic link in a loop", "around": "link to a folder",
        "outside.png": "link out of the folder", "pipe.png": "not a regular file",
        "socket.png": "not a regular file",
    }  # fmt: skip
    store = Store(config(images).store)
    reasons = {str(row["source_id"]): row["reason"] for row in rows(store.rejected)}
    # 0.jpg and copy.jpg are the same bytes; the first in path order is kept.
    assert reasons == {name: reason for name, reason in expected.items() if reason}
    kept = {str(row["source_id"]) for row in rows(store.images, "source_id")}
    assert kept == {f"{index}.jpg" for index in range(7)} | {"see-through.png", "caf\\udce9 -rf\\n\\x1b[31m.png"}
    assert report.candidates == report.kept + sum(report.dropped.values()) == len(kept) + len(reasons)
    assert quiet(config(images)).dropped == report.dropped


def test_repeating_adds_nothing_and_new_images_are_added(images: Path, config: Build, vae: VAE):
    data = config(images)
    first = quiet(data)
    assert (first.kept, first.added, encode_all(data, vae)) == (8, 8, 8)
    store = Store(data.store)
    versions = [table.version() for table in (store.images, store.latents, store.rejected)]
    again = quiet(data)
    assert (again.kept, again.added, encode_all(data, vae)) == (8, 0, 0)
    assert [table.version() for table in (store.images, store.latents, store.rejected)] == versions

    before = rows(store.latents)
    save(images / "a-new.png", Image.fromarray(noise(70, 100, 100)))
    grown = quiet(data)
    assert (grown.kept, grown.added, encode_all(data, vae)) == (9, 1, 1)
    assert rows(store.latents)[:8] == before


def test_another_transform_or_vae_reuses_no_row(images: Path, config: Build, vae: VAE):
    data = config(images)
    quiet(data)
    assert encode_all(data, vae) == 8
    other = random_vae(1)
    assert other.id != vae.id
    assert encode_all(data, other) == 8
    cut = config(images, crop="random")
    assert quiet(cut).added == 8
    assert encode_all(cut, vae) == 8
    latents = rows(Store(data.store).latents, "key", "vae", "transform")
    assert len({row["key"] for row in latents}) == 24
    assert len({(row["vae"], row["transform"]) for row in latents}) == 3
    assert encode_all(data, vae) == encode_all(data, other) == encode_all(cut, vae) == 0


def test_a_latent_is_that_of_the_crop_its_row_describes(images: Path, config: Build, vae: VAE):
    data = config(images, crop="random", buckets=AspectBuckets(kind="aspect", step=16), background="#102030")
    quiet(data)
    encode_all(data, vae)
    store = Store(data.store)
    found = {row["key"]: row for row in rows(store.images)}
    assert len({row["bucket"] for row in found.values()}) > 1
    for row in rows(store.latents):
        image = found[row["image_key"]]
        with Image.open(BytesIO(image["data"])) as opened:
            over = Image.new("RGB", opened.size, "#102030")
            over.paste(opened, mask=opened.getchannel("A") if opened.mode == "RGBA" else None)
        plan = plan_of(row)
        small = over.resize((plan.resized.width, plan.resized.height), Image.Resampling.LANCZOS)
        box = (plan.crop.left, plan.crop.top, plan.crop.left + plan.target.width, plan.crop.top + plan.target.height)
        ours = training_pixels(read_row(ImageRow, image))
        assert np.abs(ours.astype(int) - np.asarray(small.crop(box))).max() <= 2  # at hard edges
        with torch.inference_mode():
            expected = vae.encode(to_signal(torch.from_numpy(ours)[None].permute(0, 3, 1, 2))).mean[0].numpy()
        shape = (row["latent_channels"], row["latent_height"], row["latent_width"])
        stored = unpack_posterior(row["posterior"], *shape)[0]
        np.testing.assert_allclose(stored, expected, atol=2e-3, rtol=2e-3)
        assert row["bucket"] == f"{ours.shape[0]}x{ours.shape[1]}"
        assert [row[name] for name in GEOMETRY] == [image[name] for name in GEOMETRY]
        assert row["captions"] == image["captions"]


def test_one_drawing_on_two_backgrounds_is_two_rows(images: Path, config: Build):
    source = EmbeddedSource(kind="embedded", limit=3, backgrounds=2)
    report = quiet(config(images, sources=(source,), filters=Filters(duplicates="near")))
    assert (report.kept, report.dropped) == (6, {})
    found = rows(Store(report.store).images)
    assert len({row["key"] for row in found}) == 6
    assert len({row["image_hash"] for row in found}) == 3
    assert {row["background"] for row in found} == {"#000000", "#ffffff"}


def test_near_duplicates(images: Path, config: Build):
    with Image.open(images / "3.jpg") as original:
        save(images / "3-again.jpg", original.copy(), quality=60)
    assert quiet(config(images)).kept == 9
    report = quiet(config(images, store=str(images.parent / "near"), filters=Filters(duplicates="near")))
    assert report.dropped == {"near duplicate": 1}


def test_sidecars(images: Path, config: Build):
    (images / "0.json").write_text('{"captions": ["two", "three"], "licence": "CC0-1.0"}')
    (images / "1.txt").unlink()
    (images / "1.json").write_text('{"caption": "only"}')
    (images / "2.json").write_text("[1]")
    report = quiet(config(images))
    found = {row["source_id"]: row for row in rows(Store(report.store).images)}
    assert found["0.jpg"]["captions"] == ["pattern 0", "two", "three"]
    assert found["0.jpg"]["licence"] == "CC0-1.0"
    assert found["1.jpg"]["captions"] == ["only"]
    assert report.dropped == {"caption cannot be read": 1}


@pytest.mark.parametrize("captions", ["5", '"abc"', '{"a": "b"}', "[1]", "null"])
def test_captions_of_another_shape_are_a_reason(images: Path, config: Build, captions: str):
    (images / "0.json").write_text(f'{{"captions": {captions}}}')
    assert quiet(config(images)).dropped == {"caption cannot be read": 1}


def test_a_wrong_model_is_known_before_the_first_stage(images: Path, config: Build):
    data = config(images)
    with pytest.raises(UserError, match="No model is here"):
        prepare(data, str(images / "no-model"), Console(file=StringIO()))
    assert not Path(data.store).exists()


def test_a_store_that_cannot_be(images: Path, config: Build):
    with pytest.raises(UserError, match=r"0.jpg: this is a file. data.store is a folder"):
        quiet(config(images, store=str(images / "0.jpg")))
    with pytest.raises(UserError, match=r"images.lance: the table cannot be written .*data.store") as caught:
        quiet(config(images, store="/proc/store"))
    assert ".rs:" not in str(caught.value)


def test_too_few_images_to_hold_any_out_is_said(images: Path, config: Build):
    metadata = StringIO()
    prepare(config(images, validation_fraction=0.0), None, Console(file=metadata))
    assert "No image is held out (data.validation_fraction" in metadata.getvalue()


def test_the_split_is_a_function_of_the_content(images: Path, config: Build):
    def splits(store: str) -> dict[object, object]:
        quiet(config(images, store=store, validation_fraction=0.5))
        return {row["image_hash"]: row["split"] for row in rows(Store(store).images)}

    first = splits(str(images.parent / "one"))
    assert set(first.values()) == {"train", "validation"}
    for index in range(7):
        (images / f"{index}.jpg").rename(images / f"renamed-{index}.jpg")
        (images / f"{index}.txt").rename(images / f"renamed-{index}.txt")
    assert splits(str(images.parent / "two")) == first


def test_changed_rules_are_an_error_that_names_them(images: Path, config: Build):
    quiet(config(images))
    with pytest.raises(UserError, match=r"data\.filters\.max_luminance was 1\.0 and is 0\.5"):
        quiet(config(images, filters=Filters(max_luminance=0.5)))
    with pytest.raises(UserError, match=r"data\.background was #ffffff and is #000000"):
        quiet(config(images, background="#000000"))


@pytest.mark.parametrize("kind", ["missing", "empty", "useless", "file"])
def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path: Path, config: Build, kind: str):
    folder = tmp_path / kind
    if kind == "file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "useless":
        (folder / "a.png").write_text("no image")
        (folder / "a.txt").write_text("a caption")
    data = config(folder)
    with pytest.raises(UserError):
        quiet(data)
    assert not Path(data.store).exists()


def test_the_store_does_not_load_the_preparation_engine():
    code = "import sys, terminus.data.store; sys.exit('daft' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_killed_preparation_continues_to_the_same_end(tmp_path: Path, config: Build, vae: VAE):
    """kill -9 in the middle of each stage; the repeated command ends with the rows of an undisturbed one."""
    folder = tmp_path / "many"
    for index in range(40):
        save(folder / f"{index:02}.png", Image.fromarray(noise(index, 70, 70)), f"pattern {index}")
    (folder / "bad.png").write_text("no image")
    (folder / "bad.txt").write_text("a caption")
    straight = config(folder, store=str(tmp_path / "straight"))
    quiet(straight)
    encode_all(straight, vae)

    killed = config(folder, store=str(tmp_path / "killed"))
    code = KILLED.format(folder=str(folder), store=killed.store, tests=str(Path(__file__).parents[2]))
    for table, least in (("images", 8), ("latents", 8)):
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            deadline = time.monotonic() + 60
            while getattr(Store(killed.store), table).count() < least and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert least <= getattr(Store(killed.store), table).count() < 40, "killed too late to prove anything"
    quiet(killed)
    encode_all(killed, vae)
    for name in ("images", "latents", "rejected"):
        assert rows(getattr(Store(killed.store), name)) == rows(getattr(Store(straight.store), name))


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from terminus.data import curate, encode
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.data.store import Store
from terminus.data.waiting import waiting
from tests.data.conftest import random_vae

curate.GROUP = encode.GROUP = 8
data = DataConfig(
    store={store!r}, sources=(FolderSource(kind="folder", name="folder", path=Path({folder!r})),), resolution=64
)
store, vae = Store(data.store), random_vae(0)
slow = lambda count: time.sleep(0.05 * count)
curate.curate(data, store, slow)
encode.encode_latents(store, waiting(store, data.transform.spec, vae.id), vae, slow)
"""


def test_counts_add_up_on_every_run(images: Path, config: Build):
    (images / "bad.png").write_text("no image")
    (images / "bad.txt").write_text("a caption")
    store = Store(config(images).store)
    for _ in range(2):
        counts: Curated = curate(config(images), store, lambda _: None)
        assert counts.candidates == counts.added + counts.unchanged + sum(counts.dropped.values()) == 9


def test_edited_captions_reach_images_and_latents_and_no_row_moves(images: Path, config: Build, vae: VAE):
    data = config(images)
    quiet(data)
    encode_all(data, vae)
    store = Store(data.store)
    before = {name: rows(getattr(store, name)) for name in ("images", "latents")}
    old = store.latents.version()
    (images / "3.txt").write_text("a better text")
    report = quiet(data)
    assert (report.kept, report.added, report.revised) == (8, 0, 1)
    for name, was in before.items():
        now = rows(getattr(store, name))
        assert [row["key"] for row in now] == [row["key"] for row in was]
        changed = [(row["source_id"], row["captions"]) for row, old_row in zip(now, was, strict=True) if row != old_row]
        assert changed == [("3.jpg", ["a better text"])]
    assert store.latents.at(old).scan(store.latents.schema.names).to_pylist() == before["latents"]
    assert (quiet(data).revised, encode_all(data, vae)) == (0, 0)


def test_whatever_a_source_says_anew_is_revised(tmp_path: Path, config: Build):
    def metadata(**changes: object) -> DataConfig:
        facts = {"punsafe": 0.1, "tags": ["a"], "LICENSE": "MIT", "url": "https://example.org/a.jpg"} | changes
        members = [("a.jpg", body), ("a.txt", b"text"), ("a.json", json.dumps(facts).encode())]
        shard(tmp_path / "shards" / "0.tar", *members)
        return config(tmp_path, sources=({"kind": "webdataset", "name": "w", "path": str(tmp_path / "shards")},))

    body = (save(tmp_path / "a.jpg", Image.fromarray(noise(1, 80, 80)))).read_bytes()
    names = ("unsafe", "tags", "licence", "url", "aesthetic")
    report = quiet(metadata())
    [before] = rows(Store(report.store).images)
    assert [before[name] for name in names] == [pytest.approx(0.1), ["a"], "MIT", "https://example.org/a.jpg", None]
    data = metadata(punsafe=None, tags=["b", "c"], LICENSE="?", url="https://example.org/b.jpg", AESTHETIC_SCORE=6)
    assert quiet(data).revised == 1
    [after] = rows(Store(report.store).images)
    assert [after[name] for name in names] == [None, ["b", "c"], None, "https://example.org/b.jpg", 6.0]
    assert {name for name in after if after[name] != before[name]} == {*names, "state", "checksum"}
    assert quiet(data).revised == 0
    verify_store(report.store)


def test_another_mask_makes_the_latent_anew(tmp_path: Path, config: Build, vae: VAE):
    def masked(sample: str, *columns: int) -> list[tuple[str, bytes]]:
        mask, file = np.zeros((64, 64), np.uint8), BytesIO()
        mask[:, list(columns)] = 255
        Image.fromarray(mask).save(file, "PNG")
        body = (save(tmp_path / f"{sample}.jpg", Image.fromarray(noise(ord(sample), 64, 64)))).read_bytes()
        return [(f"{sample}.jpg", body), (f"{sample}.txt", b"text"), (f"{sample}.mask.png", file.getvalue())]

    path = tmp_path / "shards" / "0.tar"
    data = config(tmp_path, sources=({"kind": "webdataset", "name": "w", "path": str(path)},))
    shard(path, *masked("a", *range(64)), *masked("b", *range(32)))
    assert (quiet(data).added, encode_all(data, vae)) == (2, 2)
    store = Store(data.store)
    before = {row["source_id"]: row for row in rows(store.latents)}
    shard(path, *masked("a", *range(64)), *masked("b", *range(16)))
    assert (quiet(data).revised, encode_all(data, vae)) == (1, 1)
    after = {row["source_id"]: row for row in rows(store.latents)}
    assert after["0.tar/a"] == before["0.tar/a"]
    changed = {name for name, value in after["0.tar/b"].items() if value != before["0.tar/b"][name]}
    assert changed <= {"mask", "posterior", "checksum"}
    posterior = [unpack_posterior(one["0.tar/b"]["posterior"], 4, 16, 16).astype(np.float32) for one in (before, after)]
    assert np.abs(posterior[0] - posterior[1]).max() < 0.01, "another batch, the same image"
    assert np.frombuffer(after["0.tar/b"]["mask"], np.uint8).mean() == pytest.approx(255 / 4, abs=8)
    shard(path, *masked("a", *range(64)), *masked("b", *range(16))[:2])
    assert (quiet(data).revised, encode_all(data, vae)) == (1, 1)
    assert {row["source_id"]: row["mask"] is None for row in rows(store.latents)} == {"0.tar/a": False, "0.tar/b": True}


def test_the_whole_command_with_a_saved_vae(images: Path, config: Build, vae: VAE, tmp_path: Path):
    vae.autoencoder.save_pretrained(tmp_path / "model" / "vae")
    data = config(images)
    report = prepare(data, str(tmp_path / "model"), Console(file=StringIO()))
    assert (report.latents, report.latents_added, report.vae) == (8, 8, vae.id)
    again = prepare(data, str(tmp_path / "model"), Console(file=StringIO()))
    assert (again.latents, again.latents_added, again.versions) == (8, 0, report.versions)
    odd = config(images, resolution=72, buckets=AspectBuckets(kind="aspect", step=8), store=str(tmp_path / "odd"))
    assert prepare(odd, str(tmp_path / "model"), Console(file=StringIO())).latents == 8
