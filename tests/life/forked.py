"""`terminus` in processes of their own, forked from one that has imported everything: a start takes no seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PROGRAM = """
import os, sys
os.environ.update(environment)
for number, file in ((1, os.devnull), (2, errors)):
    os.dup2(os.open(file, os.O_WRONLY), number)
{before}
from terminus import cli
sys.exit(cli.main(arguments))
"""
"""Run by its text, since the new process could not import a module of the tests."""

# The first two are what a training imports; pytest, because a new process imports the main module of its parent.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["terminus.cli", "terminus.training.run", "pytest"])


class Forked:
    """A running `terminus` with these arguments: what this needs of `subprocess.Popen`."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None, before: str = "") -> None:
        handle, name = tempfile.mkstemp(prefix="stderr-")
        os.close(handle)
        self.errors = Path(name)
        given = {"arguments": arguments, "environment": dict(environment or {}), "errors": name}
        self._process: ForkServerProcess = _context.Process(target=exec, args=(PROGRAM.format(before=before), given))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """To this process alone."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Without a chance to say anything."""
        self._process.kill()

    def end(self, seconds: float = 240) -> tuple[int, str]:
        """Exit code and stderr; killed if it takes longer."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
        said = self.errors.read_text()
        self.errors.unlink()
        assert self._process.exitcode is not None
        return self._process.exitcode, said
