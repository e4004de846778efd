"""The training of a benchmark, whoever does it: a recipe, its networks, and rows that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from terminus.bench.measure import Laps
from terminus.conditioning import MicroConditioning, Size
from terminus.data.batch import Batch
from terminus.data.caption import Caption
from terminus.data.order import Order
from terminus.model.components import Components
from terminus.training.objectives import Diffusion
from terminus.training.recipe import Recipe

PARTS = ("data", "text", "prepare", "forward", "backward", "optimizer", "rest")
"""`prepare`: latents, noise, timesteps, sizes. `backward`: and the loss. `optimizer`: and clipping, and the average."""
_ROWS = 64
_NO_SPREAD = -30.0
"""Log variance of the rows: the VAE's least, so that a latent sampled from a posterior is its mean."""


@dataclass(frozen=True)
class Task:
    """The training that both contenders do."""

    recipe: Recipe
    networks: Callable[[], Components]
    """New ones at each call, with the same weights, in float32."""
    device: torch.device
    cached_text: bool
    """Whether the captions' features are computed before, or by the text encoders in every step."""
    keep_average: bool

    @property
    def objective(self) -> Diffusion:
        assert isinstance(self.recipe.objective, Diffusion)
        return self.recipe.objective

    def components(self) -> Components:
        """Networks on the schedule that the recipe trains, whatever they were trained on."""
        made, wanted = self.networks(), self.objective
        schedule = replace(
            made.record.schedule, prediction=wanted.prediction, zero_terminal=wanted.zero_terminal_snr
        )  # fmt: skip
        return replace(made, record=replace(made.record, schedule=schedule))

    def rows(self, components: Components) -> MadeRows:
        """The rows that are trained on, the same for both contenders."""
        return MadeRows(self.recipe.data.resolution, components)

    def order(self) -> Order:
        """The order of the rows, the same for both contenders."""
        return Order(self.recipe.training.seed, (_ROWS,), self.recipe.training.micro_batch)


class MadeRows:
    """Rows of random posteriors with invented captions, in memory."""

    def __init__(self, pixels: int, components: Components) -> None:
        vae, side = components.vae, pixels // components.vae.factor
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(_ROWS, vae.channels, side, side, generator=generator) / vae.scale
        self.posterior = torch.stack([mean, torch.full_like(mean, _NO_SPREAD)], dim=1)
        self.captions = tuple(f"a 3d render of {number} apples on a white background" for number in range(_ROWS))
        self.size = MicroConditioning.uncropped(Size(pixels, pixels))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each bucket: there is one bucket."""
        return (_ROWS,)

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """A batch as a store would give it."""
        return Batch(
            positions=tuple(positions),
            keys=tuple(str(row) for row in rows),
            captions=tuple((Caption(self.captions[row], "embedded"),) for row in rows),
            conditioning=(self.size,) * len(rows),
            values=self.posterior[torch.tensor(rows)],
            epoch=epoch,
        )


class Trainer(Protocol):
    """A way to train; `run` returns when so many optimizer steps are done."""

    name: str
    laps: Laps
    losses: list[float]
    """Loss of every step so far."""

    def run(self, steps: int) -> object: ...

    def state_bytes(self) -> int:
        """Bytes on the device between two steps: networks, optimizer state and average."""
        ...
