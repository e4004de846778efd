"""How often a run was begun, what each interruption cost, and how much of its time was of use.

`sessions.jsonl` gets one row whenever the run is begun or continued. When an interrupted session ended, and how many
steps it took with it, is read from the log that it left behind: the log's last write, and its rows after the
checkpoint. So a session that was killed counts like one that was stopped.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from terminus.training.disk import write_whole
from terminus.training.journal import read_journal


@dataclass(frozen=True)
class Session:
    """One start of a run. Times are seconds since 1970, UTC."""

    started: float
    step: int
    """Of the checkpoint that it continued."""
    lost_steps: int
    """Steps that the session before had made beyond it."""
    ended_before: float | None
    """When the session before wrote its last row; None for the first."""


@dataclass(frozen=True)
class Goodput:
    """What the sessions say together."""

    sessions: int
    lost_steps: int
    wall_seconds: float
    """Time for which a process was there, over all sessions."""
    share: float
    """Share of it spent in steps that are part of the model."""


def begin_session(folder: Path, started: float, step: int) -> None:
    """Adds the row of a session that continues at `step`; call it before the log is cut back."""
    file, log = folder / "sessions.jsonl", folder / "log.jsonl"
    before = read_sessions(folder)
    # A session that did not reach its first row left no trace of its end.
    ended, last = before[-1].started if before else None, step
    if log.is_file():
        ended = max(log.stat().st_mtime, ended or 0.0)
        last = max((cast(int, row["step"]) for row in read_journal(log)), default=step)
    session = Session(started, step, max(0, last - step), ended)
    write_whole(file, "".join(json.dumps(asdict(one)) + "\n" for one in [*before, session]))


def read_sessions(folder: Path) -> list[Session]:
    """All sessions of a run, oldest first; none for a run of before there were any."""
    file = folder / "sessions.jsonl"
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Session(**row) for row in rows]


def goodput(folder: Path, useful_seconds: float, now: float | None = None) -> Goodput | None:
    """The account of a run that is ending now; None if its sessions were not recorded from its beginning."""
    sessions = read_sessions(folder)
    if not sessions or sessions[0].step > 0:
        return None
    ends = [*(one.ended_before or one.started for one in sessions[1:]), time.time() if now is None else now]
    wall = sum(max(0.0, end - one.started) for one, end in zip(sessions, ends, strict=True))
    lost = sum(one.lost_steps for one in sessions)
    return Goodput(len(sessions), lost, wall, min(1.0, useful_seconds / wall) if wall else 0.0)
