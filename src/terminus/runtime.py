"""The machine under a run: device, number format, and randomness as a function.

Nothing random is ever saved, because nothing random has state: `rng(seed, index, purpose)` gives the
same numbers for the same sample whatever process, worker, micro-batch or restart asks for them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from terminus.errors import UserError

log = logging.getLogger("terminus")

Precision = Literal["bf16", "fp32"]


def key(seed: int, index: int, purpose: str) -> int:
    """A 63-bit integer, uniform in (seed, index, purpose): the root of everything random."""
    text = f"{seed}:{index}:{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def rng(seed: int, index: int, purpose: str) -> torch.Generator:
    """A CPU generator for one sample and one purpose ("noise", "crop", ...)."""
    return torch.Generator().manual_seed(key(seed, index, purpose))


def uniform(seed: int, index: int, purpose: str) -> float:
    """One number in [0, 1) for one sample and one purpose; 53 random bits."""
    return (key(seed, index, purpose) >> 10) / float(1 << 53)


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" is the first GPU if there is one, else the CPU. UserError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # A name can be right and the device missing: only using it tells.
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Device {name!r} cannot be used ({reason})", fix="Use auto, cpu or cuda") from error
    return device


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or what its container leaves it."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # counts what the page cache would give up
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    # In a container its own limit counts as well.
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (allowed := limit.read_text().strip()) != "max":
        free = min(free, int(allowed) - int(used.read_text()))
    return free


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. The CPU does not wait until a GPU has done what it was told before.

    A plain `.to` does, at every call: the GPU then stands still while its next work is being prepared.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # only from page-locked memory is it a copy by the way


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which networks run; losses and schedules stay outside it, in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def computes_in_software(device: torch.device, precision: Precision) -> bool:
    """Whether this number format has no instructions here: nano's UNet then takes twelve times as long (measured)."""
    return device.type == "cpu" and precision == "bf16" and not _has_bf16()


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class Environment:
    """The machine and the versions of its software, for the model card."""

    hardware: str
    cpu_count: int
    python: str
    platform: str
    packages: dict[str, str]


def environment(device: torch.device | None = None) -> Environment:
    """The hardware (of `device`, or the best there is) and the versions that decide numbers."""
    names = ("torch", "diffusers", "transformers", "safetensors", "daft", "pylance", "pillow", "numpy")
    device = device or pick_device()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    packages = {name: _version(name) for name in names}
    return Environment(
        hardware, os.cpu_count() or 1, platform.python_version(), f"{platform.system()} {platform.machine()}", packages
    )


def _version(package: str) -> str:
    """Its version, or "not installed": a machine that trains on given latents has no preparation engine."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
