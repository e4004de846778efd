"""Folders: what lies beside an image is read like the image, and nothing vanishes without a reason."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from terminus.data.prepare import prepare
from terminus.data.record import Candidate
from terminus.data.sources.folder import FolderSource
from terminus.data.store import Store
from terminus.errors import UserError

from ..conftest import noise, save
from ..test_curate import settings


def source(folder: Path) -> FolderSource:
    return FolderSource(kind="folder", name="f", path=folder)


def offered(folder: Path) -> dict[str, Candidate]:
    return {one.source_id: one for one in source(folder).candidates(0)}


def problem(candidate: Candidate) -> tuple[str, str] | None:
    return candidate.problem and (candidate.problem.reason, candidate.problem.detail)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "images" / "a.png", Image.fromarray(noise(1, 80, 80)), None)
    (tmp_path / "secret.txt").write_text("the password")
    (tmp_path / "secret.json").write_text('{"caption": "the password"}')
    (tmp_path / "secret.csv").write_text("file_name,text\na.png,the password\n")
    return tmp_path / "images"


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_a_caption_file_that_is_a_link_out_of_the_folder_is_not_read(folder: Path, ending: str):
    (folder / f"a.{ending}").symlink_to(folder.parent / f"secret.{ending}")
    found = offered(folder)["a.png"]
    assert problem(found) == (
        "caption cannot be read", f"a.{ending}: link out of the folder ({folder.parent}/secret.{ending})"
    )  # fmt: skip
    assert "password" not in repr(found)


def test_nor_is_a_link_through_a_folder_above(folder: Path):
    """What is asked is where the file lies, not what it is called."""
    (folder.parent / "elsewhere").mkdir()
    save(folder.parent / "elsewhere" / "b.png", Image.fromarray(noise(2, 80, 80)), "the password")
    (folder / "a.txt").symlink_to("../elsewhere/b.txt")
    assert problem(offered(folder)["a.png"]) is not None


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_outside_the_folder_is_refused(folder: Path, name: str):
    (folder / name).symlink_to(folder.parent / "secret.csv")
    with pytest.raises(UserError, match=rf"{name}: this link leads out of the folder.*Only what lies in"):
        offered(folder)


def test_links_within_the_folder_are_read(folder: Path):
    (folder / "words").mkdir()
    (folder / "words" / "text.md").write_text("a pattern")
    (folder / "a.txt").symlink_to("words/text.md")
    assert [one.text for one in offered(folder)["a.png"].captions] == ["a pattern"]


@pytest.mark.parametrize("kind", ["FIFO", "folder", "loop", "dangling", "large"])
def test_caption_files_that_are_none_never_hold_anything_up(folder: Path, kind: str):
    sidecar = folder / "a.txt"
    match kind:
        case "FIFO":
            os.mkfifo(sidecar)
        case "folder":
            sidecar.mkdir()
        case "loop":
            sidecar.symlink_to("a.txt")
        case "dangling":
            sidecar.symlink_to("gone.txt")
        case _:
            sidecar.write_text("x" * 65537)
    found = problem(offered(folder)["a.png"])
    assert found is not None
    assert found[0] == "caption cannot be read"


WORDS = {
    "nul\0 in it": ["nul in it"],
    "\x1b[31mred": ["[31mred"],
    "\u200b\u200d\ufeff \u2060": [],
    "\u00ad": [],
    "a\u200db": ["a\u200db"],
    "a\tb\n c": ["a b c"],
}


@pytest.mark.parametrize("text", WORDS)
@pytest.mark.parametrize("ending", ["txt", "json"])
def test_captions_are_what_can_be_seen(folder: Path, text: str, ending: str):
    content = text if ending == "txt" else json.dumps({"captions": [text]})
    (folder / f"a.{ending}").write_text(content, newline="")
    assert [one.text for one in offered(folder)["a.png"].captions] == WORDS[text]


@pytest.mark.parametrize("content", ['{"caption": "lone \\ud800"}', '{"caption": "a", "licence": "\\udfff"}'])
def test_a_lone_surrogate_costs_its_image_and_not_the_preparation(tmp_path: Path, folder: Path, content: str):
    save(folder / "b.png", Image.fromarray(noise(2, 80, 80)), "good")
    (folder / "a.json").write_text(content)
    (folder / os.fsdecode(b"\xff.txt")).write_bytes(b"\xff")
    save(folder / os.fsdecode(b"\xff.png"), Image.fromarray(noise(3, 80, 80)), None)
    data = settings(tmp_path, source(folder))
    report = prepare(data, None, Console(file=StringIO()))
    assert (report.kept, dict(report.dropped)) == (1, {"caption cannot be read": 2})
    view = Store(data.store).rejected.latest()
    assert view is not None
    assert any("not UTF-8" in row["detail"] for row in view.scan(["detail"]).to_pylist())


@contextmanager
def as_nobody() -> Iterator[None]:
    """File modes mean nothing to root."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def shared() -> Iterator[Path]:
    """Images in two folders, readable by anybody."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for below in ("open", "shut"):
            save(root / below / "a.png", Image.fromarray(noise(1, 80, 80)), "a pattern").chmod(0o644)
            (root / below).chmod(0o755)
        yield root
        (root / "shut").chmod(0o755)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0o000, {"shut/": ("folder cannot be read", "Permission denied")}),
        (0o711, {"shut/": ("folder cannot be read", "Permission denied")}),
        (0o744, {"shut/a.png": ("caption cannot be read", "a.txt: Permission denied")}),
    ],
    ids=["nothing allowed", "no listing", "no entry"],
)
def test_a_folder_that_may_not_be_read_is_a_reason(shared: Path, mode: int, expected: dict[str, object]):
    (shared / "shut").chmod(mode)
    with as_nobody():
        found = offered(shared)
        assert source(shared).count() == 2
    assert {name: problem(one) for name, one in found.items()} == {"open/a.png": None} | expected


@pytest.mark.parametrize("mode", [0o000, 0o711, 0o744])
def test_the_source_itself_may_not_be_read(shared: Path, mode: int):
    (shared / "shut").chmod(mode)
    with as_nobody():
        if mode == 0o744:
            (one,) = offered(shared / "shut").values()
            assert problem(one) == ("caption cannot be read", "a.txt: Permission denied")
            return
        with pytest.raises(UserError, match=r"shut: this folder cannot be read \(Permission denied\)"):
            offered(shared / "shut")


@pytest.mark.parametrize(("name", "metadata"), [("gone", "there is no such folder"), ("a.png", "this is not a folder")])
def test_no_folder(folder: Path, name: str, metadata: str):
    with pytest.raises(UserError, match=metadata):
        offered(folder / name)
