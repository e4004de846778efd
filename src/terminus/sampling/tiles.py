"""Pictures larger than the network knows: it sees them in overlapping tiles, and the tiles agree at every step.

Bar-Tal et al. 2302.08113 (MultiDiffusion): the prediction at a place is the mean of the tiles that cover it. Weighted
here, falling towards each tile's edge, so that no seam is left where a tile begins.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from terminus.diffusion.objective import Network


def tiled(network: Network, tile: int, overlap: int) -> Network:
    """A network for latents of any size from one for `tile` x `tile`; neighbours share `overlap` or more. Latents."""
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap of {overlap} in tiles of {tile}")

    def run(x: Tensor, t: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tall, wide = min(tile, height), min(tile, width)
        weights = _slope(tall, overlap)[:, None] * _slope(wide, overlap)[None, :]
        weights = weights.to(x.device)
        total, covered = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        for top in starts(height, tall, overlap):
            for left in starts(width, wide, overlap):
                place = (..., slice(top, top + tall), slice(left, left + wide))
                total[place] += network(x[place], t) * weights
                covered[place] += weights
        return total / covered

    return run


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they cover `length`, evenly spread, neighbours sharing `overlap` or more."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _slope(length: int, overlap: int) -> Float[Tensor, " length"]:
    """Weights along one side of a tile: up over the overlap, 1, and down again."""
    from_edge = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 1
    return (from_edge / (overlap + 1)).clamp(max=1.0)
