"""Counters of energy that hardware keeps by itself: NVML's of a GPU, RAPL's of the CPU's packages.

They count all the time, whoever reads them, so that reading seldom costs nothing and misses nothing.
NVML: nvmlDeviceGetTotalEnergyConsumption (millijoules since the driver was loaded, Volta and newer). RAPL: the kernel's
Documentation/power/powercap (microjoules, which begin again at `max_energy_range_uj`; Linux 5.10 and newer show them to
root alone, because of CVE-2020-8694, unless the machine's owner allows more).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
NVML_LIBRARY = "libnvidia-ml.so.1"
"""Part of NVIDIA's driver."""
GPU_METER, CPU_METER = "NVML", "RAPL"


@dataclass(frozen=True)
class Counter:
    """One counter of the hardware. `read` gives microjoules; OSError, if it no longer can be read."""

    meter: str
    """`GPU_METER` or `CPU_METER`."""
    read: Callable[[], int]
    wraps_at: int | None = None
    """Microjoules at which it begins again; None, only when the driver is loaded again."""

    def between(self, before: int, now: int) -> int:
        """Microjoules between two readings that are less than one round apart."""
        if now >= before:
            return now - before
        return now + (0 if self.wraps_at is None else self.wraps_at - before)


@dataclass(frozen=True)
class Counters:
    """The counters of one process."""

    found: tuple[Counter, ...] = ()
    missing: str | None = None
    """Why the energy of this process cannot be measured; None, if it can."""


def find_counters(device: torch.device, first_here: bool, powercap: Path = POWERCAP) -> Counters:
    """The counters for a process that trains on `device`.

    The CPU's packages are counted by the first process of a machine alone (`first_here`). Beside a GPU they may be
    unreadable: then the GPU is measured without them.
    """
    packages = find_rapl(powercap) if first_here else Counters()
    if device.type != "cuda":
        return packages
    board = _board(device)
    return board if board.missing else Counters(board.found + packages.found)


def _board(device: torch.device) -> Counters:
    try:
        return find_nvml(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except (RuntimeError, AssertionError, AttributeError) as error:  # AttributeError: a GPU that is not NVIDIA's
        return Counters(missing=f"this GPU has no UUID ({error})")


def find_rapl(powercap: Path = POWERCAP) -> Counters:
    """The packages, and their memory where it is counted apart (the zone `dram`)."""
    if not powercap.is_dir():
        return Counters(missing=f"this machine has no {powercap}")
    # Other zones lie inside a package (core, uncore) or around all of them (psys): they would be counted twice.
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _name(zone).startswith(("package", "dram"))]
    try:
        found = tuple(_zone(zone) for zone in zones)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return Counters(missing=f"{powercap} cannot be read ({reason})")
    return Counters(found) if found else Counters(missing=f"{powercap} counts no CPU package")


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _zone(zone: Path) -> Counter:
    def read() -> int:
        return int((zone / "energy_uj").read_text(encoding="ascii"))

    read()  # what may not be read is known before training begins
    return Counter(CPU_METER, read, int((zone / "max_energy_range_uj").read_text(encoding="ascii")))


def find_nvml(uuid: str, library: str = NVML_LIBRARY) -> Counters:
    """The counter of the GPU of this UUID ("GPU-..."): the whole board, with its memory."""
    try:
        nvml = ctypes.CDLL(library)
        _call(nvml, "nvmlInit_v2")
        handle = ctypes.c_void_p()
        _call(nvml, "nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()), ctypes.byref(handle))

        def read() -> int:
            millijoules = ctypes.c_ulonglong()
            _call(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(millijoules))
            return 1000 * millijoules.value

        read()
    except (OSError, AttributeError) as error:
        return Counters(missing=f"NVML does not count this GPU ({error})")
    return Counters((Counter(GPU_METER, read),))


def _call(nvml: ctypes.CDLL, name: str, *arguments: object) -> None:
    """OSError with NVML's own words if it fails; AttributeError for a library that has no such function."""
    status = getattr(nvml, name)(*arguments)
    if status:
        words = nvml.nvmlErrorString
        words.restype = ctypes.c_char_p
        raise OSError(f"{name}: {words(status).decode(errors='replace')}")
