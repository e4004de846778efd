"""Shards as WebDataset and img2dataset write them, sound and damaged, local and in an object store."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from terminus.data.prepare import prepare
from terminus.data.record import Candidate
from terminus.data.settings import DataConfig
from terminus.data.sources.webdataset import WebdatasetSource
from terminus.data.store import Store
from terminus.errors import UserError


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as writer:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return path


def source(path: object, **settings: object) -> WebdatasetSource:
    return WebdatasetSource.model_validate({"kind": "webdataset", "name": "w", "path": str(path)} | settings)


def read(path: object, **settings: object) -> dict[str, Candidate]:
    found = list(source(path, **settings).candidates(0))
    assert len({one.source_id for one in found}) == len(found)
    return {one.source_id: one for one in found}


def reasons(found: dict[str, Candidate]) -> dict[str, str | None]:
    return {name: one.problem.reason if one.problem else None for name, one in found.items()}


def texts(one: Candidate) -> list[str]:
    return [caption.text for caption in one.captions]


def test_what_img2dataset_writes(tmp_path: Path) -> None:
    facts = {
        "url": "https://example.com/x.jpg", "key": "000000000", "status": "success", "error_message": None,
        "caption": "a cat", "width": 256, "height": 256, "original_width": 800, "original_height": 600,
        "sha256": "0" * 64, "similarity": 0.31, "punsafe": 0.01, "pwatermark": None, "AESTHETIC_SCORE": 6.5,
        "exif": "{}", "LICENSE": "?",
    }  # fmt: skip
    members = [("0.jpg", b"J"), ("0.txt", b"a cat"), ("0.json", json.dumps(facts).encode()), ("0.mask.png", b"M")]
    shard(tmp_path / "00000.tar", *members)
    (tmp_path / "00000.parquet").write_bytes(b"")
    (tmp_path / "00000_stats.json").write_text("{}")
    (one,) = read(tmp_path).values()
    assert (one.source_id, one.data, one.mask, texts(one)) == ("00000.tar/0", b"J", b"M", ["a cat"])
    assert (one.metadata.similarity, one.metadata.unsafe, one.metadata.watermark, one.metadata.aesthetic) == (
        0.31,
        0.01,
        None,
        6.5,
    )
    assert (one.url, one.remote) == ("https://example.com/x.jpg", False)
    assert one.checksum is None
    assert one.licence is None


def test_captions_of_both_files_count_and_the_recipe_may_name_the_key(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar", ("0.png", b"P"), ("0.txt", b"\xef\xbb\xbfshort\n"), ("0.json", b'{"long": "words"}')
    )
    assert texts(read(path)["a.tar/0"]) == ["short"]
    assert texts(read(path, columns={"caption": "long"})["a.tar/0"]) == ["short", "words"]


def test_what_is_wrong_with_a_sample_has_a_reason(tmp_path: Path) -> None:
    bad = [
        ("0.txt", b"no image"), ("1.jpg", b"J"), ("1.txt", b"\xff\xfe"), ("2.jpg", b"J"), ("2.json", b"{"),
        ("3.jpg", b"J"), ("3.json", b"[" * 60_000), ("4.jpg", b"J"), ("4.png", b"P"), ("5.jpg", b"J"),
        ("5.txt", b"x" * 65537), ("6.jpg", b"J"), ("6.json", b'{"caption": 5, "punsafe": 7}'), ("7.pkl", b"cos"),
        ("8.jpg", b"J"), ("8.txt", b"fine"), ("0.jpg", b"late"),
    ]  # fmt: skip
    expected = [
        "sample without an image", "caption cannot be read", "caption cannot be read", "caption cannot be read",
        "several images in a sample", "file too large", "value of the wrong type", "sample without an image", None,
    ]  # fmt: skip
    found = reasons(read(shard(tmp_path / "a.tar", *bad)))
    assert list(found.values()) == [*expected, "two samples have this key"]
    chosen = read(tmp_path / "a.tar", image="png")
    assert chosen["a.tar/4"].data == b"P"


def test_a_damaged_shard_costs_only_what_is_behind_the_damage(tmp_path: Path) -> None:
    whole = shard(tmp_path / "0.tar", *[(f"{i}.{end}", b"x" * 600) for i in range(4) for end in ("jpg", "txt")])
    (tmp_path / "1.tar").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "2.tar").write_bytes(b"<html>not an archive</html>")
    shard(tmp_path / "3.tar", ("z.jpg", b"J"), ("z.txt", b"last"))
    found = reasons(read(tmp_path))
    cut = "truncated archive"
    assert found == {
        "0.tar/0": None, "0.tar/1": None, "0.tar/2": None, "0.tar/3": None,
        "1.tar/0": None, "1.tar/1": cut, "1.tar": cut, "2.tar": cut, "3.tar/z": None,
    }  # fmt: skip
    assert source(tmp_path).count() == 16


def test_patterns_and_ids_that_do_not_move_with_the_folder(tmp_path: Path) -> None:
    for name in ("en/00.tar", "en/01.tar", "de/01.tar", "de/02.tar"):
        shard(tmp_path / "one" / name, ("0.jpg", b"J"), ("0.txt", b"t"))
    found = reasons(read(tmp_path / "one" / "{en,de}" / "{00..02}.tar"))
    assert list(found) == ["en/00.tar/0", "en/01.tar/0", "en/02.tar", "de/00.tar", "de/01.tar/0", "de/02.tar/0"]
    assert found["en/02.tar"] == found["de/00.tar"] == "archive cannot be read"
    before = {name for name, reason in found.items() if reason is None}
    (tmp_path / "one").rename(tmp_path / "two")
    assert set(read(tmp_path / "two")) == before


@pytest.mark.parametrize("path", ["x/{0..999999999}.tar", "x/{5..4}.tar", "x/{0..99999}{0..99999}.tar"])
def test_patterns_are_bounded(path: str) -> None:
    with pytest.raises(UserError, match="this names"):
        source(path).count()


@pytest.mark.parametrize("path", ["pipe:touch {marker}|", "pipe:touch {marker}", "{folder}"])
def test_a_path_is_never_a_command(path: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(UserError, match=r"there is nothing under this name|there are no archives here"):
        source(path.format(marker=marker, folder=tmp_path)).count()
    assert not marker.exists()


def test_from_a_bucket_into_a_store(bucket: Path, config: Callable[..., DataConfig], tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    for index in range(3):
        file = io.BytesIO()
        Image.new("RGB", (80, 80), (80 * index, 10, 200)).save(file, "PNG")
        members += [(f"{index}.png", file.getvalue()), (f"{index}.txt", f"colour {index}".encode())]
    shard(bucket / "set" / "0.tar", *members[:4])
    (bucket / "set" / "1.tar").write_bytes(shard(tmp_path / "x.tar", *members[4:]).read_bytes()[:-9216])
    data = config(tmp_path, sources=(source(f"s3://{bucket.name}/set"),), validation_fraction=0.5)
    first = prepare(data, None)
    assert (first.added, first.dropped) == (2, {"truncated archive": 2})
    shard(bucket / "set" / "1.tar", *members[4:])
    second = prepare(data, None)
    assert (second.added, second.kept, second.dropped) == (1, 3, {})
    stored = Store(data.store).images.required().scan(["source_id", "captions", "data"]).to_pylist()
    assert [row["data"] for row in stored] == [data for name, data in members if name.endswith("png")]
    assert [row["source_id"] for row in stored] == ["0.tar/0", "0.tar/1", "1.tar/2"]
