"""A training run's `log.jsonl` as curves: read as it grows, and thinned, so that a long run costs no more."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_MOST = 2000
"""Rows that are kept; of more, every second is let go."""
_AT_ONCE = 32 << 20
"""Bytes that are read at once."""
_NUMBERS = ("step", "images_seen", "loss", "learning_rate", "gradient_norm", "images_per_second", "seconds")
_BANDS = 40


class RunLog:
    """The rows of one log, each a flat table of finite numbers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._place, self._number, self._stride = 0, 0, 1
        self.rows: list[dict[str, float]] = []
        self.last: dict[str, float] = {}
        """The newest row, whether or not it is among those kept."""

    def read_on(self) -> None:
        """Takes in what was written since; a log that has become shorter is read anew."""
        try:
            # A run that was started anew in the same folder writes a new log.
            size = self._path.stat().st_size
            if size < self._place:
                self._begin()
            with self._path.open("rb") as file:
                file.seek(self._place)
                data = file.read(_AT_ONCE)
        except OSError:
            return
        # The trainer may be in the middle of a line.
        whole, ending, _ = data.rpartition(b"\n")
        self._place += len(whole) + len(ending)
        for line in whole.split(b"\n"):
            self._add(line)

    def _add(self, line: bytes) -> None:
        row = _numbers(line)
        if "images_seen" not in row:
            return
        self.last = row
        self._number += 1
        if self._number % self._stride == 0:
            self.rows.append(row)
        # Every second row goes and from then on every second is kept: evenly thin, however long the run.
        if len(self.rows) > _MOST:
            self.rows, self._stride = self.rows[1::2], 2 * self._stride

    def table(self) -> dict[str, Any]:
        """The rows as `columns` and `rows`, with null where a row has no such number; bands are named as in the log."""
        rows = self.rows if not self.last or self.rows[-1:] == [self.last] else [*self.rows, self.last]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def _numbers(line: bytes) -> dict[str, float]:
    try:
        # A log lies in a folder that others write to: nothing in it is trusted.
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    found = {name: said[name] for name in _NUMBERS if _finite(said.get(name))}
    bands = said.get("bands")
    if isinstance(bands, dict):
        found |= {str(name)[:20]: value for name, value in list(bands.items())[:_BANDS] if _finite(value)}
    # The first row of a run has the loss before any step; it is the curve's first point.
    for name in ("validation_before", "validation"):
        held_out = said.get(name)
        if isinstance(held_out, dict) and _finite(held_out.get("all")):
            found["validation"] = held_out["all"]
    return found


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
