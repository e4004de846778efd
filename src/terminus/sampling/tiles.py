"""Images larger than the network knows: it sees them in overlapping tiles, and the tiles agree at every step.

Bar-Tal et al. 2302.08113 (MultiDiffusion): the prediction at a place is the mean of the tiles that cover it. Weighted
here, falling towards each tile's edge, so that no seam is left where a tile begins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terminus import runtime
from terminus.diffusion.objective import Network
from terminus.model.tiling import slope, starts


def tiled(network: Network, tile: int, overlap: int) -> Network:
    """A network for latents of any size from one for `tile` x `tile`; neighbours share `overlap` or more. Latents."""
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap of {overlap} in tiles of {tile}")

    def run(x: Tensor, t: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tall, wide = min(tile, height), min(tile, width)
        # A tile counts less towards its edges, where its neighbours see more.
        weights = slope(tall, overlap)[:, None] * slope(wide, overlap)[None, :]
        weights = runtime.sent(weights, x.device)
        # The weighted sum of all tiles, and the sum of their weights at each place.
        total, covered = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        for top in starts(height, tall, overlap):
            for left in starts(width, wide, overlap):
                place = (..., slice(top, top + tall), slice(left, left + wide))
                total[place] += network(x[place], t) * weights
                covered[place] += weights
        return total / covered

    return run
