"""The run's log: `log.jsonl`, one row per optimizer step, and the same curves for TensorBoard.

The file alone redraws every plot. After a kill the rows behind the checkpoint are cut off and written again, so a
continued log reads as if nothing had happened; only the wall-clock fields can tell.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
from torch.utils.tensorboard.writer import SummaryWriter

from terminus.errors import UserError
from terminus.training.disk import writing

log = logging.getLogger("terminus")

BAND = 100
"""Timesteps per band in the log."""


@dataclass(frozen=True)
class Row:
    """One optimizer step. `loss` is the weighted mean, `error` the plain one."""

    step: int
    images_seen: int
    epoch: int
    loss: float
    error: float
    learning_rate: float
    gradient_norm: float
    bands: dict[str, float]
    """Mean plain error by timestep band, for the bands that this step visited."""
    seconds: float
    images_per_second: float
    validation: dict[str, float] | None = None
    """Validation error by band, and "all", where it was measured."""
    skipped: tuple[str, ...] = ()
    """Of a step that was left out: keys of the samples whose loss is not finite; all, if only the gradient is not."""


class Journal:
    """Appends rows; each is on its way to the disk when `write` returns."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        self.path = folder / "log.jsonl"
        with writing("The log", self.path):
            _truncate(self.path, resume_step)
            self._file = self.path.open("a", encoding="utf-8")
            self._board = SummaryWriter(folder / "tensorboard", purge_step=resume_step + 1)

    def write(self, row: Row, validation_before: dict[str, float] | None = None) -> None:
        """One line of JSON; numbers are written so that they read back bit for bit, and null where not finite.

        The first row also carries what was measured before the first step.
        """
        fields = {key: _finite(value) for key, value in vars(row).items() if value not in (None, ())}
        if validation_before is not None:
            fields["validation_before"] = _finite(validation_before)
        with writing("The log", self.path):
            self._file.write(json.dumps(fields, allow_nan=False) + "\n")
            self._file.flush()
            for key in ("loss", "error", "learning_rate", "gradient_norm", "images_per_second"):
                self._board.add_scalar(key, getattr(row, key), row.step)
            for band, value in (row.validation or {}).items():
                self._board.add_scalar(f"validation/{band}", value, row.step)

    def sync(self) -> None:
        """Forces the rows to the disk: a checkpoint may not be newer than its log."""
        with writing("The log", self.path):
            os.fsync(self._file.fileno())

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """A picture [3, height, width] in 0..1 for TensorBoard."""
        self._board.add_image(name, pixels, step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failing = suppress(OSError, UserError) if error else writing("The log", self.path)
        with failing, closing(self._board), closing(self._file):
            self.sync()


def read_journal(path: Path) -> Iterator[dict[str, object]]:
    """The rows of a log as written, up to the first that a kill cut short or a power cut left unreadable."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                log.warning("%s:%d is not readable; it and what follows are left out", path, number)
                return
            yield cast(dict[str, object], row)


def by_band(errors: torch.Tensor, t: torch.Tensor) -> dict[str, float]:
    """Mean error by timestep band: {"000-099": ...}."""
    bands = t.cpu() // BAND
    means = {int(band): errors.cpu()[bands == band].double().mean().item() for band in bands.unique()}
    return {f"{band * BAND:03d}-{band * BAND + BAND - 1:03d}": mean for band, mean in sorted(means.items())}


def _finite(value: object) -> object:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in cast(dict[str, object], value).items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def _truncate(path: Path, step: int) -> None:
    """Keeps the rows up to a step, in a file that replaces the old one at once."""
    kept = [row for row in read_journal(path) if cast(int, row["step"]) <= step]
    temporary = path.with_suffix(".jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
