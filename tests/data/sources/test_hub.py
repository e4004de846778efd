"""Data sets and models that are fetched by their id, from a hub on loopback."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terminus.data.sources.huggingface import HuggingfaceSource
from terminus.errors import UserError
from terminus.model.weights import resolve
from tests.data.hub import CHUNK, COMMIT, Hub, hub

SHARDS = [f"data/train-0000{number}-of-00002.parquet" for number in range(2)]


def parquet(*rows: tuple[bytes, str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [data for data, _ in rows], "text": [text for _, text in rows]}), file)
    return file.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        "README.md": b"---\nlicense: cc0-1.0\n---\n", "loader.py": b"raise SystemExit",
        SHARDS[0]: parquet((b"A", "a"), (b"B", "b")), SHARDS[1]: parquet((b"C" * 5000, "c")),
    }  # fmt: skip
    with hub(files, monkeypatch, str(tmp_path / "home")) as running:
        yield running


def source(revision: str = COMMIT) -> HuggingfaceSource:
    return HuggingfaceSource(kind="huggingface", name="h", repo="owner/name", revision=revision)


def test_a_data_set_by_id_is_fetched_once_at_its_commit(server: Hub, tmp_path: Path):
    found = list(source().candidates(0))
    assert [(one.data, one.captions[0].text, one.licence) for one in found] == [
        (b"A", "a", "cc0-1.0"), (b"B", "b", "cc0-1.0"), (b"C" * 5000, "c", "cc0-1.0"),
    ]  # fmt: skip
    assert [one.source_id for one in found] == [f"{SHARDS[0]}#0", f"{SHARDS[0]}#1", f"{SHARDS[1]}#0"]
    assert not any("loader.py" in line for line in server.asked), "code is not even fetched"
    assert all(COMMIT in line for line in server.asked if "owner/name" in line), "nothing but this commit"
    [folder] = (tmp_path / "home" / "terminus" / "owner--name").iterdir()
    assert folder.name == COMMIT
    asked = len(server.asked)
    assert list(source().candidates(0)) == found
    assert len(server.asked) == asked, "what is there needs no network"


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Hub):
    server.break_after = 2 * CHUNK + 10
    assert len(list(source().candidates(0))) == 3
    assert len([line for line in server.asked if line.endswith(f"bytes={2 * CHUNK}-")]) == 1
    assert len([line for line in server.asked if line.startswith("GET /large/")]) == 3


def test_other_bytes_than_the_commit_has_are_refused_and_fetched_again(server: Hub):
    server.spoiled.add(SHARDS[1])
    with pytest.raises(UserError, match=rf"what arrived as {SHARDS[1]} is not what the hub lists.*deleted"):
        source().count()
    server.spoiled.clear()
    server.asked.clear()
    assert len(list(source().candidates(0))) == 3
    assert [line for line in server.asked if line.startswith("GET /large/")] == [f"GET /large/{SHARDS[1]}"]


def test_a_commit_that_is_not_there_and_a_hub_that_goes_away_are_one_paragraph(server: Hub):
    with pytest.raises(UserError, match="this data set cannot be fetched"):
        source("f" * 40).count()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="this data set cannot be fetched"):
        source().count()


def test_a_repository_of_images_says_how_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"train/metadata.csv": b"file_name,text\na.png,a\n", "train/a.png": b"image"}
    with hub(files, monkeypatch, str(tmp_path / "home")) as server:
        fetch = rf"hf download owner/name --repo-type dataset --revision {COMMIT} --local-dir FOLDER"
        with pytest.raises(UserError, match=rf"but train/metadata.csv.*{fetch}`, and write `\{{kind: folder, name: h"):
            source().count()
        assert not any("a.png" in line for line in server.asked)


def test_a_model_by_id_is_a_folder_of_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {"model_index.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"x" * 3000, "run.py": b"raise"}
    with hub(files, monkeypatch, str(tmp_path / "home")) as server:
        folder = resolve("owner/name")
        assert folder.name == COMMIT
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
            "model_index.json", "unet/diffusion_pytorch_model.safetensors",
        }  # fmt: skip
        assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == b"x" * 3000
        assert "GET /api/models/owner/name/revision/main" in server.asked
