"""How far a long step is: a bar with rate and ETA on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


class Meter:
    """Counts `total` things; use as a context manager."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self.console, self.what, self.total = console, what, total
        self.done = 0
        self.start = self.spoken = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(what, total=total)

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        self.bar.advance(self.task, count)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.spoken >= SECONDS_BETWEEN_LINES:
            self.spoken = now
            self._line(now)

    def __enter__(self) -> Meter:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if not self.console.is_terminal:
            self._line(time.monotonic())

    def _line(self, now: float) -> None:
        rate = self.done / max(now - self.start, 1e-9)
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if 0 < self.done < self.total else ""
        self.console.print(f"{self.what}: {self.done}/{self.total}, {rate:.1f}/s{left}", highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")
