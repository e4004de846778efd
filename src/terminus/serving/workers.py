"""A worker process as the server sees it: a pipe, a thread that listens to it, and what it is at."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from threading import Thread
from typing import Any

from terminus.serving import orders
from terminus.serving.jobs import Job
from terminus.serving.worker_setup import WorkerSetup

log = logging.getLogger("terminus")


def context() -> ForkServerContext:
    """How processes are started: from one that has imported torch, so that a second start takes a moment."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["terminus.serving.worker", "terminus.serving.reading_work"])
    return found


class WorkerProcess:
    """One device's process. `heard` is called on the server's own thread; with None when the process has ended."""

    def __init__(
        self, device: str, setup: WorkerSetup, heard: Callable[[WorkerProcess, orders.FromWorker | None], None],
        prepare: Callable[[orders.FromWorker], Any],
    ) -> None:  # fmt: skip
        self.device, self._setup = device, setup
        self.ready = False
        self.batch: list[Job] = []
        """Jobs that it draws now."""
        self.loaded: tuple[str, ...] = ()
        """Models in its memory."""
        self._heard, self._prepare = heard, prepare
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for work."""
        return self.ready and not self.batch

    def start(self, ways: ForkServerContext, model: str | None) -> None:
        """Begins the process; returns at once."""
        loop = asyncio.get_running_loop()
        Thread(target=self._live, args=(ways, model, loop), daemon=True, name=f"worker {self.device}").start()

    def _live(self, ways: ForkServerContext, model: str | None, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: starts the process, and passes on what it tells until it ends."""
        ours, theirs = ways.Pipe()
        process = ways.Process(target=_run, args=(theirs, self.device, model, self._setup), daemon=True)
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        with contextlib.suppress(EOFError, OSError):
            while True:
                message: orders.FromWorker = ours.recv()
                # Files are written here, so that the disk does not hold up the server's answers.
                prepared = self._prepare(message)
                loop.call_soon_threadsafe(self._heard, self, prepared)
        process.join(5)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(self._heard, self, None)

    def tell(self, message: orders.ToWorker) -> None:
        """Sends a message; to a process that has just ended it is lost, and `heard` will say so."""
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.send(message)

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """Ends the process whatever it is at."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _run(pipe: Connection, device: str, model: str | None, setup: WorkerSetup) -> None:
    from terminus.serving.worker import run_worker

    run_worker(pipe, device, model, setup)
