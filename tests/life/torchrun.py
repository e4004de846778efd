"""One run in several processes on this machine, as a launcher starts them (gloo)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def launch(command: Sequence[str], processes: int) -> list[subprocess.Popen[bytes]]:
    """Starts the command that many times with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fixed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        subprocess.Popen(
            command,
            env=os.environ | fixed | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]


def ends(running: Sequence[subprocess.Popen[bytes]], seconds: float = 240) -> list[tuple[int, str]]:
    """Exit code and stderr of each; all are killed if one takes too long."""
    try:
        said = [one.communicate(timeout=seconds)[1].decode() for one in running]
        return [(one.returncode, text) for one, text in zip(running, said, strict=True)]
    finally:
        for one in running:
            one.kill()
            one.communicate()


def train(recipe: Path, processes: int, *overrides: str) -> list[tuple[int, str]]:
    """`terminus train` in several processes, to its end."""
    command = [sys.executable, "-m", "terminus", "train", str(recipe), *overrides]
    return ends(launch(command, processes))
