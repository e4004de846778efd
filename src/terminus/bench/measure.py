"""Time and memory of one piece of work, and of the networks inside it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import nn

_CLEAR_PEAK = "5"
"""Written to Linux's clear_refs, it begins a new peak of the process's memory."""
_PRODUCT = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices whose product is the device's peak: large enough for its best, and soon done."""


@dataclass(frozen=True)
class Spread:
    """Median and range of several runs, in seconds."""

    median: float
    low: float
    high: float
    runs: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        return Spread(median(seconds), min(seconds), max(seconds), len(seconds))


@dataclass
class NetworkSeconds:
    """Seconds inside the networks of one run, and calls of the UNet; the rest is everything else."""

    seconds: dict[str, float] = field(default_factory=lambda: {"text": 0.0, "unet": 0.0, "decode": 0.0})
    unet_calls: int = 0
    whole: float = 0.0
    """Seconds of the whole run."""


@dataclass(frozen=True)
class NetworkProbes:
    """The networks of a contender: where the parts of a run begin and end."""

    text_encoders: Sequence[nn.Module]
    unet: nn.Module
    vae: Any

    def modules(self) -> list[nn.Module]:
        return [*self.text_encoders, self.unet, self.vae]

    def bytes_on(self, device: torch.device) -> int:
        """Bytes of their weights that are on the device now."""
        return sum(
            parameter.numel() * parameter.element_size()
            for module in self.modules()
            for parameter in module.parameters()
            if parameter.device.type == device.type
        )


def comparison(names: Sequence[str]) -> Table:
    """An empty table of one column for each contender, and the ratio of two."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    if len(names) == 2:
        table.add_column("ratio", justify="right")
    return table


def add_row(table: Table, label: str, form: str, values: Sequence[float | None], *, with_ratio: bool = True) -> None:
    """Adds one number of each contender to a `comparison`, and the ratio if there are two."""
    cells = ["-" if value is None else format(value, form) for value in values]
    if len(values) == 2:
        cells.append(_ratio(*values) if with_ratio else "-")
    table.add_row(label, *cells)


def _ratio(first: float | None, second: float | None) -> str:
    if first is None or not second:
        return "-"
    return f"{first / second:.2f}"


def save_result(path: Path, content: Mapping[str, object]) -> None:
    """Writes what was measured as JSON, with today's date, and makes the folder."""
    dated = {"date": datetime.now(UTC).date().isoformat(), **content}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dated, indent=1) + "\n", encoding="utf-8")


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the work is done, on the device too."""
    # Work on a GPU returns at once: without waiting, only its launch would be timed.
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


@contextlib.contextmanager
def parts_of(networks: NetworkProbes, device: torch.device) -> Generator[NetworkSeconds]:
    """Fills `NetworkSeconds` while it is open. It waits for the device at each border, so the whole gets slower on a
    GPU.
    """
    parts = NetworkSeconds()
    # decoding is no forward call of the autoencoder; it begins and ends with these two
    vae = networks.vae
    borders: list[tuple[str, nn.Module, nn.Module]] = [
        ("text", text_encoder, text_encoder) for text_encoder in networks.text_encoders
    ]
    borders += [("unet", networks.unet, networks.unet)]
    borders += [("decode", vae.decoder if vae.post_quant_conv is None else vae.post_quant_conv, vae.decoder)]
    # Hooks and no profiler: its own cost is larger than a small network's.
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


class Laps:
    """Splits a run into parts that follow each other: each lap gives the time since the last one to a part.

    It is off at first and then costs nothing; when on, it waits for the device at each border, so that the whole gets
    slower on a GPU.
    """

    def __init__(self, device: torch.device, names: Sequence[str]) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        self._device = device
        self._since: float | None = None

    def lap(self, name: str) -> None:
        """Counts the time since the last lap as `name`."""
        if self._since is None:
            return
        _wait(self._device)
        now = time.perf_counter()
        self.seconds[name] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def on(self) -> Generator[None]:
        """Within it laps count, from 0."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        _wait(self._device)
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._since = None


def product_peak(device: torch.device, dtype: torch.dtype, repeats: int = 20) -> float:
    """FLOP/s of the best of several large matrix products: what is called the peak of this device, on this day."""
    side = _PRODUCT["cuda" if device.type == "cuda" else "cpu"]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    many = 10 if device.type == "cuda" else 1

    def products() -> None:
        for _ in range(many):
            torch.mm(a, b)

    timed(products, device)
    return many * 2 * side**3 / min(timed(products, device) for _ in range(repeats))


def peak_bytes(run: Callable[[], object], networks: NetworkProbes, device: torch.device) -> int | None:
    """The most memory that these networks and their work hold during a run; other models nearby are taken off.

    On a GPU, of the device; on a CPU, of the process (None where the system does not tell).
    """
    above = peak_above(run, device)
    return None if above is None else above + networks.bytes_on(device)


def peak_above(run: Callable[[], object], device: torch.device) -> int | None:
    """The most memory during a run beyond what was held before it; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # getrusage's peak is of the process's whole life; this one begins now.
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")
        before = resident_bytes()
        run()
        return _status("VmHWM") - before
    except OSError:
        return None


def resident_bytes() -> int:
    """Bytes of memory of this process. OSError where the system does not tell."""
    return _status("VmRSS")


def _status(key: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
