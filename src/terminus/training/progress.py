"""What a person sees while training: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from terminus.training.checkpoint import Position
from terminus.training.journal import Row
from terminus.training.recipe import Training

_LINE_EVERY = 30.0
"""Seconds between plain lines."""


class Progress:
    """Images seen, rate, time left, loss, and the last validation error."""

    def __init__(self, settings: Training, begun: Position) -> None:
        self.console = Console(stderr=True)
        self.total = -(-settings.images // settings.global_batch) * settings.global_batch
        self.begun, self.started, self.printed = begun, time.monotonic(), 0.0
        self.validation = ""
        columns = (
            TextColumn("train"),
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("images"),
        )
        self.bar = Bar(*columns, TimeRemainingColumn(), TextColumn("{task.description}"), console=self.console)
        self.task = self.bar.add_task("", total=self.total, completed=begun.images)

    def update(self, row: Row) -> None:
        """One step is done."""
        elapsed = time.monotonic() - self.started
        rate = (row.images_seen - self.begun.images) / max(elapsed, 1e-9)
        if row.validation:
            self.validation = f"  validation {row.validation['all']:.4f}"
        status = f"{rate:.1f} images/s  loss {row.loss:.4f}  lr {row.learning_rate:.1e}{self.validation}"
        if self.console.is_terminal:
            self.bar.update(self.task, completed=row.images_seen, description=status)
        elif row.validation or row.images_seen >= self.total or time.monotonic() - self.printed > _LINE_EVERY:
            self.printed = time.monotonic()
            left = (self.total - row.images_seen) / max(rate, 1e-9)
            line = f"train {row.images_seen}/{self.total} images  {left / 60:.1f} min left  {status}"
            self.console.print(line, soft_wrap=True, highlight=False)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
