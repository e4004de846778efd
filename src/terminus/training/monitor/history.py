"""A run's log as its viewers need it: any length of run in bounded memory, a running run followed row by row.

Rows that were undone by going back to a checkpoint belong to no curve; they are counted.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from math import isfinite, nan
from pathlib import Path
from typing import Any, cast, get_args

from terminus.training.guards import Reason
from terminus.training.monitor.journal import LogRow

CURVES = ("loss", "error", "learning_rate", "gradient_norm", "images_per_second")
"""Fields of a row that are drawn."""

RECENT = 100
"""Rows whose mean is called "now", since one row is noise."""

_FIELDS = frozenset(field.name for field in fields(LogRow))
_POINTS = 512


class Curve:
    """A series of any length as at most 512 means of equally many values each."""

    def __init__(self) -> None:
        self.stride = 1
        """Values behind each mean."""
        self.recent: deque[float] = deque(maxlen=RECENT)
        """The last values as they came."""
        self._means: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """One more value; one that is not finite is left out."""
        if not isfinite(value):
            return
        self.recent.append(value)
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count == self.stride:
            self._means.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        # No room for more: neighbours join, and from now on a mean stands for twice as many values.
        if len(self._means) == _POINTS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means, self.stride = [(one + two) / 2 for one, two in pairs], 2 * self.stride

    @property
    def now(self) -> float:
        """Mean of the last values; NaN before the first."""
        return statistics.fmean(self.recent) if self.recent else nan

    def points(self, count: int) -> list[float]:
        """The whole series as at most `count` means, in order."""
        # The values that do not fill a mean yet count as one.
        means = [*self._means, *([self._sum / self._count] if self._count else [])]
        return resample(means, count)


def resample(values: Sequence[float], count: int) -> list[float]:
    """At most `count` means of neighbours, which cover all values evenly; no values, no means."""
    count = min(count, len(values))
    # Cut at whole values: no mean has more than one value more than another.
    cuts = [at * len(values) // count for at in range(count + 1)] if count > 0 else [0]
    return [statistics.fmean(values[start:end]) for start, end in pairwise(cuts)]


class History:
    """Curves and totals of the rows so far."""

    def __init__(self) -> None:
        self.last: LogRow | None = None
        self.curves = {name: Curve() for name in CURVES}
        self.bands: dict[str, Curve] = {}
        """Plain error by timestep band."""
        self.before: dict[str, float] | None = None
        """Validation error before the first step, by band and "all"."""
        self.validations: list[tuple[int, dict[str, float]]] = []
        """(Images seen, validation error)."""
        self.left_out = 0
        """Steps that did not change the weights."""
        self.last_left_out: LogRow | None = None
        self.undone = 0
        """Steps that were taken back."""
        self.speeds: deque[float] = deque(maxlen=1001)
        """Images per second of the last steps that count."""

    def add(self, row: LogRow, before: dict[str, float] | None = None) -> None:
        """The next row; `before` is what was measured before the first."""
        self.last = row
        self.before = before or self.before
        if row.validation:
            self.validations.append((row.images_seen, row.validation))
        if isfinite(row.images_per_second):
            self.speeds.append(row.images_per_second)
        if row.reason:
            self.left_out, self.last_left_out = self.left_out + 1, row
        for name in CURVES:
            self.curves[name].add(getattr(row, name))
        for band, error in row.bands.items():
            self.bands.setdefault(band, Curve()).add(error)

    def add_undone(self, row: LogRow, before: dict[str, float] | None = None) -> None:
        """A row whose work was taken back: it is where the run stands, and part of no curve."""
        self.last, self.undone = row, self.undone + 1
        self.before = before or self.before

    @property
    def speed(self) -> float:
        """Images per second in the median of the last 1001 steps; NaN before the first."""
        return statistics.median(self.speeds) if self.speeds else nan

    @property
    def best(self) -> tuple[int, float] | None:
        """(Images seen, error over all bands) of the lowest validation."""
        measured = [(images, error["all"]) for images, error in self.validations if isfinite(error.get("all", nan))]
        return min(measured, key=lambda one: one[1]) if measured else None


class Follower:
    """Reads a log that another process writes, and notices when it is written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history = History()
        self._offset, self._inode = 0, -1

    def read(self) -> int:
        """Takes in what is new and returns the number of rows; a log that was written anew is read from its start."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return 0
        with file:
            status = os.fstat(file.fileno())
            # Another file in its place, or fewer bytes than were read: the log was written anew.
            if status.st_ino != self._inode or status.st_size < self._offset:
                self.history, self._offset, self._inode = History(), 0, status.st_ino
            file.seek(self._offset)
            count = 0
            for line in file:
                # Still being written: it is read once its end is there.
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                count += self._take(line)
        return count

    def _take(self, line: bytes) -> bool:
        parsed = parse_row(line)
        if parsed is None:
            return False
        row, before, undone = parsed
        (self.history.add_undone if undone else self.history.add)(row, before)
        return True


def read_history(path: Path) -> History:
    """The history of a log as it stands; an empty one if there is no log."""
    follower = Follower(path)
    follower.read()
    return follower.history


def parse_row(line: bytes) -> tuple[LogRow, dict[str, float] | None, bool] | None:
    """A line of the log as (row, validation before the first step, whether it was undone); None if it is not one.

    Numbers that were not finite are NaN.
    """
    try:
        tree: Any = json.loads(line)
        # Fields that this version does not know are passed over.
        values: dict[str, Any] = {key: value for key, value in tree.items() if key in _FIELDS}
        for key in ("loss", "error", "learning_rate", "gradient_norm", "seconds", "images_per_second"):
            values[key] = _number(values[key])
        values["bands"] = _numbers(values.get("bands")) or {}
        values["validation"] = _numbers(values.get("validation"))
        for key in ("skipped", "damaged"):
            values[key] = tuple(str(one) for one in values.get(key, ()))
        if values.get("reason") not in (None, *get_args(Reason)):
            return None
        for key in ("step", "images_seen", "epoch"):
            values[key] = int(values[key])
        return LogRow(**values), _numbers(tree.get("validation_before")), "undone" in tree
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _number(value: object) -> float:
    return nan if value is None else float(cast(float, value))


def _numbers(value: object) -> dict[str, float] | None:
    items = cast("dict[str, object]", value).items() if value is not None else None
    return None if items is None else {key: _number(one) for key, one in items}
