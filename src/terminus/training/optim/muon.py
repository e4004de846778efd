"""Muon: the step of a matrix is its momentum with all singular values brought near 1.

Jordan et al. (kellerjordan.github.io/posts/muon, 2024), at the scale of Liu et al. 2502.16982, which makes a step as
large as AdamW's usually is late in training. For networks from random weights whose training is short of steps rather
than of images: what it costs per step does not depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from terminus.training.optim.low_memory import AdamWRule
from terminus.training.optim.moment_formats import State
from terminus.training.optim.stochastic_rounding import Dice

_TABLES = ("token_embedding.weight", "position_embedding.weight")
"""Matrices that are looked up row by row: a row without a gradient must not move."""


@dataclass(frozen=True)
class MuonRule:
    """Matrices and kernels by Muon, a kernel as a matrix with one row for each output channel; the rest by AdamW."""

    momentum: float
    vectors: AdamWRule
    """For biases, norms and embedding tables."""
    whole: bool = True

    def begin(self, name: str, state: State, weights: Float32[Tensor, "..."]) -> None:
        """A momentum of zero, or what AdamW begins with."""
        # DoRA's magnitudes of a convolution have four dimensions and are a vector all the same.
        if weights.ndim < 2 or name.endswith(_TABLES) or "magnitude" in name:
            self.vectors.begin(name, state, weights)
        else:
            state["momentum"] = torch.zeros_like(weights)

    def update(
        self, weights: Float32[Tensor, "*shape"], gradient: Float32[Tensor, "*shape"], state: State, step: int,
        rate: float, decay: float, dice: Dice,
    ) -> None:  # fmt: skip
        """Nesterov's momentum, orthogonalised; decoupled weight decay."""
        if "momentum" not in state:
            self.vectors.update(weights, gradient, state, step, rate, decay, dice)
            return
        momentum = state["momentum"].lerp_(gradient, 1 - self.momentum)
        # Nesterov's momentum: the gradient counts once more, as if one step ahead.
        ahead = gradient.lerp(momentum, self.momentum).view(len(weights), -1)
        direction = orthogonal(ahead).view(weights.shape)
        # An orthogonal matrix has a root mean square of 1 / sqrt(max(rows, columns)); the step's becomes 0.2.
        weights.mul_(1 - rate * decay).sub_(direction, alpha=rate * 0.2 * sqrt(max(ahead.shape)))


def orthogonal(matrix: Float[Tensor, "rows columns"], steps: int = 5) -> Float32[Tensor, "rows columns"]:
    """U V^T of the matrix's singular value decomposition, with singular values of about 0.7 to 1.2 in place of 1.

    Newton-Schulz with the coefficients of Jordan et al., in bfloat16 on a GPU.
    """
    # Wide, for the product with its transpose is then the smaller one.
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if matrix.is_cuda:
        wide = wide.bfloat16()
    # Singular values of at most 1, from which the iteration converges.
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        # x becomes 3.4445 x - 4.7750 (x x^T) x + 2.0315 (x x^T)^2 x: each singular value moves towards 1.
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x if wide.shape == matrix.shape else x.T).float()
