"""The mathematics of merging, element by element, so that a tensor can be merged in pieces of any size.

Weighted sum and added difference are sums of products. TIES (Yadav et al., 2306.01708) and DARE (Yu et al.,
2311.03099) work on the differences from a base, tau_t = theta_t − theta_base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Piece = Float[Tensor, "*shape"]
_BINS, _LOW = 1 << 15, 1 << 16
"""A magnitude in float32 has 31 bits: 15 that are counted first, and 16 below them."""


def weighted(pieces: Sequence[Piece], coefficients: Sequence[float]) -> Piece:
    """Sum of c_i θ_i in float64. A model with coefficient 0 is left out: 1 · B + 0 · A is B, to the bit."""
    total: Tensor | None = None
    for piece, coefficient in zip(pieces, coefficients, strict=True):
        if coefficient != 0:
            part = piece.double() * coefficient
            total = part if total is None else total.add_(part)
    return torch.zeros_like(pieces[0], dtype=torch.float64) if total is None else total


def model_difference(piece: Piece, base: Piece) -> Piece:
    """tau = theta − theta_base, float32."""
    return piece.float() - base.float()


def ties(base: Piece, tuned: Sequence[Piece], weights: Sequence[float], thresholds: Sequence[float]) -> Piece:
    """TIES: trim, elect the sign, mean of those that agree (algorithm 1 of the paper); float64.

    `thresholds` are the magnitudes from which each difference is kept. A weight multiplies its difference before the
    election; equal ones are the paper's lambda.
    """
    total = torch.zeros_like(base, dtype=torch.float32)
    trimmed: list[Tensor] = []
    for piece, weight, threshold in zip(tuned, weights, thresholds, strict=True):
        tau = model_difference(piece, base)
        tau = torch.where(tau.abs() >= threshold, tau, 0.0) * weight
        trimmed.append(tau)
        total += tau
    # gamma = sgn(sum of tau_t), and the mean over the models whose own sign that is.
    elected = total.sign()
    agreed, count = torch.zeros_like(total), torch.zeros_like(total)
    for tau in trimmed:
        agrees = (tau.sign() == elected) & (tau != 0)
        agreed += torch.where(agrees, tau, 0.0)
        count += agrees
    return base.double() + (agreed / count.clamp(min=1)).double()


def dare(
    base: Piece, tuned: Sequence[Piece], weights: Sequence[float], density: float, generators: Sequence[torch.Generator]
) -> Piece:
    """DARE: drop each element with p = 1 − density, rescale by 1 / (1 − p), and add all up (task arithmetic); float64.

    Each model has a generator of its own, whose numbers decide what is dropped.
    """
    total = base.double()
    for piece, weight, generator in zip(tuned, weights, generators, strict=True):
        kept = torch.rand(base.shape, generator=generator) < density
        total += torch.where(kept, model_difference(piece, base) * (weight / density), 0.0)
    return total


class Magnitudes:
    """The k-th largest magnitude of more numbers than fit into memory: exact, in two passes over them.

    Magnitudes in float32 are ordered as their bits are, so counting the upper bits and then the lower ones finds it.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64)
        self.low = torch.zeros(_LOW, dtype=torch.int64)
        self._bin, self._left = -1, 0

    def count(self, tau: Piece) -> None:
        """First pass: every piece once."""
        self.counts += torch.bincount(_bits(tau) >> 16, minlength=_BINS)

    def choose(self, density: float) -> None:
        """Between the passes: the share of all numbers that is kept."""
        wanted = int(-(-density * int(self.counts.sum()) // 1))
        self._bin, self._left = _kth_from_above(self.counts, wanted)

    def refine(self, tau: Piece) -> None:
        """Second pass: every piece once more."""
        bits = _bits(tau)
        self.low += torch.bincount(bits[bits >> 16 == self._bin] & (_LOW - 1), minlength=_LOW)

    @property
    def threshold(self) -> float:
        """The magnitude from which numbers are kept."""
        lower, _ = _kth_from_above(self.low, self._left)
        return float(torch.tensor((self._bin << 16) + lower, dtype=torch.int32).view(torch.float32))


def _bits(tau: Piece) -> Tensor:
    return tau.abs().flatten().view(torch.int32).long()


def _kth_from_above(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the wanted-th number counted from the last bin, and its place in there."""
    wanted = max(1, min(wanted, int(counts.sum())))
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, torch.tensor(wanted)))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, wanted - before


def split_rows(shape: Iterable[int], most: int) -> list[slice]:
    """Slices of the first dimension that hold at most about `most` numbers each."""
    sides = list(shape)
    row = 1
    for side in sides[1:]:
        row *= side
    step = max(1, most // max(row, 1))
    return [slice(start, min(start + step, sides[0])) for start in range(0, sides[0], step)]
