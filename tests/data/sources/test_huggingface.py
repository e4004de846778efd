"""Folders as the hub and `save_to_disk` lay them out; nothing in them is executed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from terminus.data.record import Candidate
from terminus.data.sources.huggingface import HuggingfaceSource
from terminus.errors import UserError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def source(folder: object, **settings: object) -> HuggingfaceSource:
    return HuggingfaceSource.model_validate({"kind": "huggingface", "name": "h", "path": str(folder)} | settings)


def read(path: object, **settings: object) -> dict[str, Candidate]:
    found = list(source(path, **settings).candidates(0))
    assert len({one.source_id for one in found}) == len(found)
    return {one.source_id: one for one in found}


def table(*rows: tuple[bytes | None, str | None], path: str = "/etc/passwd") -> pa.Table:
    images = [{"bytes": data, "path": path} for data, _ in rows]
    return pa.table({"image": pa.array(images, IMAGE), "text": [text for _, text in rows]})


def parquet(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)


def arrow(path: Path, content: pa.Table, rows: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, rows)


def test_a_clone_of_a_hub_repository(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", table((b"A", "a"), (b"B", None)))
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", table((b"C", "c"), (None, "only a path")))
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table((b"T", "t")))
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\nlicense: wrong\n")
    marker = tmp_path / "marker"
    (tmp_path / "dataset.py").write_text(f"open({str(marker)!r}, 'w')")
    found = read(tmp_path)
    assert [(one.data, [c.text for c in one.captions]) for one in found.values()] == [
        (b"A", ["a"]), (b"B", []), (b"C", ["c"]), (None, []),
    ]  # fmt: skip
    assert list(found)[::3] == ["data/train-00000-of-00002.parquet#0", "data/train-00001-of-00002.parquet#1"]
    problem = found["data/train-00001-of-00002.parquet#1"].problem
    assert problem is not None
    assert problem.reason == "row names no image"
    assert {one.licence for one in found.values()} == {"cc-by-4.0"}
    assert [one.data for one in read(tmp_path, split="test").values()] == [b"T"]
    assert len(read(tmp_path, split=None)) == 5
    assert source(tmp_path).count() == 4
    assert not marker.exists()


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    rows = [(bytes([65 + i]), f"caption {i}") for i in range(70)]
    arrow(tmp_path / "train" / "data-00000-of-00001.arrow", table(*rows), rows=50)
    arrow(tmp_path / "test" / "data-00000-of-00001.arrow", table((b"T", "t")))
    found = read(tmp_path)
    assert [one.data for one in found.values()] == [data for data, _ in rows]
    assert list(found)[69] == "train/data-00000-of-00001.arrow#69"


def test_a_cut_file_gives_what_is_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "data-00000-of-00001.arrow"
    arrow(path, table(*[(b"x" * 1000, f"caption {i}") for i in range(60)]), rows=20)
    whole = path.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:length])
        *good, last = read(tmp_path).values()
        assert len(good) % 20 == 0
        assert all(one.problem is None for one in good)
        assert last.problem is not None
        assert last.problem.reason == "table cannot be read"


def test_links_instead_of_images_and_columns_of_other_names(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", pa.table({"photo": ["https://example.com/1.jpg"], "words": [["one", "two"]]}))
    with pytest.raises(UserError, match=r"there is no column for image or url, caption"):
        source(tmp_path).count()
    (one,) = read(tmp_path, columns={"image": "photo", "caption": "words"}).values()
    assert (one.url, [caption.text for caption in one.captions]) == ("https://example.com/1.jpg", ["one", "two"])


def test_a_later_file_without_the_columns_is_a_reason(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", table((b"A", "a")))
    parquet(tmp_path / "b.parquet", pa.table({"other": [1]}))
    found = list(read(tmp_path).values())
    assert found[1].problem is not None
    assert found[1].problem.reason == "table cannot be read"


def test_a_repository_of_a_loading_script_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loader.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match="Loading scripts are never executed"):
        source(tmp_path).count()


def test_images_beside_a_metadata_file_are_sent_to_the_folder_source(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    with pytest.raises(UserError, match=rf"but train/metadata.jsonl.*\{{kind: folder, name: h, path: {tmp_path}\}}"):
        source(tmp_path).count()


def test_a_split_that_is_missing_lists_what_there_is(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "test-0.parquet", table((b"A", "a")))
    with pytest.raises(UserError, match=r"no files of the split 'train' here.*data/test-0.parquet"):
        source(tmp_path).count()


@pytest.mark.parametrize(
    "settings",
    [
        {"repo": "a/b", "path": None},
        {"repo": "a/b", "path": None, "revision": "main"},
        {"repo": "../b/c", "path": None, "revision": "0" * 40},
        {"repo": "..", "path": None, "revision": "0" * 40},
        {"repo": "a/b", "revision": "0" * 40},
        {"path": None},
        {"trust_remote_code": True},
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        source(tmp_path, **settings)


def test_a_hub_id_without_a_network_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"owner/name@0{40}: this data set cannot be fetched"):
        source(tmp_path, path=None, repo="owner/name", revision="0" * 40).count()
