"""One run in several processes on this machine, with the variables that a launcher sets (gloo)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from .forked import Forked


def launch(processes: int, *arguments: str) -> list[Forked]:
    """Starts `terminus` that many times, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        Forked(*arguments, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]


def ends(running: Sequence[Forked]) -> list[tuple[int, str]]:
    """Exit code and stderr of each; all are killed if one takes too long."""
    return [one.end() for one in running]


def train(recipe: Path, processes: int, *overrides: str) -> list[tuple[int, str]]:
    """`terminus train` in several processes, to its end."""
    return ends(launch(processes, "train", str(recipe), *overrides))
