"""The fixtures, copied to where they are imported, and a folder as img2dataset leaves it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from terminus.config.load import load
from terminus.importing.command import import_recipe
from terminus.training.recipe import Recipe

FIXTURES = Path(__file__).parent / "fixtures"
Imported = tuple[Recipe, str, str]
Import = Callable[[Path], Imported]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the fixtures in `kohya` and `simpletuner`."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imported(here: Path) -> Import:
    """`imported(source)`: the loaded recipe, its text, and what was printed."""

    def run(source: Path) -> Imported:
        out, stream = here / "imported.yaml", io.StringIO()
        out.unlink(missing_ok=True)
        import_recipe(source, out, Console(file=stream, width=160, highlight=False))
        text = out.read_text(encoding="utf-8")
        # lists are wrapped: words are looked for as if they were not
        return load(out, Recipe).value, " ".join(text.replace("\n#  ", " ").split()), stream.getvalue()

    return run


@pytest.fixture
def collected(here: Path) -> Path:
    """Two shards of four images, which img2dataset has scaled from 1600x1200 to 1024x1024 with bars."""
    folder = here / "laion-art"
    folder.mkdir()
    for shard in ("00000", "00001"):
        rows = [_row(f"{shard}{number:04}") for number in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
        status = {"success": 4, "HTTP Error 404: Not Found": 3, "<html>\x1b[2J": 1}
        counts = {"count": 8, "successes": 4, "failed_to_download": 4, "failed_to_resize": 0, "status_dict": status}
        (folder / f"{shard}_stats.json").write_text(json.dumps(counts), encoding="utf-8")
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for row in rows:
                _add(archive, f"{row['key']}.jpg", _image())
                _add(archive, f"{row['key']}.txt", str(row["caption"]).encode())
                _add(archive, f"{row['key']}.json", json.dumps(row).encode())
    return folder


def _row(key: str) -> dict[str, object]:
    return {
        "key": key, "url": f"https://example.org/{key}.jpg", "caption": f"image {key}", "status": "success",
        "error_message": None, "width": 1024, "height": 1024, "original_width": 1600, "original_height": 1200,
        "exif": "{}", "sha256": "0" * 64, "punsafe": 0.01, "stream_id": 7,
    }  # fmt: skip


def _image() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1024, 1024), "white").save(stream, "JPEG", quality=30)
    return stream.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
