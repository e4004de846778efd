"""What a step is given: a batch of samples, and who can supply one.

The store is one supplier of rows (`latent_rows`, `pixels`); a benchmark or a test may be another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

from terminus.conditioning import MicroConditioning
from terminus.data.caption import Caption


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
