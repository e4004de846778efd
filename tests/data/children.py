"""Preparations in processes of their own, which may be killed or starved; modules are imported once for all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from terminus.data.settings import DataConfig

PARENT = """
import json, os, resource, signal, sys, warnings
sys.path.insert(0, sys.argv[1])
from io import StringIO
from rich.console import Console
from terminus.data import curate
from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig
from terminus.errors import UserError
from tests.data.loopback import anywhere

def child(settings, group, largest):
    curate.GROUP = curate.DOWNLOADED_GROUP = group
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    try:
        prepare(DataConfig.model_validate_json(settings), None, Console(file=StringIO()), anywhere)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0

print("ready", flush=True)
warnings.simplefilter("ignore")  # lance warns of forks; here it has done nothing yet
for line in sys.stdin:
    code, number = 1, os.fork()
    if number == 0:
        try:
            code = child(**json.loads(line))
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(number, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
"""


class Children:
    """Runs `prepare`, one process at a time."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", PARENT, str(Path(__file__).parents[2])]
        self.parent = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.parent.stdout is not None
        assert self.parent.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.close()
        self.parent.wait()
        self.parent.stdout.close()

    def run(
        self, data: DataConfig, group: int, *, kill_when: Callable[[], bool] | None = None, largest: int = 0
    ) -> int:
        """The exit code, -9 if it was killed since `kill_when` became true; no file may grow beyond `largest` bytes."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        order = {"settings": data.model_dump_json(), "group": group, "largest": largest}
        print(json.dumps(order), file=self.parent.stdin, flush=True)
        number = int(self.parent.stdout.readline())
        with suppress(ProcessLookupError):  # it ended by itself
            while kill_when is not None:
                os.kill(number, signal.SIGKILL if kill_when() else 0)
                time.sleep(0.002)
        return int(self.parent.stdout.readline())
