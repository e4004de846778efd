"""The optimizers, their state in checkpoints, and the learning rate.

The learning rate is a pure function of the images seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import cos, pi
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from terminus.config.base import Config, unsaid
from terminus.training.distributed.sharded_files import HeldRows, TensorFiles, held, local
from terminus.training.distributed.sharding import Alone, Engine
from terminus.training.networks.joint import rate_factor
from terminus.training.optim.low_memory import AdafactorRule, AdamWRule, LowMemoryOptimizer
from terminus.training.optim.moment_formats import Float, MomentFormat, build_moments
from terminus.training.optim.muon import MuonRule


class LearningRate(Config):
    """Cosine schedule of the learning rate, counted in images."""

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


class _Steps(Config):
    """The settings that all optimizers share."""

    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay on matrices and kernels; biases and norms have none."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients whose global norm exceeds this are scaled down to it."""


class AdamW(_Steps):
    """AdamW (Loshchilov & Hutter 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    """Two moments for each weight: mean gradient and mean squared gradient."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean gradient."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the mean squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean squared gradient, against division by 0."""
    moments: MomentFormat = "fp32"
    """Number format of both moments between steps: 8, 4 or 2 bytes per weight."""


class Adafactor(_Steps):
    """Adafactor (Shazeer & Stern 1804.04235) at the recipe's learning rate: no relative steps."""

    kind: Literal["adafactor"]
    """A mean squared gradient for each row and each column: almost no memory."""
    beta2_decay: float = Field(default=0.8, gt=0, lt=1)
    """The mean squared gradient's decay rises as 1 - step ** -this."""
    clip_update: float = Field(default=1.0, gt=0)
    """Largest root mean square of a step of one parameter, in units of the learning rate."""


class Muon(_Steps):
    """Muon (Jordan et al. 2024), for training from random weights. A step's root mean square is 0.2 learning rates."""

    kind: Literal["muon"]
    """Orthogonalised momentum for matrices and kernels; AdamW (0.9, 0.99) for biases, norms and embedding tables."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean gradient of matrices and kernels."""


Optimizer = Annotated[AdamW | Adafactor | Muon, Field(discriminator="kind"), unsaid("adamw")]


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


def build_optimizer(
    module: nn.Module, settings: Optimizer, seed: int = 0, engine: Engine | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a module's trainable parameters, or of this process's; only matrices and kernels decay.

    With weights and moments in float32 that is torch's fused AdamW. `seed` is what stochastic rounding follows from.
    """
    groups = _groups(module, settings.weight_decay, engine or Alone())
    if isinstance(settings, Adafactor):
        return LowMemoryOptimizer(groups, AdafactorRule(settings.beta2_decay, settings.clip_update), seed)
    if isinstance(settings, Muon):
        return LowMemoryOptimizer(groups, MuonRule(settings.momentum, AdamWRule(0.9, 0.99, 1e-8, Float())), seed)
    betas = (settings.beta1, settings.beta2)
    # torch's own where nothing is kept in fewer bits.
    stored = {parameter.dtype for group in groups for _, parameter in group["params"]}
    if settings.moments == "fp32" and stored <= {torch.float32}:
        return torch.optim.AdamW(groups, betas=betas, eps=settings.epsilon, fused=True)
    rule = AdamWRule(*betas, settings.epsilon, build_moments(settings.moments))
    return LowMemoryOptimizer(groups, rule, seed)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, HeldRows]:
    """The optimizer's memory by parameter name ("unet.conv.weight/exp_avg"), exactly as it is kept."""
    found: dict[str, HeldRows] = {}
    for parameter, state in optimizer.state.items():
        place = held(parameter)
        found |= {f"{names[parameter]}/{key}": place.of(local(value)) for key, value in state.items()}
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], stored: TensorFiles) -> None:
    """The inverse of `optimizer_tensors`. A parameter that never had a gradient has no state."""
    # What is stored of each parameter, by its name.
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for key in stored.names:
        name, _, part = key.rpartition("/")
        parts[name].append(part)
    lean = isinstance(optimizer, LowMemoryOptimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name, place = names[parameter], held(parameter)
            state = {}
            for part in parts[name]:
                # A moment of the parameter's shape is read as far as this process holds it; anything else is whole.
                key = f"{name}/{part}"
                value = stored.read(key, place.rows if stored.shape(key) == place.shape else None)
                state[part] = _placed(value, part, parameter, lean)
            if state:
                optimizer.state[parameter] = state


def _placed(value: Tensor, part: str, parameter: Tensor, lean: bool) -> Tensor:
    """A tensor of its own, where and in the order in which the optimizer keeps it."""
    if lean:
        return value.to("cpu" if part == "step" else parameter.device, copy=True)
    if part == "step":
        return value.to(parameter.device, copy=True)  # the fused kernel counts in it
    # In the parameter's memory format (channels last), which the fused kernel relies on.
    kept = torch.empty_like(parameter, requires_grad=False)
    local(kept).copy_(value)
    return kept


def _groups(module: nn.Module, decay: float, engine: Engine) -> list[dict[str, Any]]:
    """Named parameters by what they share: decay or none, and the factor on their rate."""
    groups: defaultdict[tuple[float, bool], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and engine.mine(name):
            # DoRA's magnitudes of a convolution have four dimensions; decayed, they would shrink what is not trained.
            vector = parameter.ndim < 2 or "magnitude" in name
            groups[rate_factor(module, name), vector].append((name, parameter))
    if not groups:  # this process owns no parameter, and torch wants a group
        return [{"params": [], "weight_decay": 0.0, "factor": 1.0}]
    return [
        {"params": members, "weight_decay": 0.0 if vector else decay, "factor": factor}
        for (factor, vector), members in sorted(groups.items(), key=lambda item: item[0])
    ]
