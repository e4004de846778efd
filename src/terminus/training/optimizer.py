"""AdamW and its learning rate, a pure function of the images seen."""

from __future__ import annotations

from math import cos, pi

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from terminus.config.base import Config


class LearningRate(Config):
    """A cosine between two bounds, counted in images."""

    max: float = Field(default=1e-4, gt=0)
    """Highest learning rate, reached after the warm-up."""
    min: float = Field(default=1e-5, ge=0)
    """Lowest learning rate, reached at the end of the period."""
    warmup_images: int = Field(default=0, ge=0)
    """Images over which the rate rises linearly from 0."""
    period_images: int | None = Field(default=None, gt=0)
    """Images from the highest to the lowest rate, after which it stays low. Null: the length of the run."""

    @model_validator(mode="after")
    def _ordered(self) -> LearningRate:
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Optimizer(Config):
    """AdamW (Loshchilov & Hutter 1711.05101)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean gradient."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the mean squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean squared gradient."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay on matrices and kernels; biases and norms have none."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""


def learning_rate(images: int, settings: LearningRate, run_images: int) -> float:
    """The rate for the step that begins after `images` images.

    Linear from 0 over the warm-up, then half a cosine from `max` to `min` over the period, then `min`.
    """
    if images < settings.warmup_images:
        return settings.max * (images + 1) / settings.warmup_images
    progress = min(1.0, (images - settings.warmup_images) / period_images(settings, run_images))
    return settings.min + 0.5 * (settings.max - settings.min) * (1 + cos(pi * progress))


def period_images(settings: LearningRate, run_images: int) -> int:
    """Images from the highest to the lowest rate: as set, or what the warm-up leaves of the run."""
    return settings.period_images or max(1, run_images - settings.warmup_images)


def build_optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over a module's trainable parameters; only matrices and kernels decay."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True)


def optimizer_tensors(optimizer: torch.optim.AdamW, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's memory by parameter name: "unet.conv.weight/exp_avg"."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.AdamW, names: dict[Tensor, str], tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    for parameter, name in names.items():
        if f"{name}/step" not in tensors:
            continue  # a parameter that never had a gradient has no state
        state = optimizer.state[parameter]
        # A tensor of its own for each parameter and on its device: the fused kernel counts in it.
        state["step"] = tensors[f"{name}/step"].to(parameter.device, copy=True)
        for key in ("exp_avg", "exp_avg_sq"):
            # In the parameter's memory format (channels last), which the fused kernel relies on.
            state[key] = torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{name}/{key}"])
