"""The training objective: the weighted squared error of what the network predicts.

    L = w(t) · mean ρ(f_θ(x_t, t) − target),   x_t = alpha_t x0 + sigma_t ε,   ρ(d) = d²
    target = v = a_t ε − b_t x0, or ε

(Salimans & Ho 2202.00512; Lin et al. 2305.08891, section 3.2; for rectified flow, Liu et al. 2209.03003.) Everything
here is float32 whatever the network computes in: in bfloat16 sigma at the first timesteps rounds away and the target
is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .prediction import PredictionType, noised, velocity
from .schedule import NoiseSchedule, gather

Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t [batch ...], t [batch]) → prediction [batch ...]; the conditioning is already inside it."""


class Losses(NamedTuple):
    """Per sample: the loss to minimise, and the plain squared error for the logs."""

    weighted: Float[Tensor, "batch"]
    unweighted: Float[Tensor, "batch"]


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a network that predicts velocity, that of a flow, or epsilon on a schedule that leaks.

    `weights[t]` multiplies the squared error of the prediction at timestep t (see weighting.py). Epsilon cannot be
    trained on a zero-terminal-SNR schedule: at SNR = 0 the input is the noise, and there is nothing to learn.

    `huber`, where given, is the error c at each timestep beyond which the loss grows linearly (see `huber_widths`).
    """

    schedule: NoiseSchedule
    weights: Float64[Tensor, "timesteps"]
    prediction: PredictionType = "velocity"
    """What the network is trained to predict."""
    huber: Float64[Tensor, "timesteps"] | None = None

    def __post_init__(self) -> None:
        if self.prediction == "epsilon" and self.schedule.is_zero_terminal:
            raise ValueError("epsilon cannot be trained on a zero-terminal-SNR schedule; predict velocity")
        if (self.prediction == "flow") != self.schedule.flow:
            raise ValueError(f"prediction {self.prediction} does not belong to this schedule: a flow has its own")
        _check_tables(self.schedule, self.weights, self.huber)

    def loss(
        self,
        model: Network,
        x0: Float[Tensor, "batch *shape"],
        epsilon: Float[Tensor, "batch *shape"],
        t: Int[Tensor, "batch"],
        perturbation: Float[Tensor, "batch *shape"] | None = None,
        mask: Float[Tensor, "batch 1 height width"] | None = None,
    ) -> Losses:
        """The loss of each sample; `x0` are scaled latents, `epsilon` standard normal, `t` in 0 .. T−1.

        `perturbation` is further noise that the input has and the target has not (Ning et al. 2301.11706). `mask`, in
        0..1, multiplies the error of each place, and its sum does not divide it: a place counts the same however
        much of its image is masked, and nothing is learned from an image whose mask is 0. The plain error has no mask.
        """
        x0, epsilon = x0.float(), epsilon.float()
        alpha, sigma = self.schedule.at(t, x0.ndim)
        # target = v = alpha ε − sigma x0 (Salimans & Ho 2202.00512, appendix D), of a flow ε − x0; or ε
        target = epsilon if self.prediction == "epsilon" else velocity(x0, epsilon, *self.schedule.rates(alpha, sigma))
        # x_t = alpha x0 + sigma ε, with a disturbed ε where there is a perturbation
        disturbed = epsilon if perturbation is None else epsilon + perturbation.float()
        error = model(noised(x0, disturbed, alpha, sigma), t).float() - target
        return _losses(error, t, self.weights, self.huber, mask)


def pseudo_huber(
    error: Float[Tensor, "batch *shape"], c: Float[Tensor, "batch *ones"]
) -> Float[Tensor, "batch *shape"]:
    """2c (√(d² + c²) − c): d² where |d| is far below c, and 2c |d| far above it.

    Written as 2c d² / (√(d² + c²) + c), which subtracts nothing and so keeps its digits at small d.
    """
    square = error.square()
    return 2 * c * square / ((square + c.square()).sqrt() + c)


def huber_widths(
    schedule: NoiseSchedule, c: float, form: Literal["constant", "snr"] = "snr"
) -> Float64[Tensor, "timesteps"]:
    """The c of each timestep: `c` everywhere, or falling from 1 without noise to `c` in pure noise.

    `snr` is c + (1 − c) (alpha / (alpha + sigma))², after Khrapov et al. 2403.16728: an outlier is an outlier in
    the noisy timesteps, while the clean ones decide detail and keep the squared error.
    """
    if not 0 < c <= 1:
        raise ValueError(f"c must be above 0 and at most 1, got {c}")
    if form == "constant":
        return torch.full_like(schedule.alphas_cumprod, c)
    return c + (1 - c) * (schedule.alpha / (schedule.alpha + schedule.sigma)).square()


def _losses(
    error: Tensor, t: Tensor, weights: Tensor, huber: Tensor | None, mask: Tensor | None,
) -> Losses:  # fmt: skip
    square = error.square()
    # The plain error, by which runs are compared: neither weight nor mask.
    unweighted = square.flatten(1).mean(1)
    if huber is None and mask is None:
        return Losses(gather(weights, t) * unweighted, unweighted)
    # w(t) · mean m ρ(d): the mask multiplies, and its sum does not divide.
    each = square
    if huber is not None:
        each = pseudo_huber(error, gather(huber, t).reshape(-1, *[1] * (error.ndim - 1)))
    if mask is not None:
        each = mask.float() * each
    return Losses(gather(weights, t) * each.flatten(1).mean(1), unweighted)


def _check_tables(schedule: NoiseSchedule, weights: Tensor, huber: Tensor | None) -> None:
    if weights.shape != schedule.alphas_cumprod.shape:
        raise ValueError(f"{len(weights)} weights for {schedule.timesteps} timesteps")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights must be finite and not negative")
    if huber is not None and (huber.shape != weights.shape or not bool((huber.isfinite() & (huber > 0)).all())):
        raise ValueError(f"huber must be a finite number above 0 for each of {schedule.timesteps} timesteps")
