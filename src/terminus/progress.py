"""Progress of a long step: a bar with rate and time left on a terminal, a plain line now and then elsewhere.

No torch here: what is waited for may be torch itself.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
SECONDS_UNTIL_WAITING = 2.0
"""What is over sooner needs no word."""


class Meter:
    """Counts to `total`, from `done` for work that continues; use as a context manager."""

    def __init__(self, console: Console, what: str, total: int, done: int = 0, unit: str = "") -> None:
        self.console, self.what, self.total, self.unit = console, what, total, unit
        self.done = self.begun = done
        self.start = self.spoken = time.monotonic()
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        status = TextColumn("{task.description}", markup=False)
        self.bar = Progress(*columns, status, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=total, completed=done)
        self._logged = logged_above(self.bar)

    def advance(self, count: int, status: str = "") -> None:
        """`count` more are done; `status` is what else there is to say."""
        self.done += count
        now = time.monotonic()
        self.bar.update(self.task, completed=self.done, description=f"{self._rate(now):.1f}/s  {status}".rstrip())
        # In a log file a line now and then, and one at the end.
        if not self.console.is_terminal and (now - self.spoken >= SECONDS_BETWEEN_LINES or self.done >= self.total):
            self.spoken = now
            self._line(now, status)

    def __enter__(self) -> Meter:
        self._logged.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._logged.__exit__(None, None, None)

    def _rate(self, now: float) -> float:
        return (self.done - self.begun) / max(now - self.start, 1e-9)

    def _line(self, now: float, status: str) -> None:
        rate = self._rate(now)
        parts = [f"{self.what}: {self.done}/{self.total}{f' {self.unit}' if self.unit else ''}", f"{rate:.1f}/s"]
        if rate > 0 and self.done < self.total:
            seconds = (self.total - self.done) / rate
            parts.append(f"{seconds:.0f} s left" if seconds < 120 else f"{seconds / 60:.0f} min left")
        self.console.print(Text(", ".join([*parts, status] if status else parts)), soft_wrap=True)


@contextmanager
def waiting(console: Console, what: str, after: float = SECONDS_UNTIL_WAITING) -> Generator[None]:
    """Says what is being waited for where that takes longer than `after` seconds and cannot be counted.

    On a terminal by a spinner that goes away again, elsewhere by one plain line.
    """
    status = console.status(Text(what))

    def say() -> None:
        with suppress(OSError):  # a terminal that has gone away ends no work
            if console.is_terminal:
                status.start()
            else:
                console.print(Text(f"{what} ..."), soft_wrap=True)

    # On a thread of its own, since an import holds this one until it is done.
    timer = threading.Timer(after, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        # It may be in the middle of its word: the spinner is stopped only behind it.
        timer.join()
        with suppress(OSError):
            status.stop()


class _Display(Protocol):
    """A bar or a view that rich draws again and again."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


@contextmanager
def logged_above(display: _Display) -> Generator[None]:
    """Shows it; what is logged meanwhile is printed above it.

    rich catches what goes through `sys.stderr`, but a log handler keeps the stream that it was made with.
    """
    stream = sys.stderr
    display.start()
    # Only handlers that write where the display is; one of a file stays as it is.
    ours = (*logging.getLogger().handlers, *logging.getLogger("terminus").handlers)
    handlers = [one for one in ours if isinstance(one, logging.StreamHandler) and one.stream is stream]
    try:
        for handler in handlers:
            # While it is shown this is rich's own stream, which prints above the display.
            handler.setStream(sys.stderr)
        yield
    finally:
        for handler in handlers:
            handler.setStream(stream)
        display.stop()
