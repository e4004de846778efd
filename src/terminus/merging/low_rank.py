"""A difference of weights as two factors: the best of their rank (Eckart and Young), by the smaller Gram matrix.

D = U S Vᵀ. The eigenvectors of D Dᵀ (or DᵀD, whichever is smaller) in float64 are one side; the other is D's projection
on them, which needs no division, so that at full rank the product is D however small its last singular values are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from terminus.merging.arguments import AdapterSize

LEAST = 1e-12
"""Squared singular values below this part of the largest are float32's rounding of the others."""


@dataclass(frozen=True)
class Factors:
    """D ≈ up · down, float32."""

    down: Float[Tensor, "rank *inputs"]
    up: Float[Tensor, "out rank *ones"]
    lost: float
    """‖D − up · down‖², of which `whole` is ‖D‖²."""
    whole: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def factorise(difference: Float[Tensor, "out *inputs"], size: AdapterSize) -> Factors | None:
    """Factors of one module's difference, of a rank or as small as the error allows; None for a difference of nothing.

    A convolution's is taken as the matrix [out, in · height · width], as LoRA has it.
    """
    matrix = difference.double().flatten(1)
    whole = float(matrix.square().sum())
    if whole == 0:
        return None
    # Eigenvalues are the squared singular values, here from the largest on.
    tall = matrix.shape[0] > matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = _rank(values, whole, size)
    side = vectors[:, :rank]
    other = matrix @ side if tall else side.T @ matrix
    # Both factors get the root of each singular value, so that neither has numbers out of proportion.
    scale = other.norm(dim=0 if tall else 1).clamp(min=LEAST * whole**0.5).sqrt()
    up, down = (other / scale, (side * scale).T) if tall else (side * scale, other / scale[:, None])
    lost = max(whole - float(other.square().sum()), 0.0)
    ones = (1,) * (difference.ndim - 2)
    return Factors(
        down.reshape(rank, *difference.shape[1:]).float().contiguous(),
        up.reshape(-1, rank, *ones).float().contiguous(),
        lost,
        whole,
    )


def _rank(values: Float[Tensor, " side"], whole: float, size: AdapterSize) -> int:
    """How many singular values are kept, never those that are rounding alone."""
    real = int((values > LEAST * values[0]).sum())
    if size.rank is not None:
        return min(size.rank, real)
    # The smallest rank after which no more than the error is left.
    left = whole - values.cumsum(0)
    allowed = (size.error or 0.0) ** 2 * whole
    enough = int((left > allowed).sum()) + 1
    return min(enough, real)
