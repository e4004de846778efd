"""Which part of an image may change: on pixels, on latents, with a soft edge, and what to put behind it.

A mask is true where the image is painted anew. Whatever it hides must not shine through: neither in the latents of
the part that stays, which the VAE computes from a wide surrounding, nor in the soft edge.
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
"""Fills behind a mask before anything is painted, and what each means."""

_AT_ONCE = 2**20
"""Pixels whose distance from the edge is found at once."""
_SWEEPS, _SWEPT = 32, 2**18
"""Sweeps that smooth a continuation: as many as go over so many pixels in all, 2 to 32."""

Mask = Bool[Tensor, "height width"]
Pixels = UInt8[Tensor, "height width 3"]


def cells(mask: Mask, factor: int) -> Float[Tensor, "1 1 h w"]:
    """The mask on latents, 1 or 0: a cell is painted anew if any of its pixels is."""
    return functional.max_pool2d(mask[None, None].float(), factor)


def feathered(mask: Mask, width: int) -> Float[Tensor, "height width"]:
    """Weights of the new image: exactly 0 outside the mask, rising over `width` pixels inside it to 1.

    A mask that is nowhere so deep has a narrower edge: at its deepest the image is the new one, always. The image's
    own border is no edge of the mask.
    """
    if width == 0:
        return mask.float()
    height, across = mask.shape
    # counts[y, x]: pixels outside the mask that lie above y and left of x
    counts = functional.pad((~mask).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0))
    depth = torch.zeros(mask.shape)
    columns = torch.arange(across)
    for rows in torch.arange(height).split(max(1, _AT_ONCE // across)):
        # How many squares around each pixel, of radius 0, 1, ... `width`, lie inside the mask: bit by bit.
        clear = torch.zeros(len(rows), across, dtype=torch.int64)
        for bit in reversed(range((width + 1).bit_length())):
            more = clear + 2**bit
            # A larger square around each pixel, cut at the border of the image.
            top, bottom = ((rows[:, None] + side).clamp(0, height) for side in (1 - more, more))
            left, right = ((columns + side).clamp(0, across) for side in (1 - more, more))
            # Pixels of it outside the mask: four corners of the table of sums.
            outside = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]
            clear = torch.where(outside == 0, more, clear)
        depth[rows] = clear.clamp(max=width + 1).float()
    return depth / depth.max().clamp(min=1.0)


def fill_masked(pixels: Pixels, mask: Mask, fill: Fill) -> Pixels:
    """The image with something else behind the mask; outside it, every pixel is as it was."""
    if fill == "original":
        return pixels
    if fill == "grey":
        return torch.where(mask[..., None], torch.tensor(127, dtype=torch.uint8), pixels)
    # Colours count by weight: what the mask hides has none.
    known = (~mask)[None, None].float()
    colour = pixels.permute(2, 0, 1)[None].float()
    continued = _continued(colour * known, known)[0].permute(1, 2, 0).round().to(torch.uint8)
    return torch.where(mask[..., None], continued, pixels)


def _continued(
    colour: Float[Tensor, "1 3 height width"], weight: Float[Tensor, "1 1 height width"]
) -> Float[Tensor, "1 3 height width"]:
    """Colours (times weight) carried into places of weight 0, from coarse to fine ("push-pull").

    A coarse cell knows colours from far behind the edge as well as those at it. So at every size each unknown place is
    made the mean of its neighbours, again and again: that tends to the membrane that is held at the edge alone.
    """
    known = weight > 0
    if bool(known.all()):
        return colour / weight
    height, width = weight.shape[-2:]
    if height == width == 1:
        return torch.full_like(colour, 127.5)  # nothing is known
    # At half the size first, where each place is the mean of those that are known.
    coarse = _continued(*(functional.avg_pool2d(one, 2, ceil_mode=True) for one in (colour, weight)))
    smooth = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    made = torch.where(known, colour / weight.clamp(min=1e-6), smooth)
    for _ in range(min(max(2, _SWEPT // (height * width)), _SWEEPS)):
        around = functional.avg_pool2d(functional.pad(made, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        made = torch.where(known, made, around)
    return made
