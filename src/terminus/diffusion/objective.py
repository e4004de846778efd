"""The training objective: the weighted squared error of the velocity.

    L = w(t) · mean |v_θ(x_t, t) − v|²,   x_t = alpha_t x0 + sigma_t ε,   v = alpha_t ε − sigma_t x0

(Salimans & Ho 2202.00512; Lin et al. 2305.08891, section 3.2.) Everything here is float32 whatever the
network computes in: in bfloat16 sigma at the first timesteps rounds away and the target is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Float64, Int
from torch import Tensor

from .prediction import noised, velocity
from .schedule import NoiseSchedule, gather

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t [batch ...], t [batch]) → prediction [batch ...]; the conditioning is already inside it."""


class Losses(NamedTuple):
    """Per sample: the loss to minimise, and the plain squared error for the logs."""

    weighted: Float[Tensor, "batch"]
    unweighted: Float[Tensor, "batch"]


@dataclass(frozen=True, eq=False)
class VelocityObjective:
    """`weights[t]` multiplies the squared velocity error at timestep t (see weighting.py)."""

    schedule: NoiseSchedule
    weights: Float64[Tensor, "timesteps"]

    def __post_init__(self) -> None:
        if self.weights.shape != self.schedule.alphas_cumprod.shape:
            raise ValueError(f"{len(self.weights)} weights for {self.schedule.timesteps} timesteps")
        if not bool((self.weights.isfinite() & (self.weights >= 0)).all()):
            raise ValueError("weights must be finite and not negative")

    def loss(
        self,
        model: Network,
        x0: Float[Tensor, "batch *shape"],
        epsilon: Float[Tensor, "batch *shape"],
        t: Int[Tensor, "batch"],
    ) -> Losses:
        """The loss of each sample; `x0` are scaled latents, `epsilon` standard normal, `t` in 0 .. T−1."""
        x0, epsilon = x0.float(), epsilon.float()
        alpha, sigma = self.schedule.at(t, x0.ndim)
        prediction = model(noised(x0, epsilon, alpha, sigma), t)
        error = prediction.float() - velocity(x0, epsilon, alpha, sigma)
        unweighted = error.square().flatten(1).mean(1)
        return Losses(gather(self.weights, t) * unweighted, unweighted)
