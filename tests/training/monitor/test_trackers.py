"""Trackers beside a run: the real ones where they are installed, and whatever they do to themselves."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from PIL import Image

from terminus.training.monitor import trackers
from terminus.training.monitor.journal import LogRow
from terminus.training.monitor.trackers import PYTHON, Trackers

WANDB = pytest.mark.skipif(
    not (os.environ.get(PYTHON) or importlib.util.find_spec("wandb")), reason="wandb is not installed"
)
SECRET = "do-not-send-this"


def row(step: int, loss: float = 0.5) -> LogRow:
    bands = {"000-099": loss, "900-999": float("nan")}
    validation = {"all": loss, "000-099": loss} if step == 3 else None
    return LogRow(step, 8 * step, 0, loss, loss, 1e-4, float("inf") if step == 2 else 0.3, bands, 0.1, 80.0, validation)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A package of the name `wandb` whose code is this: what a broken installation or service does."""
    (folder / "wandb.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv(PYTHON, sys.executable)


@WANDB
def test_wandb_offline_gets_every_row_and_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "preview.png")
    with Trackers(tmp_path, ("wandb",), "nano", {"training": {"seed": 7}}) as all_of_them:
        for step in (1, 2, 3):
            all_of_them.row(row(step))
        all_of_them.image(tmp_path / "preview.png", 3)
    first = json.loads((tmp_path / "trackers.json").read_text())
    with Trackers(tmp_path, ("wandb",), "nano", {"training": {"seed": 7}}) as all_of_them:
        all_of_them.row(row(4))
    assert caplog.messages == []
    assert json.loads((tmp_path / "trackers.json").read_text()) == first
    runs = sorted((tmp_path / "trackers" / "wandb").glob("wandb/offline-run-*"))
    assert len(runs) == 2
    assert all(path.name.endswith(f"-{first['wandb']}") for path in runs)
    written = b"".join(path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file())
    assert b"gradient_norm" in written
    assert b"seed" in written
    assert SECRET.encode() not in written
    assert len(list(runs[0].rglob("media/images/*.png"))) == 1


def test_the_start_is_a_point_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Trackers(tmp_path, (), "nano", {}) as all_of_them:
        told: list[object] = []
        monkeypatch.setattr(all_of_them, "_tell", told.append)
        all_of_them.row(row(1), {"all": 0.75, "900-999": float("nan")})
        all_of_them.row(row(2))
    assert told[0] == {"step": 0, "values": {"images_seen": 0, "validation/all": 0.75}}
    assert [one["step"] for one in told] == [0, 1, 2]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType, reportUnknownVariableType]


def test_no_trackers_are_no_work(tmp_path: Path):
    with Trackers(tmp_path, (), "nano", {}) as none:
        none.row(row(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('no such thing')", "no such thing"),
        ("import os; os.write(2, b'bad \\x1b[2J bytes\\n'); os.abort()", "bad ?[2J bytes"),
        ("import sys; sys.exit(3)", "see "),
    ],
    ids=["raises", "aborts", "exits"],
)
def test_a_tracker_that_fails_is_given_up_with_one_warning(code, said, tmp_path: Path, monkeypatch, caplog):
    stand_in(tmp_path, monkeypatch, code)
    with caplog.at_level(logging.WARNING), Trackers(tmp_path, ("wandb",), "nano", {}) as all_of_them:
        process = all_of_them._all[0]._process
        assert process is not None
        process.wait(20)
        for step in range(1, 50):
            all_of_them.row(row(step))
    assert len(caplog.messages) == 1
    assert "wandb is given up" in caplog.text
    assert said in caplog.text


def unread(process: subprocess.Popen[bytes]) -> int:
    """Bytes that wait in the pipe."""
    assert process.stdin is not None
    return int.from_bytes(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)), "little")


def test_a_tracker_that_hangs_holds_up_nothing(tmp_path: Path, monkeypatch, caplog):
    """Its process reads on though the tracker never answers; the end of the run does not wait for it for ever."""
    stand_in(tmp_path, monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    all_of_them = Trackers(tmp_path, ("wandb",), "nano", {})
    process = all_of_them._all[0]._process
    assert process is not None
    started = time.monotonic()
    for step in range(1, 3_001):  # a megabyte, and a pipe holds 64 kB
        all_of_them.row(row(step))
        while unread(process) > 16_000 and time.monotonic() - started < 60:  # it may still be starting
            time.sleep(0.005)
    assert caplog.messages == []
    closing = time.monotonic()
    all_of_them.close()
    assert time.monotonic() - closing < 10
    assert "still sending" in caplog.text
    process.kill()
    process.wait()


def test_a_process_that_stands_still_is_given_up(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv(PYTHON, "/bin/sleep")
    with Trackers(tmp_path, ("wandb",), "nano", {}) as all_of_them:
        if process := all_of_them._all[0]._process:  # or it ended before it was greeted
            process.wait(10)  # /bin/sleep knows no such arguments
        all_of_them.row(row(1))
    assert caplog.text.count("given up") == 1


def test_a_python_that_is_not_there_is_one_warning(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv(PYTHON, str(tmp_path / "nowhere" / "python"))
    with Trackers(tmp_path, ("wandb",), "nano", {}) as all_of_them:
        all_of_them.row(row(1))
    assert [message.split()[0] for message in caplog.messages] == ["wandb"]
