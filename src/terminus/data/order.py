"""Which rows are in which micro-batch: a pure function of (seed, bucket sizes, index).

Nothing is shuffled in memory and nothing is saved: a keyed permutation answers "which row is at place i of epoch e"
in constant time, so a run resumes from one integer and the order is the same on any number of processes.

Each bucket is an endless stream of whole passes over its rows, every pass in another order; micro-batches take
consecutive places of it. Epoch e has floor(n·(e+1)/m) − floor(n·e/m) micro-batches of a bucket with n rows, so
that each image is used exactly once per pass also when m does not divide n, and buckets mix by their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol, runtime_checkable

_ROUNDS = 4


def permuted(index: int, size: int, key: str) -> int:
    """A bijection of range(size), chosen by `key`: a Feistel network with cycle walking.

    The expected number of walks is below 4, since the network's domain is less than four times `size`.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is not in range({size})")
    # Two halves of the same number of bits, which together hold every number of the range.
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        # One pass of the network: each round mixes one half into the other, which can be undone, so it is a bijection.
        for round_ in range(_ROUNDS):
            digest = blake2b(f"{key}:{round_}:{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = (left << half) | right
        # Outside the range the walk goes on from there; the cycle leads back to its start, so it always ends.
        if index < size:
            return index


@dataclass(frozen=True)
class MicroBatch:
    """The contents of one micro-batch: row numbers within one bucket, and the epoch it belongs to."""

    bucket: int
    rows: tuple[int, ...]
    epoch: int


@runtime_checkable
class BatchOrder(Protocol):
    """The order that a loader follows: any rule that says what is in which micro-batch, in constant memory."""

    @property
    def micro_batch(self) -> int:
        """Rows in each micro-batch."""
        ...

    def __getitem__(self, index: int) -> MicroBatch:
        """Micro-batch `index` of the whole run, for any index >= 0."""
        ...


@dataclass(frozen=True)
class Order:
    """`order[i]` is micro-batch i of the whole run, for any i >= 0."""

    seed: int
    sizes: tuple[int, ...]
    """Rows in each bucket."""
    micro_batch: int

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or self.micro_batch < 1:
            raise ValueError(f"an order needs rows: buckets {self.sizes}, micro-batch {self.micro_batch}")

    def __getitem__(self, index: int) -> MicroBatch:
        # The epoch that this micro-batch is in, and how many each bucket has in it.
        epoch = self.epoch(index)
        start = self._batches_before(epoch)
        counts = [self._bucket_batches(size, epoch + 1) - self._bucket_batches(size, epoch) for size in self.sizes]
        # Its slot among all of the epoch, shuffled; slots are numbered bucket after bucket.
        slot = permuted(index - start, sum(counts), f"{self.seed}:epoch:{epoch}")
        bucket = 0
        while slot >= counts[bucket]:
            slot -= counts[bucket]
            bucket += 1
        size = self.sizes[bucket]
        # From there on, consecutive places of the bucket's endless stream.
        first = (self._bucket_batches(size, epoch) + slot) * self.micro_batch
        return MicroBatch(
            bucket, tuple(self._row(bucket, place) for place in range(first, first + self.micro_batch)), epoch
        )

    def _row(self, bucket: int, place: int) -> int:
        size = self.sizes[bucket]
        return permuted(place % size, size, f"{self.seed}:bucket:{bucket}:pass:{place // size}")

    def _bucket_batches(self, size: int, epochs: int) -> int:
        return size * epochs // self.micro_batch

    def _batches_before(self, epoch: int) -> int:
        return sum(self._bucket_batches(size, epoch) for size in self.sizes)

    def epoch(self, index: int) -> int:
        """The last epoch that starts at or before micro-batch `index`."""
        # An epoch that starts later, by doubling; then by bisection between it and the last that does not.
        low, high = 0, 1
        while self._batches_before(high) <= index:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._batches_before(middle) <= index else (low, middle)
        return low


def positions(step: int, micro: int, global_batch: int, micro_batch: int) -> Sequence[int]:
    """The running numbers of the samples in micro-batch `micro` of a step: the root of their randomness."""
    first = step * global_batch + micro * micro_batch
    return range(first, first + micro_batch)
