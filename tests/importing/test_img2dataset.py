"""img2dataset: what its folder holds, and what had been done to the images, by what it wrote down."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terminus.errors import UserError
from terminus.importing.command import read_settings


def test_archives(collected: Path, imported):
    recipe, text, printed = imported(collected)
    source = recipe.data.sources[0]
    assert (source.kind, source.path, source.name) == ("webdataset", str(collected), "laion-art")
    found = list(source.candidates(0))
    assert len(found) == 8, "the source reads what was imported"
    assert all(one.problem is None and one.captions for one in found)
    assert "8 of 16 downloads succeeded" in text
    assert "HTTP Error 404: Not Found: 6" in text
    assert "all are 1024x1024: cut or padded to one shape" in text
    assert "that of the file as it is now, not original_width and original_height" in text
    assert "column stream_id: unknown" in text
    assert "\x1b" not in text + printed


def test_unscaled_images_are_said_to_be(collected: Path, imported):
    for table in collected.glob("*.parquet"):
        rows = pq.read_table(table).to_pylist()
        pq.write_table(pa.Table.from_pylist([{**r, "width": 1600, "height": 1200} for r in rows]), table)
    assert "all have the size that was downloaded" in imported(collected)[1]


def test_images_scaled_to_several_shapes_are_not_said_to_have_one(collected: Path, imported):
    for table in collected.glob("*.parquet"):
        rows = pq.read_table(table).to_pylist()
        sides = [{**row, "width": 512 + 64 * (number % 2)} for number, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(sides), table)
    text = imported(collected)[1]
    assert "were scaled by img2dataset (by area, not LANCZOS). The size" in " ".join(text.replace("#", " ").split())
    assert "one shape" not in text


def test_folders_of_images(collected: Path, imported):
    for archive in collected.glob("*.tar"):
        (collected / archive.stem).mkdir()
        archive.unlink()
    recipe, text, _ = imported(collected)
    assert recipe.data.sources[0].kind == "folder"
    assert "reads captions from .txt and .json, and nothing else" in text


def test_tables_of_images(collected: Path, imported):
    for archive in collected.glob("*.tar"):
        archive.unlink()
    recipe, text, _ = imported(collected)
    assert recipe.data.sources[0].kind == "laion"
    assert "it is tried again" in text


def test_a_damaged_table_costs_only_what_it_says(collected: Path, imported):
    (collected / "00000.parquet").write_bytes(b"PAR1 nothing")
    text = imported(collected)[1]
    assert "00000.parquet cannot be read" in text
    assert "all are 1024x1024" in text


@pytest.mark.parametrize("text", ["[1]", '{"count": "many"}', '{"status_dict": 3}', "{", '{"count": 1e400}'])
def test_hostile_counts(collected: Path, text: str):
    (collected / "00000_stats.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"00000_stats\.json"):
        read_settings(collected)


def test_counts_without_images(collected: Path):
    for path in (*collected.glob("*.tar"), *collected.glob("*.parquet")):
        path.unlink()
    (collected / "00000.tfrecord").write_bytes(b"")
    with pytest.raises(UserError, match="tfrecord is not read"):
        read_settings(collected)


def test_a_folder_of_something_else(here: Path):
    shutil.rmtree(here / "kohya")
    (here / "kohya").mkdir()
    with pytest.raises(UserError, match="not a settings file or folder"):
        read_settings(here / "kohya")
