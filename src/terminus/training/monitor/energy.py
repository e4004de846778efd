"""Energy that a run used, measured over all of its sessions: those that were killed, and the steps lost with them.

Each process keeps `energy-RANK.json` in the run's folder: for every session its joules by meter and the seconds that
they cover. A thread reads the counters and writes the file every half minute, so that a kill costs no more than that.
A file that is damaged or cannot be written costs the measurement, and never the run.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from terminus.training.distributed.process_group import World
from terminus.training.monitor.energy_counters import Counters, find_counters
from terminus.training.saving.atomic_files import write_whole

log = logging.getLogger("terminus")

SECONDS_BETWEEN_READINGS = 30.0
"""RAPL's counters go round in minutes at the earliest: 65.5 kJ at 2 kW are 33 seconds, which no package draws."""


@dataclass
class EnergySession:
    """What one process measured in one session."""

    started: float
    """Seconds since 1970, UTC."""
    seconds: float = 0.0
    """That the joules cover."""
    joules: dict[str, float] = field(default_factory=dict[str, float])
    """By meter."""
    missing: str | None = None
    """Why nothing was measured, or no longer."""


@dataclass(frozen=True)
class MeasuredEnergy:
    """All sessions of all processes of a run."""

    joules: dict[str, float]
    """By meter; empty if nothing was measured."""
    seconds: float
    """Of the first process that they cover: less than the run took, if some session was not measured."""
    missing: str | None
    """Why the newest session that was not measured was not."""


class EnergyLog:
    """Reads counters while its context lasts."""

    def __init__(self, path: Path, counters: Counters, started: float) -> None:
        self._path, self._counters = path, counters
        self._session = EnergySession(started, missing=counters.missing)
        self._before = _sessions(path)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="energy", daemon=True)
        self._writable = True

    def __enter__(self) -> EnergyLog:
        self._last, self._since = self._read(), time.monotonic()
        self._write()
        if not self._session.missing:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._add()

    def _follow(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_READINGS):
            self._add()

    def _add(self) -> None:
        readings, now = self._read(), time.monotonic()
        if readings is None or self._last is None:
            return
        joules = self._session.joules
        for counter, before, reading in zip(self._counters.found, self._last, readings, strict=True):
            used = counter.between(before, reading) / 1e6
            joules[counter.meter] = joules.get(counter.meter, 0.0) + used
        self._session.seconds += now - self._since
        self._last, self._since = readings, now
        self._write()

    def _read(self) -> list[int] | None:
        """None from the first reading that fails on: seconds that are not covered show that something is missing."""
        if self._session.missing:
            return None
        try:
            return [counter.read() for counter in self._counters.found]
        except (OSError, ValueError) as error:
            self._session.missing = f"a counter could no longer be read ({error})"
            log.warning("energy is no longer measured: %s", self._session.missing)
            return None

    def _write(self) -> None:
        rows = [asdict(one) for one in [*self._before, self._session]]
        try:
            write_whole(self._path, json.dumps({"sessions": rows}, indent=1) + "\n")
        except OSError as error:
            if self._writable:
                log.warning("%s cannot be written (%s); training goes on", self._path, error.strerror or error)
            self._writable = False


@contextmanager
def energy_measured(folder: Path, device: torch.device, started: float, world: World) -> Generator[None]:
    """Measures within the context. Several processes measure all or none: a part would pass for the whole."""
    found = find_counters(device, world.rank % world.local_size == 0)
    reasons = [reason for reason in world.gather(found.missing) if reason]
    counters = Counters(missing=reasons[0]) if reasons else found
    with EnergyLog(folder / f"energy-{world.rank}.json", counters, started):
        yield
    # The first process adds the files up, so all of them are written before any goes on.
    world.gather(None)


def measured_energy(folder: Path) -> MeasuredEnergy:
    """The sum of what the run's processes wrote."""
    joules: dict[str, float] = {}
    for path in folder.glob("energy-*.json"):
        for meter, used in [pair for session in _sessions(path) for pair in session.joules.items()]:
            joules[meter] = joules.get(meter, 0.0) + used
    own = _sessions(folder / "energy-0.json")
    reasons = [session.missing for session in own if session.missing]
    return MeasuredEnergy(joules, sum((session.seconds for session in own), 0.0), reasons[-1] if reasons else None)


def _sessions(path: Path) -> list[EnergySession]:
    """Empty for a file that is not there, or is not what was written."""
    try:
        return [_session(row) for row in json.loads(path.read_bytes())["sessions"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _session(row: dict[str, Any]) -> EnergySession:
    joules = {str(meter): float(value) for meter, value in row["joules"].items()}
    missing = row["missing"]
    return EnergySession(
        float(row["started"]), float(row["seconds"]), joules, None if missing is None else str(missing)
    )
