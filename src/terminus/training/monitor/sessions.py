"""Sessions of a run: how often it was begun, what each interruption cost, and how much of its time was of use.

`sessions.jsonl` gets one row whenever the run is begun or continued. When an interrupted session ended, and how many
steps it took with it, is read from the log that it left behind: the log's last write, and its rows after the
checkpoint. So a session that was killed counts like one that was stopped.

A row that cannot be read costs the account, which is then not made, and never the run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import cast

from terminus.training.monitor.journal import read_journal
from terminus.training.saving.atomic_files import write_whole

log = logging.getLogger("terminus")


@dataclass(frozen=True)
class Session:
    """One start of a run. Times are seconds since 1970, UTC."""

    started: float
    step: int
    """Step of the checkpoint that it continued."""
    lost_steps: int
    """Steps that the session before had made beyond it."""
    ended_before: float | None
    """When the session before wrote its last row; None for the first."""
    data: dict[str, object] | None = None
    """What `data.json` holds, which is repaired from here; None before this was recorded."""
    recipe: str | None = None
    """Digest of the settings that must not change: shows that a recipe is the one whose `recipe.yaml` was lost."""
    gap: bool = False
    """Rows before this one could not be read."""


@dataclass(frozen=True)
class Goodput:
    """The share of a run's time that was of use, over all of its sessions."""

    sessions: int
    lost_steps: int
    wall_seconds: float
    """Time for which a process was there, over all sessions."""
    share: float
    """Share of it spent in steps that are part of the model."""


def begin_session(
    folder: Path, started: float, step: int, data: Mapping[str, object] | None = None, recipe: str | None = None
) -> None:
    """Adds the row of a session that continues at `step`; call it before the log is cut back."""
    file, journal = folder / "sessions.jsonl", folder / "log.jsonl"
    before, gap = _read(file)
    if gap or any(one.gap for one in before):
        log.warning("%s was damaged: what interruptions cost is no longer known; the run is as it was", file)
    # A session that did not reach its first row left no trace of its end but its beginning.
    ended = before[-1].started if before else None
    if journal.is_file():
        ended = max(journal.stat().st_mtime, ended or 0.0)
    # What the log has beyond the checkpoint is lost with the session that made it.
    last = max((cast(int, row["step"]) for row in read_journal(journal)), default=step)
    session = Session(started, step, max(0, last - step), ended, dict(data) if data else None, recipe, gap)
    write_whole(file, "".join(json.dumps(asdict(one)) + "\n" for one in [*before, session]))


def read_sessions(folder: Path) -> list[Session]:
    """All sessions of a run that can be read, oldest first; none for a run of before there were any."""
    return _read(folder / "sessions.jsonl")[0]


def _read(file: Path) -> tuple[list[Session], bool]:
    """The sessions, and whether what follows the last of them is damaged."""
    found: list[Session] = []
    gap = False
    # What cannot be read marks the next row that can.
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        session = _session(line)
        if session is None:
            gap = True
        else:
            found.append(replace(session, gap=session.gap or gap))
            gap = False
    return found, gap


def _session(line: bytes) -> Session | None:
    try:
        row = {key: value for key, value in json.loads(line).items() if key in _FIELDS}
        numbers = (row["started"], row["step"], row["lost_steps"], row["ended_before"] or 0.0)
        if not all(isinstance(number, int | float) for number in numbers):
            return None
        return Session(**row)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


_FIELDS = frozenset(field.name for field in fields(Session))


def goodput(folder: Path, useful_seconds: float, now: float | None = None) -> Goodput | None:
    """The account of a run that is ending now; None if not all of its sessions are known, from its beginning on."""
    sessions, gap = _read(folder / "sessions.jsonl")
    known = not gap and not any(one.gap for one in sessions)
    if not sessions or sessions[0].step > 0 or not known:
        return None
    # Each session ended when the next one found it to have; the last one ends now.
    ends = [one.ended_before or one.started for one in sessions[1:]]
    ends.append(time.time() if now is None else now)
    wall = sum(max(0.0, end - one.started) for one, end in zip(sessions, ends, strict=True))
    lost = sum(one.lost_steps for one in sessions)
    share = min(1.0, useful_seconds / wall) if wall else 0.0
    return Goodput(len(sessions), lost, wall, share)
