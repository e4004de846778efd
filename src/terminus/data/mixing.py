"""The mix of sources: exact shares of the images that training sees, not shares of the files that happen to be there.

`data.mix: {anchor: 0.1}` gives the source `anchor` one of every ten units. A unit is a sample where all rows are of one
bucket, else a whole micro-batch, since a micro-batch holds one bucket and two sources may have no bucket in common.

The units follow a cycle as long as the least common denominator of the shares; whatever repeats itself every ten units
has the same content in every window of ten. Each source's units are filled from its own endless passes, so one that
runs out begins another pass. Nothing is drawn and nothing is kept: as in `Order`, any place is computed directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Protocol, runtime_checkable

from terminus import runtime
from terminus.data.batch import Rows
from terminus.data.order import BatchOrder, MicroBatch, Order
from terminus.data.settings import DataConfig
from terminus.errors import UserError


@runtime_checkable
class RowsBySource(Rows, Protocol):
    """Rows that know where they come from."""

    @property
    def sources(self) -> tuple[dict[str, int], ...]:
        """The number of rows of each bucket that are of each source, in the order in which they are numbered."""
        ...


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of one bucket, each of which comes `repeats` times in a pass."""

    first: int
    count: int
    repeats: int = 1


@dataclass(frozen=True)
class Stream:
    """Endless passes over some of the rows."""

    share: Fraction
    """Of all units."""
    seed: int
    buckets: tuple[int, ...]
    """Those in which it has rows."""
    parts: tuple[tuple[RowRange, ...], ...]
    """Its rows in each of these."""

    def order(self, unit: int) -> Order:
        """Its units of so many samples, counted as if it were alone."""
        sizes = tuple(sum(part.count * part.repeats for part in parts) for parts in self.parts)
        return Order(self.seed, sizes, unit)

    def row(self, bucket: int, place: int) -> int:
        """The row of the bucket (an index into `buckets`) at a place among its rows and their repeats."""
        for part in self.parts[bucket]:
            if place < part.count * part.repeats:
                return part.first + place % part.count
            place -= part.count * part.repeats
        raise ValueError(f"place {place} lies behind the last row of bucket {self.buckets[bucket]}")


@dataclass(frozen=True)
class Mixed:
    """`mixed[i]` is micro-batch i of the whole run, for any i >= 0, as of an `Order`."""

    streams: tuple[Stream, ...]
    """Their shares add up to 1."""
    micro_batch: int
    unit: int
    """Samples that are of one stream: 1 where there is one bucket, else the whole micro-batch."""

    def __post_init__(self) -> None:
        if sum(stream.share for stream in self.streams) != 1 or self.unit not in (1, self.micro_batch):
            raise ValueError(f"shares {[str(stream.share) for stream in self.streams]}, units of {self.unit}")

    @cached_property
    def cycle(self) -> tuple[int, ...]:
        """Which stream has each unit, from the first until it repeats itself.

        Each unit goes to the stream that has had least of what it should have. What is owed to any stream stays above
        -1 (the one chosen is owed something, since all debts add up to one unit) and is a whole number at the end of
        the cycle, where all add up to 0: there every stream has had exactly its share.
        """
        # After this many units every share is a whole number of units.
        length = lcm(*(stream.share.denominator for stream in self.streams))
        had = [0] * len(self.streams)
        chosen: list[int] = []
        for unit in range(length):
            # What each should have had by the end of this unit, less what it has had: exact, in fractions.
            owed = [(unit + 1) * stream.share - units for stream, units in zip(self.streams, had, strict=True)]
            chosen.append(owed.index(max(owed)))
            had[chosen[-1]] += 1
        return tuple(chosen)

    @cached_property
    def _orders(self) -> tuple[Order, ...]:
        return tuple(stream.order(self.unit) for stream in self.streams)

    @cached_property
    def _before(self) -> tuple[tuple[int, ...], ...]:
        """How many units of each stream there are before each unit of the cycle, and in all of it."""
        counts = [[0] * len(self.streams)]
        for chosen in self.cycle:
            counts.append([count + (stream == chosen) for stream, count in enumerate(counts[-1])])
        return tuple(map(tuple, counts))

    def __getitem__(self, index: int) -> MicroBatch:
        # Several buckets: one unit, so that all rows are of one bucket. One bucket: a unit for each sample.
        each = self.micro_batch // self.unit
        bucket, rows = 0, list[int]()
        for unit in range(index * each, (index + 1) * each):
            chosen = self.cycle[unit % len(self.cycle)]
            stream, place = self.streams[chosen], self._orders[chosen][self._passed(chosen, unit)]
            bucket = stream.buckets[place.bucket]
            rows += [stream.row(place.bucket, row) for row in place.rows]
        return MicroBatch(bucket, tuple(rows), self._epoch(index * each))

    def passes(self, samples: int) -> tuple[float, ...]:
        """How often each stream has gone through its rows and their repeats within the first samples of the run."""
        units = samples // self.unit
        had = (self._passed(stream, units) * self.unit for stream in range(len(self.streams)))
        return tuple(count / sum(order.sizes) for count, order in zip(had, self._orders, strict=True))

    def _passed(self, stream: int, unit: int) -> int:
        """How many units the stream has had before this one."""
        cycles, place = divmod(unit, len(self.cycle))
        return cycles * self._before[-1][stream] + self._before[place][stream]

    def epochs(self, samples: int) -> float:
        """Those of the stream with the largest share, as `Place.epoch` counts them."""
        return self.passes(samples)[self._largest]

    def _epoch(self, unit: int) -> int:
        return self._orders[self._largest].epoch(self._passed(self._largest, unit))

    @cached_property
    def _largest(self) -> int:
        return max(range(len(self.streams)), key=lambda stream: self.streams[stream].share)


def order_of(rows: Rows, data: DataConfig, seed: int, micro_batch: int) -> BatchOrder:
    """The order in which training sees the rows: by their number, or as `data.mix` says.

    `UserError` if a source that it names has no rows, or shares leave nothing for the others.
    """
    if not data.mix:
        return Order(seed, rows.sizes, micro_batch)
    if not isinstance(rows, RowsBySource):
        raise TypeError("rows that do not know their sources cannot be mixed")
    present = {name for bucket in rows.sources for name in bucket}
    for name in data.mix:
        if name not in present:
            raise UserError(
                f"the source {name} has no images to train on",
                where="data.mix",
                rule="A source that is mixed in has images of this transform and VAE",
                fix="Correct the source, and run `terminus prepare` with this recipe, or do not name it there.",
            )
    # A stream for each source that has a share, each with a seed of its own: their passes do not run in step.
    shares, repeats = data.shares, data.repeats
    streams = [_stream(rows, {name: 1}, part, runtime.key(seed, 0, f"source {name}")) for name, part in shares.items()]
    # All others are one stream, with the seed of a run without shares.
    others = {name: repeats.get(name, 1) for name in sorted(present - set(shares))}
    rest = Fraction(1) - sum(shares.values())
    # There is a rest exactly where there are others to divide it.
    if bool(others) != (rest > 0):
        raise UserError(
            f"the shares add up to {float(1 - rest):g}, and "
            + (f"{', '.join(others)} would never be seen" if others else "no other source has images for the rest"),
            where="data.mix",
            rule="What has no share there divides the rest by its images; if everything has one, the sum is 1",
            fix="Change the shares.",
        )
    if others:
        streams.append(_stream(rows, others, rest, seed))
    return Mixed(tuple(streams), micro_batch, 1 if len(rows.sizes) == 1 else micro_batch)


def epochs(order: BatchOrder, rows: Rows, data: DataConfig, samples: int) -> dict[str, float]:
    """By source: images drawn within the first samples of a run, divided by the images there; {} where they have no
    names. `order` is that of `order_of`. What is repeated counts each time."""
    if not isinstance(rows, RowsBySource):
        return {}
    present = {name for bucket in rows.sources for name in bucket}
    # Unmixed, all sources are gone through together.
    if not isinstance(order, Mixed):
        return dict.fromkeys(sorted(present), samples / sum(rows.sizes))
    passes = order.passes(samples)  # in the order of the streams: what has a share, then all others together
    shared = dict(zip(data.shares, passes, strict=False))
    return {name: shared.get(name, passes[-1] * data.repeats.get(name, 1)) for name in sorted(present)}


def _stream(rows: RowsBySource, repeats: Mapping[str, int], part: Fraction, seed: int) -> Stream:
    found = [_parts(bucket, repeats) for bucket in rows.sources]
    buckets = [bucket for bucket, parts in enumerate(found) if parts]
    return Stream(part, seed, tuple(buckets), tuple(found[bucket] for bucket in buckets))


def _parts(bucket: Mapping[str, int], repeats: Mapping[str, int]) -> tuple[RowRange, ...]:
    parts: list[RowRange] = []
    first = 0
    for name, count in bucket.items():
        if name in repeats:
            parts.append(RowRange(first, count, repeats[name]))
        first += count
    return tuple(parts)
