"""Maximum mean discrepancies of features: KID with the cubic kernel, CMMD with a Gaussian one.

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y)          (Gretton et al. 2012, eq. 1)

KID (Bińkowski et al. 1801.01401) leaves the pairs of an image with itself out, which makes it unbiased: it may be
below zero. CMMD (Jayasumana et al. 2401.09603) keeps them, as published, so it is never negative and depends on n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terminus.evaluation.distribution.frechet import Features

SUBSETS, SUBSET_SIZE = 100, 1000
"""Of KID, as published."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_ROWS = 2048
"""Rows of a kernel matrix that are in memory at once."""


@dataclass(frozen=True)
class KernelDistance:
    """KID: the mean over subsets of both sets, and how much it varies between them."""

    mean: float
    std: float
    """Over subsets; 0 where both sets are smaller than a subset and are taken whole, once."""
    subsets: int
    subset_size: int


def kid(first: Features, second: Features, seed: int = 0) -> KernelDistance:
    """KID of two sets of at least two rows each, by subsets of `SUBSET_SIZE` that the seed draws.

    Sets that are no larger than that are compared whole, which is the same estimate without the noise of drawing.
    """
    size = min(SUBSET_SIZE, len(first), len(second))
    if max(len(first), len(second)) <= SUBSET_SIZE:
        return KernelDistance(_unbiased(first, second), 0.0, 1, size)
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(SUBSETS):
        rows = rng.choice(len(first), size, replace=False), rng.choice(len(second), size, replace=False)
        found.append(_unbiased(first[rows[0]], second[rows[1]]))
    return KernelDistance(float(np.mean(found)), float(np.std(found)), SUBSETS, size)


def cmmd(first: Features, second: Features) -> float:
    """CMMD of features whose rows have length 1; 0 for equal sets."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    within = _gaussian_sum(a, a) / len(a) ** 2 + _gaussian_sum(b, b) / len(b) ** 2
    # Rounding can leave the difference of equal sets a little below zero.
    return max(0.0, CMMD_SCALE * float(within - 2 * _gaussian_sum(a, b) / (len(a) * len(b))))


def _unbiased(first: Features, second: Features) -> float:
    a, b = first.astype(np.float64), second.astype(np.float64)
    across = _cubic_sum(a, b) / (len(a) * len(b))
    return float(_between_others(a) + _between_others(b) - 2 * across)


def _between_others(rows: Features) -> float:
    """Mean of the cubic kernel over pairs of different rows."""
    themselves = float((((rows * rows).sum(axis=1) / rows.shape[1] + 1) ** 3).sum())
    return (_cubic_sum(rows, rows) - themselves) / (len(rows) * (len(rows) - 1))


def _cubic_sum(first: Features, second: Features) -> float:
    """Sum over all pairs of (x·y / features + 1)³."""
    total = 0.0
    for start in range(0, len(first), _ROWS):
        base = first[start : start + _ROWS] @ second.T / first.shape[1] + 1
        total += float((base * base * base).sum())  # numpy's power takes twenty times as long
    return total


def _gaussian_sum(first: Features, second: Features) -> float:
    """Sum over all pairs of exp(−|x − y|² / 2σ²)."""
    total, lengths = 0.0, (second * second).sum(axis=1)
    for start in range(0, len(first), _ROWS):
        part = first[start : start + _ROWS]
        squared = (part * part).sum(axis=1)[:, None] + lengths - 2 * part @ second.T
        total += float(np.exp(-squared.clip(min=0) / (2 * CMMD_SIGMA**2)).sum())
    return total
