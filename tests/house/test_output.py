"""Output that cannot be written, and what the machine refuses: exit 2 and one paragraph, from every verb."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from terminus import cli, cli_config

FULL = Path("/dev/full")
VERBS = [
    *(("--version", kept) for kept in ("", "1")), *(("--help", kept) for kept in ("", "1")), ("train --help", ""),
    ("config schema", ""), ("inspect nano --json", ""),
]  # fmt: skip
"""With `PYTHONUNBUFFERED`, where it is the printing that fails and not the flush at the end."""
needs_full = pytest.mark.skipif(not FULL.exists(), reason="a system without /dev/full")


def ended(command: str, out: Path | None, err: Path | None = None, **environment: str) -> tuple[int, str]:
    """Exit code and what stood on stderr, with these files for stdout and stderr."""
    with open(out or os.devnull, "wb") as stdout, open(err or os.devnull, "wb") as stderr:
        result = subprocess.run(
            [sys.executable, "-m", "terminus", *command.split()],
            stdout=stdout, stderr=stderr if err else subprocess.PIPE, env={**os.environ, **environment},
            text=True, check=False, timeout=250,
        )  # fmt: skip
    return result.returncode, result.stderr or ""


@needs_full
@pytest.mark.parametrize(("command", "unbuffered"), VERBS)
def test_a_full_disk_is_no_defect(command: str, unbuffered: str):
    code, said = ended(command, FULL, PYTHONUNBUFFERED=unbuffered)
    assert code == 2
    assert said.count("error: The ") == 1
    assert "No space left on device" in said.splitlines()[-1], "no complaint of Python's at its end"
    assert "Exception ignored" not in said


@needs_full
@pytest.mark.parametrize(("command", "code"), [("--version", 0), ("config show nanoo", 2), ("trian", 2)])
def test_a_complaint_that_cannot_be_written_keeps_its_code(command: str, code: int):
    assert ended(command, None, FULL)[0] == code
    assert ended(command, FULL, FULL)[0] == 2


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli_config, "load_recipe", fail)
    return cli.main(["config", "show", "nano"])


@pytest.mark.parametrize("number", [
    errno.EACCES, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENOTDIR, errno.EISDIR,
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.txt", None, "x" * 5000])
def test_what_the_machine_refuses_is_no_defect(number: int, name: str | None, monkeypatch, capfd):
    error = OSError(number, os.strerror(number), name) if name else OSError(number, os.strerror(number))
    assert fails_with(error, monkeypatch) == 2
    said = capfd.readouterr().err
    assert os.strerror(number) in said
    assert len(said) < 600
    assert "defect" not in said


def test_a_file_of_ours_that_is_missing_is_a_defect(monkeypatch, capfd):
    assert fails_with(FileNotFoundError(errno.ENOENT, "No such file or directory", "ours"), monkeypatch) == 1
    assert "Internal error (a bug in Terminus" in capfd.readouterr().err


def test_a_name_that_no_file_can_have_is_input(capfd):
    assert cli.main(["card", "x" * 5000]) == 2
    assert cli.main(["config", "show", "x" * 5000]) == 2
    assert "defect" not in capfd.readouterr().err
