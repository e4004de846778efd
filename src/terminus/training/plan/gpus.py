"""The GPUs that a plan can be made for: what they have by their makers' sheets, and what was measured on them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from terminus.errors import UserError

ACHIEVED = 790 / 989
"""Share of its sheet that an H100 reaches in large bfloat16 matrix products; taken for GPUs without a measurement."""


@dataclass(frozen=True)
class Gpu:
    """One model of GPU; rates are those of dense products in bfloat16 that add up in float32."""

    name: str
    gib: float
    """Memory that a process finds, without what CUDA takes for itself."""
    sheet: float
    """TFLOP/s by the maker's sheet."""
    bandwidth: float
    """TB/s by the maker's sheet."""
    watts: int
    """Power limit by the maker's sheet."""
    link: float
    """GB/s to another GPU of the same machine, one way, by the maker's sheet: NVLink, or PCI Express 4.0 x16."""
    measured: float | None = None
    """TFLOP/s reached in large matrix products; None where we know of no measurement."""

    @property
    def memory(self) -> float:
        """Usable memory in bytes."""
        return self.gib * 2**30

    @property
    def peak(self) -> float:
        """FLOP/s that matrix products reach: measured, or the share of the sheet that an H100 reaches."""
        return 1e12 * (self.measured or ACHIEVED * self.sheet)


GPUS = {
    "h100": Gpu("NVIDIA H100 SXM 80 GB", 78.0, 989.0, 3.35, 700, 450.0, 790.0),
    "h100-pcie": Gpu("NVIDIA H100 PCIe 80 GB", 78.0, 756.0, 2.0, 350, 64.0),
    "h100-nvl": Gpu("NVIDIA H100 NVL 94 GB", 92.0, 835.0, 3.9, 400, 300.0),
    "h200": Gpu("NVIDIA H200 SXM 141 GB", 139.0, 989.0, 4.8, 700, 450.0),
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 78.0, 312.0, 2.04, 400, 300.0),
    "a100-40": Gpu("NVIDIA A100 SXM 40 GB", 38.5, 312.0, 1.56, 400, 300.0),
    "a100-pcie": Gpu("NVIDIA A100 PCIe 80 GB", 78.0, 312.0, 1.94, 300, 32.0),
    "a100-40-pcie": Gpu("NVIDIA A100 PCIe 40 GB", 38.5, 312.0, 1.56, 250, 32.0),
    "l40s": Gpu("NVIDIA L40S 48 GB", 43.5, 362.0, 0.86, 350, 32.0),
    "4090": Gpu("NVIDIA GeForce RTX 4090 24 GB", 23.0, 165.0, 1.01, 450, 32.0),
}


def find_gpu(name: str) -> Gpu:
    """By a key of `GPUS` or what a driver calls it; UserError for one that is not listed."""
    words = set(re.findall(r"[a-z0-9]+", name.lower().replace("-", " ")))
    # Longer keys first: an a100-40 is an a100, too.
    for key, gpu in sorted(GPUS.items(), key=lambda item: -len(item[0])):
        parts = key.split("-")
        if all(part in words or f"{part}gb" in words for part in parts):
            return gpu
    raise UserError(
        f"There is no GPU {name!r} in the table",
        where="--gpu",
        rule=f"Known: {', '.join(GPUS)}",
        fix="Name the one of them that is nearest to yours",
    )
