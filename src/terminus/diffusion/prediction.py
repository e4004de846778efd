"""The quantities that a network may predict, and the exact conversions between them.

All follow from two lines (Salimans & Ho 2202.00512, appendix D), a rotation by the angle whose cosine is
alpha, so none of the velocity forms divides by anything:

    x = alpha x0 + sigma epsilon
    v = alpha epsilon − sigma x0

alpha and sigma are floats, or tensors that broadcast against the latents.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "batch *shape"]


def noised(x0: Latents, epsilon: Latents, alpha: Tensor | float, sigma: Tensor | float) -> Latents:
    """x_t, the latent that the network sees."""
    return alpha * x0 + sigma * epsilon


def velocity(x0: Latents, epsilon: Latents, alpha: Tensor | float, sigma: Tensor | float) -> Latents:
    """v, the target. Where alpha = 0 it is −x0: the whole image, from nothing but the prompt."""
    return alpha * epsilon - sigma * x0


def x0_from_velocity(x: Latents, v: Latents, alpha: Tensor | float, sigma: Tensor | float) -> Latents:
    """The clean latent that x and v imply."""
    return alpha * x - sigma * v


def epsilon_from_velocity(x: Latents, v: Latents, alpha: Tensor | float, sigma: Tensor | float) -> Latents:
    """The noise that x and v imply."""
    return sigma * x + alpha * v


def x0_from_epsilon(x: Latents, epsilon: Latents, alpha: Tensor | float, sigma: Tensor | float) -> Latents:
    """The clean latent that x and epsilon imply; ValueError where alpha = 0, since x holds no x0 there."""
    if bool((torch.as_tensor(alpha) == 0).any()):
        raise ValueError(
            "x0 cannot be had from epsilon where alpha is 0; a zero-terminal-SNR model must predict velocity"
        )
    return (x - sigma * epsilon) / alpha
