"""Places that cannot be read or written: one paragraph each, exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from terminus.cli import main
from terminus.model.components import load_components, save_components

LONG = "x" * 300


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("nano", f"{LONG}-vpred.safetensors", "File name too long"),
        ("nano", LONG, "File name too long"),
        ("nano", "a-file/x-vpred.safetensors", "cannot be written"),
        ("nano", "a-file/x", "cannot be written"),
        ("nano", "/proc/x-vpred.safetensors", "cannot be written"),
        ("nano", "~nobody-of-this-name/x", "not known"),
        ("~nobody-of-this-name/x", "x", "not known"),
        (LONG, "x", "File name too long"),
        ("a-file/b/x", "x", "No model is here"),
    ],
)
def test_places_that_are_none(
    tmp_path: Path, source: str, target: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    assert main(["convert", source, target]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.splitlines()[-1].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_inspection_and_correction_of_such_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["inspect", "~nobody-of-this-name/x"],
        ["inspect", LONG],
        ["inspect", LONG, "--fix", "x"],
        ["inspect", "nano", "--fix", LONG, "--as", "v"],
        ["inspect", "nano", "--fix", "~nobody-of-this-name/x", "--as", "v"],
        ["inspect", "nano", "--fix", "/proc/x", "--as", "v"],
    ):
        assert main(arguments) == 2
        assert "error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_may_not_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Root may look at everything, so the system's answer is given here."""

    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert main(["convert", "secret/model.safetensors", str(tmp_path / "x")]) == 2
    assert "cannot be read (Permission denied)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_a_part_that_may_not_be_looked_at(
    tmp_path: Path, random_nano: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    real = Path.is_file

    def refuse(self: Path) -> bool:
        if self.suffix == ".safetensors" and self.parent.name == name:
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert main(["convert", str(random_nano), str(tmp_path / "x")]) == 2
    assert "Permission denied" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_is_published(random_nano: Path, tmp_path: Path):
    """The umask decides, as for every other file; the safetensors library would let the owner alone read."""
    before = os.umask(0o022)
    try:
        save_components(load_components(random_nano), tmp_path / "saved")
        assert main(["convert", str(random_nano), str(tmp_path / "converted")]) == 0
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
