"""The one interface between networks and solvers: `denoise(x, t) → (x0, epsilon)`.

A solver never learns what the network predicts, and a network never learns which solver runs: the
conversion at each timestep, the terminal one included, happens here, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from terminus.diffusion.objective import Network
from terminus.diffusion.prediction import epsilon_from_velocity, x0_from_epsilon, x0_from_velocity
from terminus.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True, eq=False)
class Prediction:
    """The model's estimate of a latent's parts: x = alpha x0 + sigma epsilon. Both float32."""

    x0: Float[Tensor, "batch *shape"]
    epsilon: Float[Tensor, "batch *shape"]


Denoiser = Callable[[Tensor, int], Prediction]
"""(x [batch ...] float32, t in 0 .. T−1) → Prediction."""


def velocity_denoiser(model: Network, schedule: NoiseSchedule) -> Denoiser:
    """A denoiser from a network that predicts velocity, or a flow's on its schedule; guidance is inside `model`."""

    def denoise(x: Tensor, t: int) -> Prediction:
        alpha, sigma = _coefficients(schedule, t)
        a, b = schedule.rates(alpha, sigma)
        # v = a epsilon - b x0 (Salimans & Ho 2202.00512): with x it gives both parts, at alpha 0 too.
        v = model(x, _batch_of(t, x)).float()
        return Prediction(x0_from_velocity(x, v, a, sigma), epsilon_from_velocity(x, v, alpha, b))

    return denoise


def epsilon_denoiser(model: Network, schedule: NoiseSchedule) -> Denoiser:
    """A denoiser from a network that predicts epsilon, such as SDXL base.

    ValueError on a zero-terminal-SNR schedule: its first step holds no x0 to solve for.
    """
    if schedule.is_zero_terminal:
        raise ValueError("a model that predicts epsilon cannot sample a zero-terminal-SNR schedule")

    def denoise(x: Tensor, t: int) -> Prediction:
        alpha, sigma = _coefficients(schedule, t)
        # x = alpha x0 + sigma epsilon, solved for x0; alpha is above 0 at every timestep.
        epsilon = model(x, _batch_of(t, x)).float()
        return Prediction(x0_from_epsilon(x, epsilon, alpha, sigma), epsilon)

    return denoise


def _coefficients(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    return float(schedule.alpha[t]), float(schedule.sigma[t])


def _batch_of(t: int, x: Tensor) -> Tensor:
    """On the CPU, wherever x is: a network may look at it without waiting for a GPU."""
    return torch.full((len(x),), t, dtype=torch.long)
