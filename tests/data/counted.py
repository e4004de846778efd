"""Rows of several sources without a table, for tests of what is drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from terminus.data.batch import Batch
from terminus.data.caption import Caption
from terminus.data.order import MicroBatch

BOTH = (Caption("a", "test"), Caption("b", "test"))


@dataclass(frozen=True)
class Table:
    """Rows that are only counted; the key of each says bucket, number and source."""

    sources: tuple[dict[str, int], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(sum(bucket.values()) for bucket in self.sources)

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        keys = tuple(f"{bucket}/{row}/{self.source(bucket, row)}" for row in rows)
        return Batch(
            tuple(positions),
            keys,
            (BOTH,) * len(keys),
            (),
            torch.zeros(len(keys)),
            epoch,
        )

    def source(self, bucket: int, row: int) -> str:
        for name, count in self.sources[bucket].items():
            if row < count:
                return name
            row -= count
        raise AssertionError("no such row")

    def names(self, place: MicroBatch) -> list[str]:
        """The source of each sample of a micro-batch."""
        return [self.source(place.bucket, row) for row in place.rows]
