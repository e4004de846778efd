"""Batches: `loader.batch(index)` is a pure function of the seed, the data's version and the index.

Threads only read ahead; what they deliver does not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt64
from torch import Tensor

from terminus.conditioning import MicroConditioning
from terminus.data.order import Order, positions
from terminus.data.store import GEOMETRY, View, plan_of, quoted, unpack_moments


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


class Grouped:
    """The row numbers of a view that match a condition, by bucket (in the order of the buckets' names)."""

    def __init__(self, view: View, where: str) -> None:
        self.view = view
        # One scan, so that a bucket cannot be paired with another row's address.
        table = view.dataset.to_table(columns=["bucket"], filter=where, with_row_address=True, scan_in_order=True)
        matching = _numbers(view, table["_rowaddr"].to_numpy())
        # By small numbers, not by text: a billion names as Python objects would need 90 GB.
        coded = table["bucket"].combine_chunks().dictionary_encode()
        codes = coded.indices.to_numpy(zero_copy_only=False)
        names = np.asarray(coded.dictionary.to_pylist())
        self.rows = tuple(matching[codes == code] for code in np.argsort(names))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return tuple(len(rows) for rows in self.rows)

    def take(self, bucket: int, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, object]]:
        """The columns of these rows, in the order asked for, repeats included."""
        wanted = self.rows[bucket][np.asarray(rows)]
        unique, inverse = np.unique(wanted, return_inverse=True)
        found: list[dict[str, object]] = self.view.take(unique.tolist(), columns).to_pylist()
        return [found[i] for i in inverse.tolist()]


def _numbers(view: View, addresses: UInt64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """The row numbers that `View.take` counts in, of Lance's row addresses.

    An address is (fragment, place in the file); `take` counts the rows of all fragments in order, without deleted ones.
    """
    fragments, places = addresses >> np.uint64(32), (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64)
    numbers = np.empty(len(addresses), dtype=np.int64)
    start = 0
    for fragment in view.dataset.get_fragments():
        inside = fragments == fragment.fragment_id
        found = places[inside]
        if fragment.num_deletions:
            alive = fragment.to_table(columns=[], with_row_address=True)["_rowaddr"].to_numpy()
            found = np.searchsorted((alive & np.uint64(0xFFFFFFFF)).astype(np.int64), found)
        numbers[inside] = start + found
        start += fragment.count_rows()
    return numbers


class LatentRows:
    """Moments of one codec and one split."""

    def __init__(self, view: View, codec: str, transform: str, split: str) -> None:
        where = f"codec = {quoted(codec)} AND transform = {quoted(transform)} AND split = {quoted(split)}"
        self._grouped = Grouped(view, where)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return self._grouped.sizes

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """Moments as the store keeps them, in float32."""
        columns = ["key", "captions", "moments", "latent_channels", "latent_height", "latent_width", *GEOMETRY]
        found = self._grouped.take(bucket, rows, columns)
        shape = [(row["latent_channels"], row["latent_height"], row["latent_width"]) for row in found]
        arrays = [unpack_moments(row["moments"], *size) for row, size in zip(found, shape, strict=True)]  # pyright: ignore[reportArgumentType]
        values = torch.from_numpy(np.stack(arrays).astype(np.float32))
        return batch_of(found, values, positions, epoch)


def batch_of(found: list[dict[str, object]], values: Tensor, positions: Sequence[int], epoch: int) -> Batch:
    """A batch of stored rows and the values made from them."""
    return Batch(
        positions=tuple(positions),
        keys=tuple(str(row["key"]) for row in found),
        captions=tuple(tuple(row["captions"]) for row in found),  # pyright: ignore[reportArgumentType]
        conditioning=tuple(plan_of(row).conditioning for row in found),
        values=values,
        epoch=epoch,
    )


@dataclass(frozen=True)
class Loader:
    """Micro-batches of a run, `accumulation` to a step; of several processes each takes every `processes`-th."""

    rows: Rows
    order: Order
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
