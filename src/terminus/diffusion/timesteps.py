"""Which timestep each training sample is noised to.

Pure functions of uniforms that the caller draws per sample, so the answer does not depend on how a global
batch is cut into processes and micro-batches. Each takes a `density` where some timesteps shall come more often than
others: the uniforms then pass through the inverse of its sum, so a stratified batch covers the density as evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Generator, Tensor


class Band(NamedTuple):
    """Timesteps `low` .. `high`, both included, and how often each comes, relative to those of other bands."""

    low: int
    high: int
    weight: float


def density(bands: Sequence[Band], timesteps: int) -> Float64[Tensor, "timesteps"]:
    """The probability of each timestep: constant in each band, 0 outside them."""
    table = torch.zeros(timesteps, dtype=torch.float64)
    taken = torch.zeros(timesteps, dtype=torch.bool)
    for band in bands:
        inside = slice(band.low, band.high + 1)
        if not 0 <= band.low <= band.high < timesteps:
            raise ValueError(f"timesteps are 0 to {timesteps - 1}, a band goes from {band.low} to {band.high}")
        if bool(taken[inside].any()):
            raise ValueError(f"the band from {band.low} to {band.high} overlaps another")
        if not 0 <= band.weight < float("inf"):
            raise ValueError(f"the weight of a band must be finite and not negative, got {band.weight}")
        table[inside], taken[inside] = band.weight, True
    if not float(table.sum()) > 0:
        raise ValueError("no band has a weight above 0: there is no timestep to draw")
    return table / table.sum()


def logit_normal(mean: float, std: float, timesteps: int) -> Float64[Tensor, "timesteps"]:
    """The probability of each timestep where log(τ / (1 − τ)) is normal; τ is its place, 1 at the noisy end.

    Esser et al. 2403.03206, section 3.1; timestep t has τ from t / T to (t + 1) / T. The middle comes most often, the
    ends hardly ever, and a negative mean turns it towards the image.
    """
    if not (std > 0 and isfinite(mean) and isfinite(std)):
        raise ValueError(f"a logit-normal density needs a finite mean and a std above 0, got {mean} and {std}")
    edges = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    return torch.special.ndtr((edges.logit() - mean) / std).diff()


def uniform_timesteps(
    u: Float64[Tensor, "batch"], timesteps: int, density: Float64[Tensor, "timesteps"] | None = None
) -> Int[Tensor, "batch"]:
    """Each of 0 .. T−1 equally likely, or as likely as `density` says, from `u` in [0, 1)."""
    if density is None:
        # u T may round up to T.
        return (u * timesteps).long().clamp(max=timesteps - 1)
    # t = F^-1(u), where F is the sum of the density.
    upto = density.cumsum(0)
    # Strictly above u, so that a timestep of density 0 is never met; the last possible one, where the sum rounds to u.
    return torch.searchsorted(upto, u * upto[-1], right=True).clamp(max=int(density.nonzero().max()))


def stratified(
    u: Float64[Tensor, "batch"],
    position: Int[Tensor, "batch"],
    global_batch: int,
    timesteps: int,
    density: Float64[Tensor, "timesteps"] | None = None,
) -> Int[Tensor, "batch"]:
    """One sample from each of `global_batch` equal slices of the timesteps: uniform, with less variance.

    t = floor((position + u) / B × T), the low-discrepancy sampler of Kingma et al. 2107.00630
    with its points drawn independently; with a `density`, the slices are of equal probability. `position` is the
    slice of each sample, 0 .. B−1, normally `slices(...)[place in the global batch]`: used bare, an ordered batch
    (one anchor image in every ten) would show each kind of image the same timesteps for ever.
    """
    if bool(((position < 0) | (position >= global_batch)).any()):
        raise ValueError(f"position must be in 0 .. {global_batch - 1}, got {position.tolist()}")
    return uniform_timesteps((position + u) / global_batch, timesteps, density)


def slices(generator: Generator, global_batch: int) -> Int[Tensor, "global_batch"]:
    """The slice of the timesteps that each place in this step's global batch draws from: a permutation."""
    return torch.randperm(global_batch, generator=generator)
