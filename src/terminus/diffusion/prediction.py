"""The quantities that a network may predict, and the exact conversions between them.

All follow from two lines, of which the second is the derivative of the first along the schedule:

    x = alpha x0 + sigma epsilon
    v = a epsilon − b x0            with a alpha + b sigma = 1

On a variance-preserving schedule (a, b) is (alpha, sigma), and (x, v) is (x0, epsilon) turned by the angle whose
cosine is alpha (Salimans & Ho 2202.00512, appendix D). On a rectified flow (a, b) is (1, 1), and v = epsilon − x0 (Liu
et al. 2209.03003). `NoiseSchedule.rates` gives them. Since the sum is 1, none of the velocity forms divides by
anything.

The coefficients are floats, or tensors that broadcast against the latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

PredictionType = Literal["velocity", "flow", "epsilon"]
"""`flow` is the velocity of a rectified flow, `velocity` that of a variance-preserving schedule."""
Latents = Float[Tensor, "batch *shape"]


def noised(x0: Latents, epsilon: Latents, alpha: Tensor | float, sigma: Tensor | float) -> Latents:
    """x_t, the latent that the network sees."""
    return alpha * x0 + sigma * epsilon


def velocity(x0: Latents, epsilon: Latents, a: Tensor | float, b: Tensor | float) -> Latents:
    """v, the target. Where alpha = 0 it is −x0 or epsilon − x0: the whole image, from nothing but the prompt."""
    return a * epsilon - b * x0


def x0_from_velocity(x: Latents, v: Latents, a: Tensor | float, sigma: Tensor | float) -> Latents:
    """The clean latent that x and v imply."""
    return a * x - sigma * v


def epsilon_from_velocity(x: Latents, v: Latents, alpha: Tensor | float, b: Tensor | float) -> Latents:
    """The noise that x and v imply."""
    return b * x + alpha * v


def x0_from_epsilon(x: Latents, epsilon: Latents, alpha: Tensor | float, sigma: Tensor | float) -> Latents:
    """The clean latent that x and epsilon imply; ValueError where alpha = 0, since x holds no x0 there."""
    if bool((torch.as_tensor(alpha) == 0).any()):
        raise ValueError(
            "x0 cannot be had from epsilon where alpha is 0; a zero-terminal-SNR model must predict velocity"
        )
    return (x - sigma * epsilon) / alpha
