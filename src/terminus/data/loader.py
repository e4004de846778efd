"""Batches: `loader.batch(index)` is a pure function of the seed, the data's version and the index.

Threads only read ahead; what they deliver does not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from terminus.conditioning import MicroConditioning
from terminus.data import index
from terminus.data.geometry import specs
from terminus.data.index import Bucket
from terminus.data.order import Places, positions
from terminus.data.store import GEOMETRY, View, plan_of, quoted, unpack_moments

DESCRIBED = ("key", "captions", "caption_weights", *GEOMETRY)
"""Columns of which `batch_of` makes everything but the values."""
_SCANNED = 1 << 16
"""Rows per batch of the scan that opens a table."""
Piece = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]
"""First row number and length of each run of consecutive rows."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Every field is in the order of `positions`."""

    positions: tuple[int, ...]
    """Running number of each sample in the whole run: the root of its randomness."""
    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    """All captions of each image; which one is used is the step's choice."""
    conditioning: tuple[MicroConditioning, ...]
    values: Shaped[Tensor, "batch *shape"]
    """Raw moments, float32 [batch, 2, channels, height, width], or pixels, uint8 [batch, 3, height, width]."""
    epoch: int
    mask: Float[Tensor, "batch 1 height width"] | None = None
    """How much each place of the latents counts in the loss, 0 to 1; None if all of every row counts."""
    caption_weights: tuple[tuple[float, ...], ...] = ()
    """How often each caption of each image is drawn, in proportion; () if all alike."""


@runtime_checkable
class Rows(Protocol):
    """Random access to one kind of row of one split, grouped in buckets of equal shape."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        ...

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """The batch of these rows of a bucket."""
        ...


@dataclass(frozen=True)
class Runs:
    """Row numbers as runs of consecutive ones: 16 bytes for each run, not for each row."""

    first: Int64[np.ndarray, " runs"]
    ends: Int64[np.ndarray, " runs"]
    """How many rows there are up to the end of each run."""

    @staticmethod
    def joined(pieces: Sequence[Piece]) -> Runs:
        """The rows of all pieces, one after the other; runs that touch become one."""
        first, lengths = (np.concatenate(part) for part in zip(*pieces, strict=True))
        begins = np.flatnonzero(np.append(True, first[1:] != first[:-1] + lengths[:-1]))
        return Runs(first[begins], np.cumsum(np.add.reduceat(lengths, begins)))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def numbers(self, rows: Sequence[int]) -> Int64[np.ndarray, " rows"]:
        """The numbers in the table of the rows at these places, 0-based."""
        places = np.asarray(rows, dtype=np.int64)
        run = np.searchsorted(self.ends, places, side="right")
        return self.first[run] + places - np.where(run > 0, self.ends[run - 1], 0)


class Grouped:
    """The rows of a view that match a condition, by bucket (in the order of the buckets' names).

    Within a bucket the sources follow each other, in the order in which the table first names them.
    """

    def __init__(self, view: View, where: str) -> None:
        self.view = view
        found = index.kept(view, where, lambda: _scanned(view, where))
        self.rows = tuple(Runs(bucket.first, bucket.ends) for bucket in found)
        self.sources = tuple(bucket.sources for bucket in found)
        """How many rows of each bucket are of each source, in the order in which they are numbered."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return tuple(len(rows) for rows in self.rows)

    def take(self, bucket: int, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, object]]:
        """The columns of these rows, in the order asked for, repeats included."""
        unique, inverse = np.unique(self.rows[bucket].numbers(rows), return_inverse=True)
        found: list[dict[str, object]] = self.view.take(unique.tolist(), columns).to_pylist()
        return [found[i] for i in inverse.tolist()]


def _scanned(view: View, where: str) -> list[Bucket]:
    names: dict[str, None] = {}
    pieces: dict[str, dict[str, list[Piece]]] = {}
    # One scan, so that a bucket cannot be paired with another row's number; in batches, so that memory stays flat.
    for batch in view.batches(["bucket", "source", "_rowoffset"], where, _SCANNED):
        for bucket, source, piece in _pieces(batch):
            names.setdefault(source)
            pieces.setdefault(bucket, {}).setdefault(source, []).append(piece)
    found: list[Bucket] = []
    for bucket in sorted(pieces):
        parts = [(name, pieces[bucket][name]) for name in names if name in pieces[bucket]]
        runs = Runs.joined([piece for _, some in parts for piece in some])
        found.append(Bucket(runs.first, runs.ends, {name: len(Runs.joined(some)) for name, some in parts}))
    return found


def _pieces(batch: pa.RecordBatch) -> Iterator[tuple[str, str, Piece]]:  # pyright: ignore[reportUnknownParameterType]
    """Bucket, source and runs of row numbers of every pair of them in a batch; sources as they first appear."""
    buckets, sources = (batch.column(name).dictionary_encode() for name in ("bucket", "source"))
    count = len(buckets.dictionary)
    codes = sources.indices.to_numpy().astype(np.int64) * count + buckets.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    codes, numbers = codes[order], batch.column("_rowoffset").to_numpy().astype(np.int64)[order]
    begins = np.flatnonzero(np.append(True, (np.diff(codes) != 0) | (np.diff(numbers) != 1)))
    lengths = np.diff(begins, append=len(numbers))
    for code in np.unique(codes):
        here = codes[begins] == code
        source, bucket = divmod(int(code), count)
        yield (
            buckets.dictionary[bucket].as_py(),
            sources.dictionary[source].as_py(),
            (numbers[begins[here]], lengths[here]),
        )


class LatentRows:
    """Moments of one codec, one split and the first `crops` cuts of each image."""

    def __init__(self, view: View, codec: str, transform: str, split: str, crops: int = 1) -> None:
        named = ", ".join(quoted(spec) for spec in specs(transform, crops))
        where = f"codec = {quoted(codec)} AND transform IN ({named}) AND split = {quoted(split)}"
        self._grouped = Grouped(view, where)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return self._grouped.sizes

    @property
    def sources(self) -> tuple[dict[str, int], ...]:
        """How many rows of each bucket are of each source, in the order in which they are numbered."""
        return self._grouped.sources

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """Moments as the store keeps them, in float32."""
        shape = ("latent_channels", "latent_height", "latent_width")
        found = self._grouped.take(bucket, rows, [*DESCRIBED, "moments", "mask", *shape])
        sizes = [tuple(cast(int, row[name]) for name in shape) for row in found]
        arrays = [unpack_moments(cast(bytes, row["moments"]), *size) for row, size in zip(found, sizes, strict=True)]
        values = torch.from_numpy(np.stack(arrays).astype(np.float32))
        return replace(batch_of(found, values, positions, epoch), mask=_mask(found, sizes[0][1], sizes[0][2]))


def _mask(found: list[dict[str, object]], height: int, width: int) -> Float[Tensor, "batch 1 height width"] | None:
    """The masks of these rows, all ones where a row has none; None if no row has one."""
    if all(row["mask"] is None for row in found):
        return None
    whole = b"\xff" * (height * width)
    masks = [np.frombuffer(cast("bytes | None", row["mask"]) or whole, np.uint8) for row in found]
    return torch.from_numpy(np.stack(masks).astype(np.float32) / 255.0).reshape(-1, 1, height, width)


def batch_of(found: list[dict[str, object]], values: Tensor, positions: Sequence[int], epoch: int) -> Batch:
    """A batch of stored rows and the values made from them."""
    return Batch(
        positions=tuple(positions),
        keys=tuple(str(row["key"]) for row in found),
        captions=tuple(tuple(row["captions"]) for row in found),  # pyright: ignore[reportArgumentType]
        conditioning=tuple(plan_of(row).conditioning for row in found),
        values=values,
        epoch=epoch,
        caption_weights=tuple(tuple(row["caption_weights"]) for row in found),  # pyright: ignore[reportArgumentType]
    )


@dataclass(frozen=True)
class Loader:
    """Micro-batches of a run, `accumulation` to a step; of several processes each takes every `processes`-th."""

    rows: Rows
    order: Places
    accumulation: int
    threads: int
    rank: int = 0
    processes: int = 1
    """Divides `accumulation`."""

    def batch(self, index: int) -> Batch:
        """Micro-batch `index` of the run."""
        place = self.order[index]
        step, micro = divmod(index, self.accumulation)
        micro_batch = self.order.micro_batch
        numbers = positions(step, micro, self.accumulation * micro_batch, micro_batch)
        return self.rows.read(place.bucket, place.rows, numbers, place.epoch)

    def steps(self, start: int, stop: int) -> Generator[list[Batch]]:
        """This process's micro-batches of each step in [start, stop). Closing it ends its threads."""
        indices = range(start * self.accumulation + self.rank, stop * self.accumulation, self.processes)
        with closing(self._stream(indices)) as stream:
            for _ in range(start, stop):
                yield [next(stream) for _ in range(self.accumulation // self.processes)]

    def _stream(self, indices: range) -> Generator[Batch]:
        if self.threads == 0:
            yield from map(self.batch, indices)
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for index in indices:
                    ahead.append(pool.submit(self.batch, index))
                    if len(ahead) > 2 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
