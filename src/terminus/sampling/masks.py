"""Which part of a picture may change: on pixels, on latents, with a soft edge, and what to put behind it.

A mask is true where the picture is painted anew. Whatever it hides must not shine through: neither in the latents of
the part that stays, which the codec computes from a wide surrounding, nor in the soft edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

Fill = Literal["surroundings", "original", "grey"]
FILLS: Mapping[Fill, str] = {
    "surroundings": "the colours around it, smoothly continued",
    "original": "what was there; it keeps its brightness and shapes, the more the lower the strength",
    "grey": "plain middle grey",
}
"""What stands behind a mask before anything is painted, and what it means."""

Mask = Bool[Tensor, "height width"]
Pixels = UInt8[Tensor, "height width 3"]


def cells(mask: Mask, factor: int) -> Float[Tensor, "1 1 h w"]:
    """The mask on latents, 1 or 0: a cell is painted anew if any of its pixels is."""
    return functional.max_pool2d(mask[None, None].float(), factor)


def feathered(mask: Mask, width: int) -> Float[Tensor, "height width"]:
    """Weights of the new picture: exactly 0 outside the mask, rising over `width` pixels inside it to 1.

    The picture's own border is no edge of the mask.
    """
    outside = (~mask[None, None]).float()
    total = 1.0 - outside
    for _ in range(width):
        outside = functional.max_pool2d(outside, 3, stride=1, padding=1)
        total = total + (1.0 - outside)
    return (total / (width + 1))[0, 0] * mask


def filled(pixels: Pixels, mask: Mask, fill: Fill) -> Pixels:
    """The picture with something else behind the mask; outside it, every pixel is as it was."""
    if fill == "original":
        return pixels
    if fill == "grey":
        return torch.where(mask[..., None], torch.tensor(127, dtype=torch.uint8), pixels)
    known = (~mask)[None, None].float()
    colour = pixels.permute(2, 0, 1)[None].float()
    continued = _continued(colour * known, known)[0].permute(1, 2, 0).round().to(torch.uint8)
    return torch.where(mask[..., None], continued, pixels)


def _continued(
    colour: Float[Tensor, "1 3 height width"], weight: Float[Tensor, "1 1 height width"]
) -> Float[Tensor, "1 3 height width"]:
    """Colours (times weight) carried into places of weight 0, from coarse to fine ("push-pull")."""
    if bool((weight > 0).all()):
        return colour / weight
    height, width = weight.shape[-2:]
    if height == width == 1:
        return torch.full_like(colour, 127.5)  # nothing is known
    coarse = _continued(*(functional.avg_pool2d(one, 2, ceil_mode=True) for one in (colour, weight)))
    smooth = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(weight > 0, colour / weight.clamp(min=1e-6), smooth)
