"""The processes of one run: who this one is, and how they agree.

A launcher (`torchrun`, or any that sets its variables) starts the same command several times; `joined` finds out and
connects them. Alone, every method answers at once, so that nothing else needs to know how many there are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TypeVar, cast

import torch
from torch import distributed

from terminus.errors import UserError

log = logging.getLogger("terminus")

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others. A hang is the watchdog's business; this only bounds what it allows."""


@dataclass(frozen=True)
class World:
    """The processes, as one of them sees them. Every method must be called by all of them, in the same order."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Processes on this machine."""
    _group: distributed.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what is written once."""
        return self.rank == 0

    def gather(self, mine: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [mine]
        found: list[T | None] = [None] * self.size
        distributed.all_gather_object(found, mine, group=self._group)
        return cast("list[T]", found)

    def interleaved(self, mine: Sequence[T]) -> list[T]:
        """The values of all processes in the order in which one alone would have made them: by turn, then by rank."""
        return [*chain.from_iterable(zip(*self.gather(list(mine)), strict=True))]

    def any(self, mine: bool) -> bool:
        """Whether it is true for any process."""
        return any(self.gather(mine))

    def together(self, do: Callable[[], T]) -> T:
        """Does it everywhere; a `UserError` anywhere is raised by all, that of the first process that has one."""
        result, error = _tried(do)
        self._raise(self.gather(error), error)
        return cast(T, result)

    def once(self, do: Callable[[], T]) -> T:
        """Does it in the first process, and gives its result, or raises its `UserError`, in all."""
        result, error = _tried(do) if self.first else (None, None)
        if self.size > 1:
            said = [(result, error)]
            distributed.broadcast_object_list(said, src=0, group=self._group)
            if not self.first:
                result, error = said[0]
        self._raise([error], error if self.first else None)
        return cast(T, result)

    def second(self) -> World:
        """The same processes on a line of their own, for a thread that must not mix with the main one."""
        if self.size == 1:
            return self
        return World(self.rank, self.size, self.local_size, _line())

    def _raise(self, errors: Sequence[UserError | None], own: UserError | None) -> None:
        """Raises the first error there is; only the process that it came from tells the user."""
        for rank, error in enumerate(errors):
            if error is None:
                continue
            if own is not None and rank == self.rank:
                raise own
            error.told = True
            raise error


def _tried(do: Callable[[], T]) -> tuple[T | None, UserError | None]:
    """Any other error ends this process, and the launcher then ends the others."""
    try:
        return do(), None
    except UserError as error:
        return None, error


@contextmanager
def joined(device: str) -> Generator[World]:
    """The processes that the launcher started; alone if it started none. `device` is the recipe's `run.device`.

    Raises `UserError` for variables that contradict each other, a GPU that a process does not have, and a device that
    all processes would share.
    """
    # Alone, unless a launcher says otherwise.
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        _check_slurm()
        yield World()
        return
    # What the launcher says, checked before anything waits for another process.
    rank, local, local_size = _number("RANK", None), _number("LOCAL_RANK", None), _number("LOCAL_WORLD_SIZE", size)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise _missing(name, "not set")
    if rank >= size:
        raise _missing("RANK", f"{rank} of {size} processes")
    # The device, and then the connection.
    on_gpu = _choose(device, local)
    if rank > 0:
        log.setLevel(logging.ERROR)  # what all of them would say is said once
    distributed.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=size, timeout=PATIENCE)
    yield World(rank, size, local_size, _line())
    # Not after an error: another process may be in the middle of a message.
    distributed.destroy_process_group()


def _line() -> distributed.ProcessGroup:
    # gloo on GPUs too: Python objects travel here, which NCCL would copy to the device and back.
    return cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=PATIENCE))


def _choose(device: str, local: int) -> bool:
    """Takes this process's GPU, if GPUs are what the run is on."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"run.device is {device}, and several processes were started",
            rule="Each process takes the GPU of its local rank",
            fix="Set run.device: auto",
        )
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return False
    if local >= torch.cuda.device_count():
        raise UserError(
            f"Local process {local} has no GPU: this machine has {torch.cuda.device_count()}",
            rule="One process trains on one GPU",
            fix="Start as many processes as there are GPUs (torchrun --nproc-per-node), or set run.device: cpu",
        )
    # NCCL, and every `cuda` without a number, mean the current device.
    torch.cuda.set_device(local)
    return True


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        raise _missing(name, "not set" if text is None else repr(text))
    return int(text)


def _missing(name: str, found: str) -> UserError:
    return UserError(
        f"{name} is {found} in the environment, and WORLD_SIZE is set",
        rule="A launcher sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
        fix="Start with torchrun, or set them all; unset WORLD_SIZE to train with one process",
    )


def _check_slurm() -> None:
    """Several tasks of `srun` that do not know of each other would all train the same run alone."""
    tasks = _number("SLURM_STEP_NUM_TASKS", 1)
    if tasks > 1:
        raise UserError(
            f"srun started {tasks} tasks, and WORLD_SIZE is not set",
            rule="Slurm's variables do not name the address at which processes meet",
            fix="Start as docs/distributed.md shows, or with --ntasks 1",
        )
