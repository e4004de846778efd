"""Time and memory of one piece of work, and of the networks inside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

_CLEAR_PEAK = "5"
"""Written to Linux's clear_refs, it begins a new peak of the process's memory."""


@dataclass(frozen=True)
class Spread:
    """Of several runs, in seconds."""

    median: float
    low: float
    high: float
    runs: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        return Spread(median(seconds), min(seconds), max(seconds), len(seconds))


@dataclass
class Parts:
    """Seconds inside the networks of one run, and calls of the UNet; the rest is everything else."""

    seconds: dict[str, float] = field(default_factory=lambda: {"text": 0.0, "unet": 0.0, "decode": 0.0})
    unet_calls: int = 0
    whole: float = 0.0
    """Of the run."""


@dataclass(frozen=True)
class Networks:
    """What both contenders are made of: where the parts of a run begin and end."""

    towers: Sequence[nn.Module]
    unet: nn.Module
    vae: Any

    def modules(self) -> list[nn.Module]:
        return [*self.towers, self.unet, self.vae]

    def bytes_on(self, device: torch.device) -> int:
        """Of their weights that are on the device now."""
        return sum(
            parameter.numel() * parameter.element_size()
            for module in self.modules()
            for parameter in module.parameters()
            if parameter.device.type == device.type
        )


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the work is done, on the device too."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


@contextlib.contextmanager
def parts_of(networks: Networks, device: torch.device) -> Generator[Parts]:
    """Fills `Parts` while it is open. It waits for the device at each border, so the whole gets slower on a GPU."""
    parts = Parts()
    # decoding is no forward call of the autoencoder; it begins and ends with these two
    vae = networks.vae
    borders: list[tuple[str, nn.Module, nn.Module]] = [("text", tower, tower) for tower in networks.towers]
    borders += [("unet", networks.unet, networks.unet)]
    borders += [("decode", vae.decoder if vae.post_quant_conv is None else vae.post_quant_conv, vae.decoder)]
    began: dict[str, float] = {}
    handles: list[Any] = []
    for name, first, last in borders:

        def begin(*_: object, name: str = name) -> None:
            _wait(device)
            began[name] = time.perf_counter()

        def end(*_: object, name: str = name) -> None:
            _wait(device)
            parts.seconds[name] += time.perf_counter() - began[name]
            parts.unet_calls += name == "unet"

        handles += [first.register_forward_pre_hook(begin), last.register_forward_hook(end)]
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


def peak_bytes(run: Callable[[], object], networks: Networks, device: torch.device) -> int | None:
    """The most memory that these networks and their work hold during a run; other models nearby are taken off.

    On a GPU, of the device; on a CPU, of the process (None where the system does not tell).
    """
    own = networks.bytes_on(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before + own
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before + own
    except OSError:
        return None


def _status(key: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
