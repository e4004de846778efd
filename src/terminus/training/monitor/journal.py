"""The run's log: `log.jsonl`, one row per optimizer step, and the same curves for TensorBoard.

The file alone redraws every curve. After a kill the rows behind the checkpoint are cut off and written again, so a
continued log reads as if nothing had happened; only the wall-clock fields can tell.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
from torch.utils.tensorboard.writer import SummaryWriter

from terminus.errors import UserError
from terminus.training.guards import Reason
from terminus.training.saving.atomic_files import writing_file

log = logging.getLogger("terminus")

BAND = 100
"""Timesteps per band in the log."""

SECONDS_BETWEEN_WARNINGS = 60.0

_CURVES = ("loss", "error", "learning_rate", "gradient_norm", "images_per_second")


@dataclass(frozen=True)
class LogRow:
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
    """Keys of the samples whose loss is not finite, in a step that was left out; all, if it is for another reason."""
    reason: Reason | None = None
    """Why it was left out."""
    processes: int | None = None
    """Processes that shared the step; None, one alone."""
    damaged: tuple[str, ...] = ()
    """Rows of the store that are not what was written, and whose places in this step others took."""


class Journal:
    """Appends rows; each is on its way to the disk when `write` returns.

    Where the disk takes none, rows wait in memory, and training goes on. A second copy of the curves, for
    TensorBoard, is given up as soon as it cannot be written. `sync` may be called by another thread.
    """

    def __init__(self, folder: Path, resume_step: int, name: str = "") -> None:
        """`name` is the run's: TensorBoard calls a run by the folder that its files lie in."""
        self.path = folder / "log.jsonl"
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._spoken = -SECONDS_BETWEEN_WARNINGS
        with writing_file("The log", self.path):
            # Rows behind the checkpoint go: their steps are made again.
            kept = _rewrite(self.path, lambda row: row if cast(int, row["step"]) <= resume_step else None)
            self._file = self.path.open("ab", buffering=0)
            # Step 0 is what was measured before the first step: a run that begins anew measures it anew.
            purge = resume_step + 1 if resume_step else 0
            board = folder / "tensorboard" / _folder_name(name)
            self._board: SummaryWriter | None = SummaryWriter(board, purge_step=purge)
        if kept < resume_step:
            log.warning("%s has %d rows of %d steps: the others were lost with the file", self.path, kept, resume_step)

    def write(self, row: LogRow, validation_before: dict[str, float] | None = None) -> None:
        """One line of JSON; numbers are written so that they read back bit for bit, and null where not finite.

        The first row also carries what was measured before the first step.
        """
        fields = {key: _finite(value) for key, value in vars(row).items() if value not in (None, ())}
        if validation_before is not None:
            fields["validation_before"] = _finite(validation_before)
        # The row waits before it is written, so what the disk does not take is still here for the next time.
        with self._lock:
            self._pending += (json.dumps(fields, allow_nan=False) + "\n").encode()
        with writing_file("The log", self.path):
            try:
                self._push()
            except OSError as error:
                self._wait(error)
        # TensorBoard's copy; step 0 is what was measured before the first step.
        if validation_before is not None:
            self._curves(validation_curves(validation_before), 0)
        curves = {key: getattr(row, key) for key in _CURVES}
        self._curves(curves | validation_curves(row.validation), row.step)

    def sync(self) -> None:
        """Forces the rows to the disk: a checkpoint may not be newer than its log."""
        with writing_file("The log", self.path):
            self._push()
            os.fsync(self._file.fileno())

    def undo(self, after: int, number: int) -> None:
        """Marks the rows after a step as undone by the run's `number`-th return to a checkpoint."""

        def mark(row: dict[str, object]) -> dict[str, object]:
            return row | {"undone": number} if cast(int, row["step"]) > after else row

        with writing_file("The log", self.path), self._lock:
            self._file.close()
            # Rows that a full disk has not taken yet, the first of them perhaps in part.
            waiting = self.path.read_bytes().rpartition(b"\n")[2] + self._pending
            _rewrite(self.path, mark)
            lines = [json.dumps(mark(json.loads(line))) + "\n" for line in waiting.splitlines()]
            self._pending[:] = "".join(lines).encode()
            self._file = self.path.open("ab", buffering=0)

    def image(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """An image [3, height, width] in 0..1 for TensorBoard."""
        self._on_board(lambda board: board.add_image(name, pixels, step))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error that is ending the run is not replaced by one of its log.
        failing = suppress(OSError, UserError) if error else writing_file("The log", self.path)
        with failing, closing(self._file):
            self._on_board(lambda board: board.close())
            self.sync()

    def _push(self) -> None:
        # Unbuffered: what the disk took of a line is known, and the rest of it follows when it takes more.
        with self._lock:
            while self._pending:
                del self._pending[: self._file.write(self._pending)]

    def _wait(self, error: OSError) -> None:
        if time.monotonic() - self._spoken > SECONDS_BETWEEN_WARNINGS:
            self._spoken = time.monotonic()
            log.warning("the log cannot be written (%s): its rows wait in memory", error.strerror or error)

    def _curves(self, values: Mapping[str, float], step: int) -> None:
        def add(board: SummaryWriter) -> None:
            for name, value in values.items():
                board.add_scalar(name, value, step)

        self._on_board(add)

    def _on_board(self, do: Callable[[SummaryWriter], object]) -> None:
        if self._board is None:
            return
        try:
            do(self._board)
        except OSError as error:
            self._board = None
            log.warning("TensorBoard's files cannot be written (%s); log.jsonl has everything", error.strerror or error)


def read_journal(path: Path) -> Iterator[dict[str, object]]:
    """The rows of a log as written. A last line that a kill cut short is none; what a power cut or the disk made
    unreadable is passed over with a warning, and so is what does not follow the row before it."""
    if not path.is_file():
        return
    unreadable, last = list[int](), -1
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            row = _parsed(line)
            if row is not None and cast(int, row["step"]) > last:
                last = cast(int, row["step"])
                yield row
            # Without an end it is the last line of a process that was killed, which is no damage.
            elif line.endswith(b"\n"):
                unreadable.append(number)
    if unreadable:
        log.warning("%s:%d is not readable; %d such lines are left out", path, unreadable[0], len(unreadable))


def _parsed(line: bytes) -> dict[str, object] | None:
    try:
        row: object = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    fields = cast("dict[str, object]", row)
    # Not `isinstance`, for which true is an integer.
    return fields if type(fields.get("step")) is int else None


def validation_curves(validation: Mapping[str, float] | None) -> dict[str, float]:
    """Held-out losses by the names of their curves: {"validation/all": ...}."""
    return {f"validation/{band}": value for band, value in (validation or {}).items()}


def by_band(errors: torch.Tensor, t: torch.Tensor) -> dict[str, float]:
    """Mean error by timestep band: {"000-099": ...}."""
    bands = t.cpu() // BAND
    means = {int(band): errors.cpu()[bands == band].double().mean().item() for band in bands.unique()}
    return {f"{band * BAND:03d}-{band * BAND + BAND - 1:03d}": mean for band, mean in sorted(means.items())}


def _folder_name(name: str) -> str:
    """A run's name as one folder's: it may hold a slash, or be longer than folders' names can be."""
    plain = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in name)
    # Cut by bytes, which is how file systems count.
    return plain.encode()[:200].decode(errors="ignore").strip(". ")


def _finite(value: object) -> object:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in cast(dict[str, object], value).items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def _rewrite(path: Path, change: Callable[[dict[str, object]], dict[str, object] | None]) -> int:
    """Replaces the log at once by what `change` makes of its rows, and counts them; None leaves a row out."""
    count = 0
    # Written beside the log, forced to the disk and only then moved over it: no moment has half a log.
    temporary = path.with_suffix(".jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in read_journal(path):
            changed = change(row)
            if changed is not None:
                file.write(json.dumps(changed) + "\n")
                count += 1
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return count
