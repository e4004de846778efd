"""What interruptions cost is counted from what they leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from terminus.training.monitor.sessions import begin_session, goodput, read_sessions


def log(folder: Path, steps: int, at: float) -> None:
    (folder / "log.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, steps + 1)))
    os.utime(folder / "log.jsonl", (at, at))


def test_a_killed_and_a_stopped_session(tmp_path: Path):
    begin_session(tmp_path, 1000.0, step=0)
    log(tmp_path, 12, at=1100.0)  # killed after 12 steps, saved at 10
    begin_session(tmp_path, 5000.0, step=10)
    log(tmp_path, 30, at=5200.0)  # stopped at 30, everything saved
    begin_session(tmp_path, 9000.0, step=30)
    account = goodput(tmp_path, useful_seconds=280.0, now=9100.0)
    assert account is not None
    assert (account.sessions, account.lost_steps, account.wall_seconds) == (3, 2, 400.0)
    assert account.share == pytest.approx(0.7)


def test_a_session_that_ended_before_its_first_row(tmp_path: Path):
    begin_session(tmp_path, 1000.0, step=0)
    begin_session(tmp_path, 2000.0, step=0)
    log(tmp_path, 4, at=2100.0)
    begin_session(tmp_path, 3000.0, step=4)
    begin_session(tmp_path, 4000.0, step=4)
    account = goodput(tmp_path, useful_seconds=50.0, now=4100.0)
    assert account is not None
    assert account.wall_seconds == 200.0
    assert account.lost_steps == 0


def test_a_run_of_before_there_were_sessions_says_nothing(tmp_path: Path):
    assert goodput(tmp_path, 1.0) is None
    log(tmp_path, 4, at=1.0)
    begin_session(tmp_path, 1000.0, step=4)
    assert goodput(tmp_path, 1.0) is None


@pytest.mark.parametrize("damage", ["cut", "emptied", "zeros", "another object", "gone", "first line"])
def test_a_damaged_account_is_no_account_and_ends_no_run(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    begin_session(tmp_path, 1000.0, step=0)
    begin_session(tmp_path, 2000.0, step=10)
    file = tmp_path / "sessions.jsonl"
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[: len(content) - 20])
        case "emptied":
            file.write_bytes(b"")
        case "zeros":
            file.write_bytes(bytes(len(content)))
        case "another object":
            file.write_bytes(content + b"[1]\n")
        case "gone":
            file.unlink()
        case _:
            file.write_bytes(b"?" + content)
    begin_session(tmp_path, 3000.0, step=20)
    begin_session(tmp_path, 4000.0, step=30)
    assert [one.started for one in read_sessions(tmp_path)][-2:] == [3000.0, 4000.0]
    assert goodput(tmp_path, useful_seconds=1.0, now=5000.0) is None
    assert ("was damaged" in caplog.text) == (damage not in ("emptied", "gone"))


def test_rows_of_a_newer_version_are_read(tmp_path: Path):
    begin_session(tmp_path, 1000.0, step=0)
    file = tmp_path / "sessions.jsonl"
    file.write_text(file.read_text().replace("{", '{"host": "a", ', 1))
    assert [one.started for one in read_sessions(tmp_path)] == [1000.0]
