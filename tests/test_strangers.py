"""Whatever people give `terminus inspect`, the answer is one paragraph that names it and what was meant."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from terminus.errors import UserError
from terminus.inspection.command import inspect
from terminus.model.header import read_header
from terminus.sampling.reading import read_image_metadata


def answer(path: Path) -> str:
    """Without the paragraph's rule, which all share."""
    with pytest.raises(UserError) as caught:
        inspect(str(path))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1200
    assert text.startswith(str(path))
    return text


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return stream.getvalue()


def image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


RECIPE = b"extends: nano\ntraining:\n  images: 1000\n"
FILES: dict[str, tuple[bytes, str]] = {
    "my.yaml": (RECIPE, "This is a recipe.*terminus config show"),
    "a-recipe-without-ending": (b"# mine\n\nrun: {dir: runs/x}\n", "This is a recipe"),
    "recipe.safetensors": (RECIPE, "This is a recipe"),
    "other.yaml": (b"model: {params: 1}\n", "This is a recipe"),
    "notes.txt": ("Ein schöner Text, nicht lang.\n".encode() * 300, "This is a text file"),
    "windows.txt": (b"\xef\xbb\xbfa text\r\n", "This is a text file"),
    "BMW.txt": (b"BMW, a car that is no bitmap", "This is a text file"),
    "eight.txt": (b"8 bytes:{and then a brace}", "This is a text file"),
    "broken.yaml": (b"a: [\n", "This is a text file"),
    "config.json": (json.dumps({"_class_name": "UNet2DConditionModel"}).encode(), "configuration of a network"),
    "x.index.json": (json.dumps({"weight_map": {}}).encode(), "index of a network in several files"),
    "flow.json": (json.dumps({"nodes": [], "links": []}).encode(), "a workflow of ComfyUI"),
    "deep.json": (b"[" * 100_000, "a JSON file"),
    "rows.jsonl": (b'{"a": 1}\n{"a": 2}\n', "a table of JSON rows"),
    "page.safetensors": (b"<!DOCTYPE html><title>404</title>", "an HTML page, perhaps a failed download"),
    "model.ckpt": (b"PK\x03\x04 and more", "a zip archive"),
    "model.pt": (b"\x80\x02}q\x00.", "a pickle"),
    "data.tar": (tar(), "a tar archive"),
    "data.parquet": (b"PAR1" + bytes(100), "a Parquet table"),
    "a.npy": (b"\x93NUMPY\x01\x00v\x00{", "an array of NumPy"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
    "a.gif": (image("GIF"), "a GIF image"),
    "a.tif": (image("TIFF"), "a TIFF image"),
    "a.bmp": (image("BMP"), "a BMP image"),
    "a.avif": (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF or HEIF image"),
    "a.mp4": (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
    "empty": (b"", "an empty file"),
    "noise": (bytes(range(128, 256)) * 10, "not a safetensors file"),
    "cut.safetensors": (b"\x10\x27\0\0\0\0\0\0{", "not a safetensors file"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path: Path, name: str):
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    text = answer(tmp_path / name)
    assert re.search(words, text), text
    assert "claim a header" not in text or name == "noise"


def test_a_text_is_no_header_of_many_bytes_for_the_other_verbs_either(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(RECIPE)
    with pytest.raises(UserError, match="it is a text file"):
        read_header(tmp_path / "x.safetensors")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def weights(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, folder / name)
    return folder


SAVE = "checkpoints/images-000010"


FOLDERS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("empty", lambda at: touch(at, ".hidden"), "an empty folder"),
    ("store", lambda at: touch(at, "images.lance/a", "latents.lance/a"),
     r"a data store \(images.lance, latents.lance\).*terminus data nano data.store="),
    ("table", lambda at: touch(at, "images.lance/_versions/1.manifest") / "images.lance", "one table of a data store"),
    ("saves", lambda at: touch(at, "recipe.yaml", f"{SAVE}/manifest.json") / "checkpoints",
     r"the checkpoints of a run, 1 checkpoint\. .*Did you mean .*saves\?"),
    ("save", lambda at: touch(at, "recipe.yaml", f"{SAVE}/manifest.json") / SAVE,
     r"one checkpoint of a run.*Did you mean .*save\?"),
    ("evaluation", lambda at: touch(at, "metrics.json", "report.html"), "the report of an evaluation"),
    ("cache", lambda at: touch(at, "snapshots/abc/model_index.json", "refs/main"),
     r"cache of the hub.*snapshots/abc\?"),
    ("tokenizer", lambda at: touch(at, "model_index.json", "tokenizer/merges.txt") / "tokenizer",
     r"a tokenizer.*Did you mean .*tokenizer\?"),
    ("scheduler", lambda at: touch(at, "scheduler_config.json"), "the configuration of a scheduler"),
    ("pickled", lambda at: touch(at, "pytorch_model.bin", "config.json"), "pickled weights"),
    ("bare", lambda at: touch(at, "config.json"), "configuration of a network, without weights"),
    ("loras", lambda at: weights(at, "a.safetensors", "b.safetensors"), "a folder of 2 model files.*a.safetensors"),
    ("peft", lambda at: weights(at, "adapter_model.safetensors", "other.safetensors"), "a folder of 2 model files"),
    ("configured", lambda at: weights(touch(at, "config.json"), "a.safetensors", "b.safetensors"), "2 model files"),
    ("one", lambda at: weights(at, "model-of-mine.safetensors"), "one .safetensors file.*model-of-mine"),
    ("images", lambda at: touch(at, "a.png", "b.JPG", "a.txt"), "a folder of 2 images"),
    ("runs", lambda at: touch(at, "one/recipe.yaml", "two/recipe.yaml", "x.txt"),
     r"holds some.*runs/one, .*runs/two\?"),
    ("other", lambda at: touch(at, "x.txt"), "a folder of 1 entry and neither a model nor a run"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "words"), FOLDERS, ids=[name for name, *_ in FOLDERS])
def test_folders(tmp_path: Path, name: str, make: Callable[[Path], Path], words: str):
    text = answer(make(tmp_path / name))
    assert re.search(words, text), text


def test_parts_of_a_model_and_of_a_run(tmp_path: Path, random_nano: Path):
    model = shutil.copytree(random_nano, tmp_path / "m")
    assert f"Did you mean the model, {model}?" in answer(model / "unet" / "config.json")
    assert f"Did you mean the model, {model}?" in answer(model / "model_index.json")
    run = touch(tmp_path / "run", "recipe.yaml")
    (run / "log.jsonl").write_text('{"loss": 1}\n')
    assert "the log of a run. A model folder" in answer(run / "log.jsonl")
    assert f"Did you mean the run, {run}?" in answer(run / "log.jsonl")


def test_a_part_of_a_store(tmp_path: Path):
    touch(tmp_path / "store", "images.lance/data/x.lance")
    (tmp_path / "store/images.lance/data/x.lance").write_bytes(b"PAR1 binary \0")
    assert f"data.store={tmp_path / 'store'}`" in answer(tmp_path / "store/images.lance/data/x.lance")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    assert "cannot be read" in answer(tmp_path / "closed")


@pytest.mark.parametrize("comment", [
    bytes(264), b"ASCII\0\0\0" + bytes(100), b"UNICODE\0" + bytes(64), b"ASCII\0\0\0   \0\0", bytes(8) + b" ",
])  # fmt: skip
def test_an_exif_comment_of_nothing_is_no_text(tmp_path: Path, comment: bytes):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(tmp_path / "camera.jpg", exif=exif)
    found = read_image_metadata(tmp_path / "camera.jpg")
    assert found.texts == {}
    assert found.kind == "none"


def test_what_fills_a_comment_up_is_no_part_of_it(tmp_path: Path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = (
        b"ASCII\0\0\0a cat\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 1, Size: 8x8" + bytes(40)
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "padded.jpg", exif=exif)
    found = read_image_metadata(tmp_path / "padded.jpg")
    assert found.settings["Seed"] == "1"
    assert found.texts["parameters"].endswith("Size: 8x8")


def test_blank_texts_of_a_png_say_nothing(tmp_path: Path):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", " \n ")
    Image.new("RGB", (8, 8)).save(tmp_path / "blank.png", pnginfo=chunks)
    assert read_image_metadata(tmp_path / "blank.png").texts == {}
