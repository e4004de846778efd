"""A run that hangs must end: a machine that waits for a dead one, a file system that no longer answers.

A thread counts the seconds since the loop last said that it is alive; when they are too many it writes where every
thread stands, and ends the process, for whoever watches it to start it again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

from terminus.errors import EXIT_DEFECT

log = logging.getLogger("terminus")

FIRST_SECONDS = 1800.0
"""Patience with the first micro-batch, which compiles, and with what happens between steps."""

LATER_SECONDS = 300.0
"""Patience with a micro-batch, or ten times the slowest so far if that is more."""

TICK_SECONDS = 1.0


class Watchdog:
    """Ends the process when `alive` is not called for too long; use as a context manager."""

    def __init__(self, leave: Callable[[int], object] = os._exit) -> None:
        # os._exit: from this thread nothing else ends a process whose main thread hangs.
        self._leave = leave
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        # Ticks instead of clock time: a process that was suspended, or a laptop that slept, has not hung.
        self._ticks = 0
        self._limit = FIRST_SECONDS
        self._later = LATER_SECONDS
        self._seen: float | None = None

    def alive(self) -> None:
        """Starts the count anew: a micro-batch is done."""
        now = time.monotonic()
        if self._seen is not None:
            self._later = max(self._later, 10 * (now - self._seen))
        self._seen, self._ticks, self._limit = now, 0, self._later

    @contextmanager
    def patient(self, forever: bool = False) -> Generator[None]:
        """Allows the time of a first step within the context, or any time."""
        self._ticks, self._limit = 0, float("inf") if forever else FIRST_SECONDS
        try:
            yield
        finally:
            self._seen, self._ticks, self._limit = None, 0, self._later

    def _watch(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            self._ticks += 1
            if self._ticks * TICK_SECONDS > self._limit:
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                log.error(
                    "nothing has happened for %.0f s, so this process ends; above is where each of its threads stands. "
                    "The same command continues from the last checkpoint.",
                    self._limit,
                )
                self._leave(EXIT_DEFECT)
                return

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
