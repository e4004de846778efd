"""Fidelity and variety apart: precision, recall, density and coverage by nearest neighbours of features.

A set's manifold is the union of balls around its images, each as wide as the distance to its k-th neighbour in the
same set. Precision and recall: Kynkäänniemi et al. 1904.06991; density and coverage: Naeem et al. 2002.09797.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from terminus.evaluation.distribution.frechet import Features

NEIGHBOURS = 5
"""k, as in both papers' code for sets of any size."""
_ROWS = 2048


@dataclass(frozen=True)
class Manifold:
    """Shares of images in the other set's manifold; all but density lie in 0..1."""

    precision: float
    """Share of drawn images inside the real manifold: fidelity."""
    recall: float
    """Share of real images inside the drawn manifold: variety."""
    density: float
    """How many real balls hold a drawn image, over k: as precision, but an outlier's wide ball counts once."""
    coverage: float
    """Share of real images whose ball holds a drawn image."""
    neighbours: int


def measure_manifold(drawn: Features, real: Features, neighbours: int = NEIGHBOURS) -> Manifold | None:
    """None where a set has no more than `neighbours` images, so that a k-th neighbour does not exist."""
    if min(len(drawn), len(real)) <= neighbours:
        return None
    drawn, real = drawn.astype(np.float64), real.astype(np.float64)
    around_real, around_drawn = _radii(real, neighbours), _radii(drawn, neighbours)
    inside, reached, balls, covered = 0, np.zeros(len(real), dtype=bool), 0, np.zeros(len(real), dtype=bool)
    for start in range(0, len(drawn), _ROWS):
        rows = slice(start, start + _ROWS)
        apart = squared_distances(drawn[rows], real)
        held = apart <= around_real
        inside += int(held.any(axis=1).sum())
        balls += int(held.sum())
        covered |= held.any(axis=0)
        reached |= (apart <= around_drawn[rows, None]).any(axis=0)
    return Manifold(
        precision=inside / len(drawn),
        recall=float(reached.mean()),
        density=balls / (neighbours * len(drawn)),
        coverage=float(covered.mean()),
        neighbours=neighbours,
    )


def squared_distances(first: Features, second: Features) -> Float[np.ndarray, "first second"]:
    """Squared Euclidean distances of all pairs of rows."""
    lengths = (first * first).sum(axis=1)[:, None] + (second * second).sum(axis=1)
    return (lengths - 2 * first @ second.T).clip(min=0)


def _radii(rows: Features, neighbours: int) -> Float[np.ndarray, " images"]:
    """Squared distance of each row to its k-th neighbour; the row itself is its 0-th."""
    parts: list[np.ndarray] = []
    for start in range(0, len(rows), _ROWS):
        apart = squared_distances(rows[start : start + _ROWS], rows)
        places = np.arange(len(apart))
        apart[places, start + places] = 0.0
        parts.append(np.partition(apart, neighbours, axis=1)[:, neighbours])
    return np.concatenate(parts)
