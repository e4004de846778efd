"""Stochastic rounding to bfloat16, with random bits that are a function and have no state.

bfloat16 keeps 8 bits of a number. An update smaller than half of the last one is lost when the sum is rounded to the
nearest, every time, so that training with small rates stands still. Rounded up with the probability of what is cut
off, the same update is right on average (Gupta et al. 1502.02551).

The bits are a hash of (seed, step, parameter, purpose) and the element's number, in whole 32-bit arithmetic: the same
on a CPU, on any GPU, after a restart, and for a shard as for the whole. A device's own generator promises none of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float32, Int32
from torch import Tensor

from terminus import runtime

_LOW_HALF = 0xFFFF


@dataclass(frozen=True)
class Dice:
    """Random bits for one parameter in one step."""

    seed: int
    step: int
    name: str
    """The parameter's name."""
    start: int = 0
    """Number of the first element here, where a process holds a later part of the parameter."""

    def bits(self, purpose: str, like: Tensor) -> Int32[Tensor, "..."]:
        """32 random bits for each element of a tensor, in the order of its indices."""
        key = runtime.key(self.seed, self.step, f"rounding: {purpose} of {self.name}")
        numbers = torch.arange(self.start, self.start + like.numel(), dtype=torch.int32, device=like.device)
        # Two rounds, each with half of the key: with one, all keys would walk through the same cycle of numbers.
        mixed = _mix(_mix(numbers.bitwise_xor_(_signed(key))).bitwise_xor_(_signed(key >> 31)))
        return mixed.view(like.shape)


def stochastic(x: Float32[Tensor, "*shape"], bits: Int32[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """x rounded to one of its two neighbours in bfloat16, to the nearer one more often: right on average.

    Uses the lower 16 of the random bits. What bfloat16 can say stays as it is; so do infinity and NaN.
    """
    # The upper half of a float32 is its bfloat16; what is added to the lower half carries over as often as it should.
    carried = (x.view(torch.int32) + (bits & _LOW_HALF)) & ~_LOW_HALF
    return carried.view(torch.float32).to(torch.bfloat16)


def _mix(x: Int32[Tensor, "..."]) -> Int32[Tensor, "..."]:
    """A bijection of 32-bit numbers in which every bit of the input moves half of the output's; in place.

    The two-multiply mixer "lowbias32" of C. Wellons' search for hash functions (public domain).
    """
    x.bitwise_xor_(_shifted(x, 16)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shifted(x, 15)).mul_(_signed(0x846CA68B))
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: Int32[Tensor, "..."], places: int) -> Int32[Tensor, "..."]:
    """To the right, filled with zeros: torch's own shift fills with the sign."""
    return (x >> places).bitwise_and_((1 << (32 - places)) - 1)


def _signed(number: int) -> int:
    """The lower 32 bits as a signed number."""
    low = number & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low
