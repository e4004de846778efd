"""Folders whose captions are in metadata.csv, .jsonl or .parquet: good, broken and hostile ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from terminus.data.caption import Caption
from terminus.data.curate import Curated, curate
from terminus.data.record import Candidate
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.data.store import Store
from terminus.errors import UserError
from tests.data.conftest import noise


def lines(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"an image")


def source(folder: Path) -> FolderSource:
    return FolderSource(kind="folder", name="f", path=folder)


def read(folder: Path) -> dict[str, Candidate]:
    found = list(source(folder).candidates(0))
    assert len({one.source_id for one in found}) == len(found) == source(folder).count()
    return {one.source_id: one for one in found}


def texts(candidate: Candidate) -> list[str]:
    return [caption.text for caption in candidate.captions]


def problems(found: dict[str, Candidate]) -> dict[str, tuple[str, str]]:
    return {one.source_id: (one.problem.reason, one.problem.detail) for one in found.values() if one.problem}


def test_captions_of_rows_and_of_sidecars_all_count(tmp_path: Path):
    touch(tmp_path, "a.png", "b.jpg", "both.png", "none.png", "train/c.png", "train/deep/d.webp")
    (tmp_path / "both.txt").write_text("beside")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": "one"},
        {"file_name": "train/deep/d.webp", "captions": ["from above", " "], "licence": "CC0-1.0"},
        {"file_name": "./a.png", "text": "two\nlines", "caption": "three", "license": "?", "bbox": [1, 2]},
        {"file_name": "both.png", "caption": "in the row"},
    )
    lines(
        tmp_path / "metadata.csv", "\ufefftext,file_name", "of the other file,a.png", "one,a.png", '"b, quoted",b.jpg'
    )
    lines(tmp_path / "train" / "metadata.csv", "file_name,prompt,LICENSE", "c.png,c,", "deep/d.webp,from below,MIT")
    found = read(tmp_path)
    assert {name: texts(one) for name, one in found.items()} == {
        "a.png": ["of the other file", "one", "two lines", "three"], "b.jpg": ["b, quoted"],
        "both.png": ["beside", "in the row"], "none.png": [], "train/c.png": ["c"],
        "train/deep/d.webp": ["from above", "from below"],
    }  # fmt: skip
    assert found["both.png"].captions == (Caption("beside", "sidecar"), Caption("in the row", "caption"))
    assert {name: one.licence for name, one in found.items() if one.licence} == {"train/deep/d.webp": "CC0-1.0"}
    assert problems(found) == {}
    assert list(found) == ["a.png", "b.jpg", "both.png", "none.png", "train/c.png", "train/deep/d.webp"]


def test_a_parquet_file_of_captions_is_read_too(tmp_path: Path):
    touch(tmp_path, "a.png")
    pq.write_table(pa.table({"file_name": ["a.png"], "text": ["a"]}), tmp_path / "metadata.parquet")
    assert texts(read(tmp_path)["a.png"]) == ["a"]


def curated(folder: Path) -> Curated:
    """Of `set`, into `store`."""
    sources = (source(folder / "set"),)
    data = DataConfig.model_validate({"store": str(folder / "store"), "sources": sources, "resolution": 64})
    return curate(data, Store(data.store), lambda count: None)


HOSTILE: tuple[tuple[object, str], ...] = (
    ("gone.png", "image is missing"),
    ("/etc/passwd", "name leads out of the folder"),
    ("../outside/c.png", "name leads out of the folder"),
    ("sub/../a.png", "name leads out of the folder"),
    ("sub\\b.png", "name leads out of the folder"),
    ("a\0.png", "name leads out of the folder"),
    ("linked/c.png", "link to a folder"),
    ("a.txt", "row names no image"),
    ("sub", "row names no image"),
    (".", "row names no image"),
    ("metadata.csv", "row names no image"),
    ("n" * 300, "image is missing"),
    (None, "row names no image"),
    (["a.png"], "value of the wrong type"),
    ("\udc80.png", "value of the wrong type"),
    ("a/" * 100_000, "row names no image"),
)


def test_every_name_of_no_use_has_its_reason(tmp_path: Path):
    touch(tmp_path, "set/a.png", "set/sub/b.png", "outside/c.png")
    os.symlink(tmp_path / "outside", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "outside", tmp_path / "set" / "sub" / "metadata.csv")
    os.symlink(tmp_path / "set", tmp_path / "another name")
    lines(tmp_path / "set" / "metadata.csv", "file_name,text", "a.png,a")
    (tmp_path / "set" / "a.txt").write_text("beside")
    lines(tmp_path / "set" / "metadata.jsonl", *({"file_name": name, "text": "t"} for name, _ in HOSTILE))
    lines(tmp_path / "set" / "sub" / "metadata.jsonl", {"file_name": "a.png", "text": "t"})
    found = read(tmp_path / "another name")
    metadata = problems(found)
    assert metadata.pop("linked") == metadata.pop("sub/metadata.csv") == ("link to a folder", "")
    assert metadata.pop("sub/metadata.jsonl#0") == ("image is missing", "sub/a.png")
    assert [metadata[f"metadata.jsonl#{number}"][0] for number in range(len(HOSTILE))] == [one for _, one in HOSTILE]
    assert len(metadata) == len(HOSTILE)
    assert metadata["metadata.jsonl#0"][1] == "gone.png"
    assert texts(found["a.png"]) == ["beside", "a"]


def test_a_broken_row_costs_that_row(tmp_path: Path):
    touch(tmp_path, "a.png", "clip.mp4")
    long, wrong = {"file_name": "a.png", "text": "x" * 65537}, {"file_name": "a.png", "text": {}}
    rows = [{"file_name": "a.png", "text": 1}, '{"file_name', wrong, long, "[]", {"file_name": "a.png", "text": "good"}]
    lines(tmp_path / "metadata.jsonl", *rows)
    lines(tmp_path / "metadata.csv", "file_name,text", "clip.mp4,a film", "a.png", "a.png,a")
    found = read(tmp_path)
    assert {name: reason for name, (reason, _) in problems(found).items()} == {
        "metadata.csv#1": "row cannot be read", "clip.mp4": "not a JPEG, PNG or WebP image",
        "metadata.jsonl#1": "row cannot be read", "metadata.jsonl#2": "value of the wrong type",
        "metadata.jsonl#3": "caption cannot be read", "metadata.jsonl#4": "row cannot be read",
    }  # fmt: skip
    assert texts(found["a.png"]) == ["a", "1", "good"]


def test_a_row_that_names_a_link_out_of_the_folder_does_not_open_it(tmp_path: Path):
    (tmp_path / "set").mkdir()
    Image.fromarray(noise(1, 80, 80)).save(tmp_path / "outside.png")
    Image.fromarray(noise(2, 80, 80)).save(tmp_path / "set" / "inside.png")
    os.symlink(tmp_path / "outside.png", tmp_path / "set" / "link.png")
    lines(tmp_path / "set" / "metadata.csv", "file_name,text", "link.png,secret", "inside.png,good")
    assert curated(tmp_path).dropped == {"link out of the folder": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file,text\na.png,a\n", "no column for file_name. The columns here are: file, text"),
        ("metadata.csv", "file_name,words\na.png,a\n", "no column for text or caption or captions or licence"),
        ("metadata.csv", "", r"cannot be read \(the file is empty\)"),
        ("metadata.jsonl", '[\n{"file_name": "a.png"},\n]\n', r"none of its rows can be read \(metadata.jsonl#0"),
        ("metadata.parquet", "no Parquet", "this file cannot be read"),
    ],
)
def test_a_file_of_no_use_is_one_paragraph(tmp_path: Path, name: str, content: str, message: str):
    touch(tmp_path, "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: .*{message}.*rename the file"):
        source(tmp_path).count()


def test_a_pipe_that_is_called_metadata_is_not_waited_for(tmp_path: Path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "metadata.csv")
    with pytest.raises(UserError, match=r"this is not a regular file.*rename the file"):
        source(tmp_path).count()


def test_only_images_whose_rows_changed_are_judged_again(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(noise(seed, 80, 80)).save(folder / f"{seed}.png")
    rows = [f"{seed}.png,image {seed}" for seed in range(3)]
    lines(folder / "metadata.csv", "file_name,text", *rows)
    assert curated(tmp_path).added == 3
    before = read(folder)
    lines(folder / "metadata.csv", "file_name,text", "gone.png,x", rows[0], "1.png,another", rows[2], "2.png,more")
    after = read(folder)
    same = {name for name in before if before[name].state((0, 0, 0)) == after[name].state((0, 0, 0))}
    assert same == {"0.png"}
    counts = curated(tmp_path)
    assert (counts.candidates, counts.unchanged, counts.revised) == (4, 3, 2)
    assert counts.dropped == {"image is missing": 1}
    view = Store(str(tmp_path / "store")).images.latest()
    assert view is not None
    stored = [row for batch in view.batches(["source_id", "captions"]) for row in batch.to_pylist()]
    assert {row["source_id"]: row["captions"] for row in stored} == {
        "0.png": ["image 0"], "1.png": ["another"], "2.png": ["image 2", "more"],
    }  # fmt: skip
