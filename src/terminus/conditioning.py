"""SDXL's micro-conditioning: the sizes and the crop that the UNet is told about each image.

The only place that knows the order of the six numbers (Podell et al. 2307.01952, section 2.2; the order
is that of the SDXL code: original height, width, crop top, left, target height, width). Always float32:
bfloat16 turns 1023 into 1024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from terminus import runtime
from terminus.sizes import Crop as Crop
from terminus.sizes import Size as Size


@dataclass(frozen=True)
class MicroConditioning:
    """The sizes and the crop that condition the UNet: size before resizing, crop corner, size now; in pixels."""

    original: Size
    crop: Crop
    target: Size

    @classmethod
    def uncropped(cls, size: Size) -> MicroConditioning:
        """A whole image that was never larger: what sampling asks for unless told otherwise."""
        return cls(original=size, crop=Crop(0, 0), target=size)


def time_ids(items: Sequence[MicroConditioning], device: torch.device | None = None) -> Float[Tensor, "batch 6"]:
    """The six numbers of each item, float32, in pixels."""
    rows = [(*item.original, *item.crop, *item.target) for item in items]
    ids = torch.tensor(rows, dtype=torch.float32)
    return ids if device is None else runtime.sent(ids, device)
