"""The Fréchet distance of two Gaussians fitted to features (Heusel et al. 1706.08500, eq. 6): FID on Inception's.

    d² = |m1 − m2|² + tr(C1 + C2 − 2 (C1 C2)^½)

The trace of the root is taken from symmetric matrices only: C1 C2 has the eigenvalues of C1^½ C2 C1^½, which is
symmetric and positive. So nothing turns complex, and singular covariances (fewer images than features) need no offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "_ features"]


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features."""

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    """With n − 1 in the denominator."""


def fit_gaussian(features: Features) -> Gaussian:
    """The Gaussian of at least two rows of features, in float64."""
    rows = features.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    return Gaussian(rows.mean(axis=0), centred.T @ centred / (len(rows) - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The squared distance, as everybody quotes it; 0 for equal Gaussians."""
    shift = first.mean - second.mean
    root = _root(first.covariance)
    product = root @ second.covariance @ root
    # Rounding leaves eigenvalues a little below zero where a covariance is singular.
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    return float(max(0.0, shift @ shift + spread))


def _root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The symmetric root of a symmetric, positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
