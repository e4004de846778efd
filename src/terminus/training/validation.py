"""Held-out error by timestep band and by source: the same rows, the same noise and the same timesteps every time.

Nothing of it depends on the run's seed, weighting, or on which timesteps it draws, so such runs can be compared by it:
timesteps are always spread evenly over all of the schedule, and the noise is plain. It does use the objective's caption
dropout and the size of the batch, as training does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from terminus.data.batch import Batch, Rows
from terminus.data.mixing import RowsBySource
from terminus.training.distributed.process_group import World
from terminus.training.monitor.journal import by_band
from terminus.training.step import TrainingStep

log = logging.getLogger("terminus")

SEED = 0
"""Seed of every validation, whatever the run's."""


@dataclass(frozen=True)
class _Span:
    """Consecutive rows of one source in a bucket."""

    bucket: int
    first: int
    count: int


@dataclass(frozen=True)
class HeldOutSet:
    """A fixed set of held-out micro-batches."""

    batches: tuple[Batch, ...]
    sources: tuple[str, ...] = ()
    """The source of each image in them."""

    @property
    def count(self) -> int:
        """Number of held-out images."""
        return sum(len(batch.keys) for batch in self.batches)

    @torch.no_grad()
    def measure(self, step: TrainingStep, world: World | None = None) -> dict[str, float]:
        """Mean plain error over all held-out images ("all"), by timestep band and, if there are several, by source
        ("source NAME"). Processes share the work."""
        world = world or World()
        step.trained.eval()
        # Always the same random numbers, and every timestep equally often.
        fixed = step.seeded(SEED)
        # All call the network equally often, as shards need; what was repeated for that is not counted.
        turns = -(-len(self.batches) // world.size)
        own = [self.batches[(turn * world.size + world.rank) % len(self.batches)] for turn in range(turns)]
        measured = [fixed.loss(batch, step=0) for batch in own]
        losses = world.interleaved([loss.on_cpu() for loss in measured])[: len(self.batches)]
        step.trained.train()

        # The mean of all, then of each part of the timesteps and of each source.
        error = torch.cat([loss.error for loss in losses])
        result = {"all": error.double().mean().item()}
        if losses[0].t is not None:
            t = torch.cat([loss.t for loss in losses if loss.t is not None])
            result |= by_band(error, t)
        return result | self._by_source(error)

    def _by_source(self, error: Float[Tensor, " images"]) -> dict[str, float]:
        names = sorted(set(self.sources))
        if len(names) < 2:
            return {}
        result: dict[str, float] = {}
        for name in names:
            mine = torch.tensor([source == name for source in self.sources])
            result[f"source {name}"] = error[mine].double().mean().item()
        return result


def build_validation(rows: Rows, images: int, micro_batch: int) -> HeldOutSet:
    """About `images` held-out rows, of each source by its part of them and at least one; positions count from 0."""
    picked = _picked(rows, images)
    batches: list[Batch] = []
    sources: list[str] = []
    for bucket in range(len(rows.sizes)):
        for chunk in _chunks(sorted(row for place, row in picked if place == bucket), micro_batch):
            # Positions count on from bucket to bucket: random numbers follow from them.
            numbers = range(len(sources), len(sources) + len(chunk))
            batches.append(rows.read(bucket, chunk, numbers, epoch=0))
            sources += [picked[bucket, row] for row in chunk]
    _warn_damaged(batches)
    return HeldOutSet(tuple(_first_caption(batch) for batch in batches), tuple(sources))


def _picked(rows: Rows, images: int) -> dict[tuple[int, int], str]:
    """(Bucket, row) to the name of its source."""
    total = sum(rows.sizes)
    wanted = min(images, total)
    picked: dict[tuple[int, int], str] = {}
    for name, spans in _by_source(rows).items():
        count = sum(span.count for span in spans)
        share = min(count, max(1, round(wanted * count / total)))
        # Evenly spaced rows, so that a small share still sees every part of the data.
        picked |= {_row(spans, i * count // share): name for i in range(share)}
    return picked


def _warn_damaged(batches: Sequence[Batch]) -> None:
    damaged = chain.from_iterable(batch.damaged for batch in batches)
    for name in dict.fromkeys(damaged):  # each once
        log.warning("held-out row damaged in the store, so that another takes its place: %s", name)


def _by_source(rows: Rows) -> dict[str, list[_Span]]:
    spans: dict[str, list[_Span]] = {}
    # A table without sources has one, without a name.
    unnamed = [{"": count} for count in rows.sizes]
    for bucket, sources in enumerate(rows.sources if isinstance(rows, RowsBySource) else unnamed):
        first = 0
        for name, count in sources.items():
            spans.setdefault(name, []).append(_Span(bucket, first, count))
            first += count
    return spans


def _row(spans: Sequence[_Span], place: int) -> tuple[int, int]:
    """Bucket and row at a place among all of the spans."""
    for span in spans:
        if place < span.count:
            return span.bucket, span.first + place
        place -= span.count
    raise ValueError("no such place")


def _first_caption(batch: Batch) -> Batch:
    return replace(batch, captions=tuple(captions[:1] for captions in batch.captions))


def _chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
