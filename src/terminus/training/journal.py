"""The run's log: `log.jsonl`, one row per optimizer step, and the same curves for TensorBoard.

The file alone redraws every plot. After a kill the rows behind the checkpoint are cut off and written again, so a
continued log reads as if nothing had happened; only the wall-clock fields can tell.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
from torch.utils.tensorboard.writer import SummaryWriter

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
    """Keys of the samples of a step that was left out because it was not finite."""


class Journal:
    """Appends rows; each is on its way to the disk when `write` returns."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        self.path = folder / "log.jsonl"
        _truncate(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(folder / "tensorboard", purge_step=resume_step + 1)

    def write(self, row: Row, validation_before: dict[str, float] | None = None) -> None:
        """One line of JSON; numbers are written so that they read back bit for bit.

        The first row also carries what was measured before the first step.
        """
        fields = {key: value for key, value in vars(row).items() if value not in (None, ())}
        if validation_before is not None:
            fields["validation_before"] = validation_before
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()
        for key in ("loss", "error", "learning_rate", "gradient_norm", "images_per_second"):
            self._board.add_scalar(key, getattr(row, key), row.step)
        for band, value in (row.validation or {}).items():
            self._board.add_scalar(f"validation/{band}", value, row.step)

    def sync(self) -> None:
        """Forces the rows to the disk: a checkpoint may not be newer than its log."""
        os.fsync(self._file.fileno())

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """A picture [3, height, width] in 0..1 for TensorBoard."""
        self._board.add_image(name, pixels, step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()
        self._board.close()


def read_journal(path: Path) -> Iterator[dict[str, object]]:
    """The rows of a log as written; a last line cut short by a kill is left out."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield cast(dict[str, object], json.loads(line))


def by_band(errors: torch.Tensor, t: torch.Tensor) -> dict[str, float]:
    """Mean error by timestep band: {"000-099": ...}."""
    bands = t.cpu() // BAND
    means = {int(band): errors.cpu()[bands == band].double().mean().item() for band in bands.unique()}
    return {f"{band * BAND:03d}-{band * BAND + BAND - 1:03d}": mean for band, mean in sorted(means.items())}


def _truncate(path: Path, step: int) -> None:
    """Keeps the rows up to a step, in a file that replaces the old one at once."""
    kept = [row for row in read_journal(path) if cast(int, row["step"]) <= step]
    temporary = path.with_suffix(".jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
