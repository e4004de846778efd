"""Steering a prediction towards its prompt, and undoing what that does to contrast.

Both act on any one kind of prediction (velocity here); since conversions are linear in it, guiding the
velocity, the epsilon or the x0 of one latent is the same thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from terminus.errors import UserError

Latents = Float[Tensor, "batch *shape"]

_ROUNDING = 1e-6
"""The largest spread, relative to their size, that float32 finds in equal numbers."""


@dataclass(frozen=True)
class Guidance:
    """When and how two predictions of one latent become one."""

    scale: float
    """1 is the conditional prediction itself."""
    rescale: float = 0.0
    """How much of the conditional prediction's spread is given back, 0..1."""
    interval: tuple[float, float] = (0.0, 1.0)
    """(low, high): guidance acts where low < (t + 1) / T <= high; 1 is pure noise (Kynkäänniemi et al. 2404.07724)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise UserError(f"guidance {self.scale}", rule="Guidance is a number, at least 0; 1 leaves it out")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"rescale {self.rescale}", rule="Guidance rescale is a number from 0 to 1")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            rule = "A guidance interval is two numbers, 0 <= LOW < HIGH <= 1; 1 is pure noise, 0 the finished image"
            raise UserError(f"guidance interval {low}..{high}", rule=rule)

    def active(self, t: int, T: int) -> bool:
        """Whether guidance acts at timestep `t` of 0 .. T−1; where it does not, the unconditional is not needed."""
        low, high = self.interval
        return self.scale != 1.0 and low < (t + 1) / T <= high

    def combine(self, cond: Latents, uncond: Latents) -> Latents:
        """The guided prediction, of two that are of the network's own kind: the rescale is one of its spread."""
        guided = classifier_free(cond, uncond, self.scale)
        return rescaled(guided, cond, self.rescale) if self.rescale > 0 else guided


def classifier_free(cond: Latents, uncond: Latents, scale: float) -> Latents:
    """Ho & Salimans 2207.12598, in the convention where scale 1 is the conditional prediction itself."""
    return torch.lerp(uncond, cond, scale)  # uncond + scale (cond − uncond), in one pass


def rescaled(guided: Latents, cond: Latents, rescale: float = 0.7) -> Latents:
    """Guidance with the spread of the conditional prediction given back.

    Lin et al. 2305.08891, eq. 15 and 16. Guidance inflates the standard deviation and so over-exposes;
    `rescale` 1 restores each sample's own, 0 changes nothing. A guided prediction without any spread but
    that of its rounding has none to restore and is returned as it is.
    """
    (std_guided, mean), (std_cond, _) = _std_mean(guided), _std_mean(cond)
    # Eq. 15, unless the spread is rounding alone; eq. 16 mixes both.
    factor = torch.where(std_guided > _ROUNDING * mean.abs(), std_cond / std_guided, 1.0)
    return torch.lerp(guided, guided * factor, rescale)


def _std_mean(x: Latents) -> tuple[Float[Tensor, "batch *ones"], Float[Tensor, "batch *ones"]]:
    """Per sample, over all its other dimensions, in float32."""
    return torch.std_mean(x.float(), dim=tuple(range(1, x.ndim)), keepdim=True)
