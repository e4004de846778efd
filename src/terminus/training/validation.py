"""Held-out error by timestep band: the same rows, the same noise and the same timesteps every time.

Nothing of it depends on the run's seed, weighting, or on which timesteps it draws, so such runs can be compared by it:
timesteps are always spread evenly over all of the schedule, and the noise is plain. It does use the objective's caption
dropout and the size of the batch, as training does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from terminus.data.loader import Batch, Rows
from terminus.training.journal import by_band
from terminus.training.step import Step
from terminus.training.world import World

SEED = 0
"""Of every validation, whatever the run's."""


@dataclass(frozen=True)
class Validation:
    """A fixed set of held-out micro-batches."""

    batches: tuple[Batch, ...]

    @property
    def count(self) -> int:
        """Held-out images."""
        return sum(len(batch.keys) for batch in self.batches)

    @torch.no_grad()
    def measure(self, step: Step, world: World | None = None) -> dict[str, float]:
        """Mean plain error over all held-out images ("all") and by timestep band. Processes share the work."""
        world = world or World()
        step.trained.eval()
        fixed = step.seeded(SEED)
        # All call the network equally often, as shards need; what was repeated for that is not counted.
        turns = -(-len(self.batches) // world.size)
        own = [self.batches[(turn * world.size + world.rank) % len(self.batches)] for turn in range(turns)]
        mine = [fixed.loss(batch, step=0) for batch in own]
        losses = world.interleaved([loss.on_cpu() for loss in mine])[: len(self.batches)]
        step.trained.train()
        error = torch.cat([loss.error for loss in losses])
        result = {"all": error.double().mean().item()}
        if losses[0].t is not None:
            t = torch.cat([loss.t for loss in losses if loss.t is not None])
            result |= by_band(error, t)
        return result


def build_validation(rows: Rows, images: int, micro_batch: int) -> Validation:
    """Up to `images` held-out rows, every bucket by its share, in row order; positions count from 0."""
    total = sum(rows.sizes)
    wanted = min(images, total)
    batches: list[Batch] = []
    start = 0
    for bucket, size in enumerate(rows.sizes):
        share = max(1, round(wanted * size / total))
        # Evenly spaced rows, so that a small share still sees every part of the data.
        picked = [i * size // share for i in range(min(share, size))]
        for chunk in _chunks(picked, micro_batch):
            numbers = range(start, start + len(chunk))
            batches.append(rows.read(bucket, chunk, numbers, epoch=0))
            start += len(chunk)
    return Validation(tuple(_first_caption(batch) for batch in batches))


def _first_caption(batch: Batch) -> Batch:
    return replace(batch, captions=tuple(captions[:1] for captions in batch.captions))


def _chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
