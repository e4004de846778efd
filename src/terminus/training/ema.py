"""The exponential moving average of the weights: what is sampled, validated and shipped."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn

from terminus.config.base import Config


class Ema(Config):
    """Exponential moving average of the weights, in float32; the finished model is the average."""

    half_life_images: int = Field(default=100_000, gt=0)
    """Images after which old weights count half."""
    ramp: float = Field(default=0.1, gt=0, le=1)
    """The half-life is at most this share of the images seen, so that a young average is not its random start."""


class Average:
    """Float32 copies of a module's trainable parameters, averaged over images."""

    def __init__(self, module: nn.Module, settings: Ema) -> None:
        self.settings = settings
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone().float() for name, p in self.live.items()}

    def decay(self, images: int, step_images: int) -> float:
        """The share of the old average that a step of `step_images` keeps, after `images` images.

        beta = 0.5 ** (step / half-life), with the half-life ramped up as in Karras et al. 2206.00364, appendix F.
        """
        half_life = min(self.settings.half_life_images, max(1.0, self.settings.ramp * images))
        return 0.5 ** (step_images / half_life)

    @torch.no_grad()
    def update(self, images: int, step_images: int) -> None:
        """One step towards the live weights."""
        weight = 1.0 - self.decay(images, step_images)
        for name, parameter in self.live.items():
            self.tensors[name].lerp_(parameter.float(), weight)

    @contextmanager
    def swapped_in(self) -> Generator[None]:
        """Within the context the module holds the average; afterwards its own weights again, bit for bit."""
        live = {name: parameter.detach().clone() for name, parameter in self.live.items()}
        self._load(self.tensors)
        try:
            yield
        finally:
            self._load(live)

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.live.items():
            parameter.copy_(tensors[name])
