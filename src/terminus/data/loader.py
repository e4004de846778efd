"""Batches: `loader.batch(index)` is a pure function of the seed, the data's version and the index.

Threads only read ahead; what they deliver does not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from terminus.conditioning import MicroConditioning
from terminus.data.geometry import specs
from terminus.data.grouped import Grouped
from terminus.data.order import BatchOrder, positions
from terminus.data.record import Caption, ImageRow, LatentRow, captions_of
from terminus.data.schema import read_row
from terminus.data.store import View, unpack_posterior


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Every field is in the order of `positions`."""

    positions: tuple[int, ...]
    """Running number of each sample in the whole run: the root of its randomness."""
    keys: tuple[str, ...]
    captions: tuple[tuple[Caption, ...], ...]
    """All captions of each image; which one is used is the step's choice."""
    conditioning: tuple[MicroConditioning, ...]
    values: Shaped[Tensor, "batch *shape"]
    """Raw posteriors, float32 [batch, 2, channels, height, width], or pixels, uint8 [batch, 3, height, width]."""
    epoch: int
    mask: Float[Tensor, "batch 1 height width"] | None = None
    """How much each place of the latents counts in the loss, 0 to 1; None if all of every row counts."""
    damaged: tuple[str, ...] = ()
    """Rows that were asked for and are not what was written, by name and reason: others took their places."""


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


class LatentRows:
    """Posteriors of one VAE, one split and the first `crops` cuts of each image."""

    def __init__(self, view: View, vae: str, transform: str, split: str, crops: int = 1) -> None:
        wanted = {"vae": (vae,), "transform": specs(transform, crops), "split": (split,)}
        self._grouped = Grouped(view, wanted)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return self._grouped.sizes

    @property
    def sources(self) -> tuple[dict[str, int], ...]:
        """The number of rows of each bucket that are of each source, in the order in which they are numbered."""
        return self._grouped.sources

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """Posteriors as the store keeps them, in float32."""
        found, damaged = self._grouped.sound(bucket, rows, positions)
        latents = [read_row(LatentRow, row) for row in found]
        arrays = [
            unpack_posterior(one.posterior, one.latent_channels, one.latent_height, one.latent_width) for one in latents
        ]
        values = torch.from_numpy(np.stack(arrays)).float()  # four times as fast as numpy's conversion, and the same
        return replace(batch_of(latents, values, positions, epoch), mask=_mask(latents), damaged=damaged)


def _mask(latents: Sequence[LatentRow]) -> Float[Tensor, "batch 1 height width"] | None:
    """The masks of these rows, all ones where a row has none; None if no row has one."""
    if all(latent.mask is None for latent in latents):
        return None
    height, width = latents[0].latent_height, latents[0].latent_width
    whole = b"\xff" * (height * width)
    masks = [np.frombuffer(latent.mask or whole, np.uint8) for latent in latents]
    return torch.from_numpy(np.stack(masks).astype(np.float32) / 255.0).reshape(-1, 1, height, width)


def batch_of(
    found: Sequence[ImageRow] | Sequence[LatentRow], values: Tensor, positions: Sequence[int], epoch: int
) -> Batch:
    """A batch of stored rows and the values made from them."""
    return Batch(
        positions=tuple(positions),
        keys=tuple(row.key for row in found),
        captions=tuple(captions_of(row) for row in found),
        conditioning=tuple(row.plan.conditioning for row in found),
        values=values,
        epoch=epoch,
    )


@dataclass(frozen=True)
class Loader:
    """Micro-batches of a run, `accumulation` to a step; of several processes each takes every `processes`-th."""

    rows: Rows
    order: BatchOrder
    accumulation: int
    threads: int
    rank: int = 0
    processes: int = 1
    """Divides `accumulation`."""

    def batch(self, index: int) -> Batch:
        """Micro-batch `index` of the run."""
        # Which rows, and their running numbers in the run.
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
                    # Two for each thread, so that none waits while a step computes.
                    if len(ahead) > 2 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
