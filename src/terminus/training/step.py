"""A step: what the loop trains, and how its loss is computed.

All randomness is a function of the sample's running number, so a batch cut into other pieces, read by other threads
or computed again after a restart gives the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from terminus.data.batch import Batch


@dataclass(frozen=True)
class StepLoss:
    """Per sample: what is minimised, the plain error, and where it belongs in the log."""

    weighted: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    t: Int[Tensor, " batch"] | None = None
    """Timestep of each sample; None where there are no timesteps."""

    def on_cpu(self) -> StepLoss:
        """The same, where the log reads it."""
        return StepLoss(self.weighted.cpu(), self.error.cpu(), None if self.t is None else self.t.cpu())


@runtime_checkable
class TrainingStep(Protocol):
    """The module that is trained, and its loss: all that the loop knows of either."""

    @property
    def trained(self) -> nn.Module:
        """The module whose parameters are optimised."""
        ...

    def loss(self, batch: Batch, step: int) -> StepLoss:
        """The loss of a micro-batch of optimizer step `step`."""
        ...

    def seeded(self, seed: int) -> TrainingStep:
        """The step by which this one is measured: random numbers of `seed`, and nothing that only training wants."""
        ...
