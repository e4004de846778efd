"""Steering a prediction towards its prompt, and undoing what that does to contrast.

Both act on any one kind of prediction (velocity here); since conversions are linear in it, guiding the
velocity, the epsilon or the x0 of one latent is the same thing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "batch *shape"]


def classifier_free(cond: Latents, uncond: Latents, scale: float) -> Latents:
    """Ho & Salimans 2207.12598, in the convention where scale 1 is the conditional prediction itself."""
    return uncond + scale * (cond - uncond)


def rescaled(guided: Latents, cond: Latents, rescale: float = 0.7) -> Latents:
    """Guidance with the spread of the conditional prediction given back.

    Lin et al. 2305.08891, eq. 15 and 16. Guidance inflates the standard deviation and so over-exposes;
    `rescale` 1 restores each sample's own, 0 changes nothing. A guided prediction without any spread has
    none to restore and is returned as it is.
    """
    std_guided, std_cond = _std(guided), _std(cond)
    factor = torch.where(std_guided > 0, std_cond / std_guided, 1.0)
    return guided * (rescale * factor + (1 - rescale))


def _std(x: Latents) -> Float[Tensor, "batch *ones"]:
    """Per sample, over all its other dimensions, in float32."""
    return x.float().std(dim=tuple(range(1, x.ndim)), keepdim=True)
