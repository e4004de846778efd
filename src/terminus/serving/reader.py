"""A process that reads strangers' files: images that come in, models in folders, prompts.

Decoders are what attackers look for, and reading takes time: neither may stop the process that answers everybody.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any, ParamSpec, TypeVar

from terminus.errors import UserError

log = logging.getLogger("terminus")

Given = ParamSpec("Given")
Read = TypeVar("Read")


class Reader:
    """One such process, begun when it is first needed, and begun again where a file has killed it."""

    def __init__(self, context: BaseContext) -> None:
        self._context = context
        self._pool: ProcessPoolExecutor | None = None

    async def ask(self, work: Callable[Given, Read], *given: Given.args, **named: Given.kwargs) -> Read:
        """The result of `work`, a function of `reading_work`; UserError for a file that it does not survive."""
        try:
            # Starting the process waits for it, so another thread does.
            future = await asyncio.to_thread(self._submit, work, *given, **named)
            return await asyncio.wrap_future(future)
        except BrokenProcessPool as error:
            self._pool = None
            raise UserError("This file could not be read", rule="The process that reads files ended at it") from error

    def _submit(self, work: Callable[..., Any], *given: Any, **named: Any) -> Any:
        # Begun with the first file: a server that draws from prompts alone needs no second process.
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=self._context, initializer=_begin)
        return self._pool.submit(work, *given, **named)

    def close(self) -> None:
        """Ends the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_the_server, daemon=True).start()


def _end_with_the_server() -> None:
    """A pool's process holds both ends of its queue, so the queue does not tell it that a server was killed."""
    server = multiprocessing.parent_process()
    assert server is not None, "it is a pool's process"
    server.join()
    os._exit(0)
