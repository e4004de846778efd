"""The diffusion step: where the network, the mathematics and the conditioning meet.

All randomness is a function of the sample's running number, so a batch cut into other pieces, read by other threads
or computed again after a restart gives the same loss.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from terminus import runtime
from terminus.conditioning import time_ids
from terminus.data.loader import Batch
from terminus.diffusion import timesteps
from terminus.diffusion.objective import Objective
from terminus.model.codec import Moments
from terminus.model.components import Components
from terminus.model.unet import predict


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
class Step(Protocol):
    """What is trained, and how its loss is computed. The loop knows nothing else."""

    @property
    def trained(self) -> nn.Module:
        """The module whose parameters are optimised."""
        ...

    def loss(self, batch: Batch, step: int) -> StepLoss:
        """The loss of a micro-batch of optimizer step `step`."""
        ...

    def seeded(self, seed: int) -> Step:
        """The step by which this one is measured: random numbers of `seed`, and nothing that only training wants."""
        ...


@dataclass(frozen=True)
class DiffusionStep:
    """Trains the UNet to predict velocity, or noise, from cached moments."""

    components: Components
    objective: Objective
    seed: int
    global_batch: int
    stratified: bool
    caption_dropout: float
    device: torch.device
    precision: runtime.Precision
    density: Float64[Tensor, " timesteps"] | None = None
    """How often each timestep is drawn; None: all alike."""
    offset_noise: float = 0.0
    """Spread of what is added to the noise of each image and channel."""
    input_perturbation: float = 0.0
    """Noise of the input that is not in the target, in units of the noise."""
    together: nn.Module | None = None
    """The UNet and the text towers, where these are trained as well."""

    @property
    def trained(self) -> nn.Module:
        """The UNet, or what it is trained together with."""
        return self.components.unet if self.together is None else self.together

    def loss(self, batch: Batch, step: int) -> StepLoss:
        """The weighted error of each sample, of what its mask counts; the plain error is that of the whole picture."""
        moments = runtime.sent(batch.values, self.device)
        shape = moments.shape[2:]
        posterior = Moments(moments[:, 0], moments[:, 1])
        x0 = self.components.codec.latents(posterior, self._normal(batch, "moments", shape))
        t = runtime.sent(self._timesteps(batch, step), self.device)
        ids = time_ids(batch.conditioning, self.device)

        def network(x: Tensor, t: Tensor) -> Tensor:
            with runtime.autocast(self.device, self.precision):
                with torch.set_grad_enabled(self.together is not None and torch.is_grad_enabled()):
                    text = self.components.text.encode(self._captions(batch))
                return predict(self.components.unet, x, t, text, ids)

        epsilon = self._normal(batch, "noise", shape)
        if self.offset_noise:
            epsilon = epsilon + self.offset_noise * self._normal(batch, "offset noise", (shape[0], 1, 1))
        perturbation = None
        if self.input_perturbation:
            perturbation = self.input_perturbation * self._normal(batch, "input perturbation", shape)
        mask = None if batch.mask is None else runtime.sent(batch.mask, self.device)
        losses = self.objective.loss(network, x0, epsilon, t, perturbation, mask)
        return StepLoss(losses.weighted, losses.unweighted, t)

    def seeded(self, seed: int) -> DiffusionStep:
        """Other random numbers, every timestep equally often and evenly, and plain noise: what held-out data meet.

        So errors can be compared between runs that train other timesteps or with other noise.
        """
        return replace(self, seed=seed, stratified=True, density=None, offset_noise=0.0, input_perturbation=0.0)

    def _captions(self, batch: Batch) -> list[str]:
        return [
            "" if runtime.uniform(self.seed, position, "caption dropout") < self.caption_dropout else caption
            for position, caption in zip(batch.positions, drawn(batch, self.seed), strict=True)
        ]

    def _timesteps(self, batch: Batch, step: int) -> Int[Tensor, " batch"]:
        draws = [runtime.uniform(self.seed, position, "timestep") for position in batch.positions]
        u = torch.tensor(draws, dtype=torch.float64)
        count = self.objective.schedule.timesteps
        if not self.stratified:
            return timesteps.uniform(u, count, self.density)
        slices = timesteps.slices(runtime.rng(self.seed, step, "timestep slices"), self.global_batch)
        place = torch.tensor([position % self.global_batch for position in batch.positions])
        return timesteps.stratified(u, slices[place], self.global_batch, count, self.density)

    def _normal(self, batch: Batch, purpose: str, shape: Sequence[int]) -> Float[Tensor, "batch *shape"]:
        rows = [torch.randn(shape, generator=runtime.rng(self.seed, position, purpose)) for position in batch.positions]
        return runtime.sent(torch.stack(rows), self.device)


def drawn(batch: Batch, seed: int) -> list[str]:
    """One caption for each sample."""
    weights = batch.caption_weights or ((),) * len(batch.captions)
    each = zip(batch.captions, weights, batch.positions, strict=True)
    return [choose(captions, seed, position, some) for captions, some, position in each]


def choose(captions: Sequence[str], seed: int, position: int, weights: Sequence[float] = ()) -> str:
    """One caption of an image, drawn in proportion to its weight (no weights: all alike); "" if it has none."""
    if not captions:
        return ""
    u = runtime.uniform(seed, position, "caption")
    weights = weights[: len(captions)]
    if len(set(weights)) <= 1:
        return captions[int(u * len(captions))]
    up_to = list(accumulate(weights))
    return captions[bisect(up_to[:-1], u * up_to[-1])]
