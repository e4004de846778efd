"""Which timestep each training sample is noised to.

Pure functions of uniforms that the caller draws per sample, so the answer does not depend on how a global
batch is cut into processes and micro-batches.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int
from torch import Generator, Tensor


def uniform(u: Float64[Tensor, "batch"], timesteps: int) -> Int[Tensor, "batch"]:
    """Each of 0 .. T−1 equally likely, from `u` in [0, 1)."""
    return (u * timesteps).long().clamp(max=timesteps - 1)


def stratified(
    u: Float64[Tensor, "batch"], position: Int[Tensor, "batch"], global_batch: int, timesteps: int
) -> Int[Tensor, "batch"]:
    """One sample from each of `global_batch` equal slices of the timesteps: uniform, with less variance.

    t = floor((position + u) / B × T), the low-discrepancy sampler of Kingma et al. 2107.00630
    with its points drawn independently. `position` is the slice of each sample, 0 .. B−1, normally
    `slices(...)[place in the global batch]`: used bare, an ordered batch (one anchor image in every ten)
    would show each kind of image the same timesteps for ever.
    """
    if bool(((position < 0) | (position >= global_batch)).any()):
        raise ValueError(f"position must be in 0 .. {global_batch - 1}, got {position.tolist()}")
    return uniform((position + u) / global_batch, timesteps)


def slices(generator: Generator, global_batch: int) -> Int[Tensor, "global_batch"]:
    """The slice of the timesteps that each place in this step's global batch draws from: a permutation."""
    return torch.randperm(global_batch, generator=generator)
