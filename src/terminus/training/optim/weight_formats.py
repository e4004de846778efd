"""In which number format the trained weights are stored, and what that and the optimizer cost in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from terminus.training.optim.moment_formats import BLOCK
from terminus.training.optim.optimizer import Adafactor, Muon, Optimizer

WeightFormat = Literal["fp32", "bf16"]


def store_weights(module: nn.Module, form: WeightFormat) -> None:
    """Stores what is trained of a module in this format; what it computes in is autocast's choice.

    In bfloat16, biases and norms stay float32: they are a thousandth of the bytes. Gradients arrive in bfloat16 from
    each backward pass and add up in float32, so fifteen of them lose nothing to each other.
    """
    if form == "fp32":
        return
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.ndim >= 2:
            parameter.data = parameter.data.to(torch.bfloat16)
            # torch would add gradients up in the format of the parameter.
            parameter.grad_dtype = torch.float32


@dataclass(frozen=True)
class StateBytes:
    """Bytes per parameter of a matrix or kernel; vectors and what is small are left out."""

    weights: float
    compute: float
    """The copy in bfloat16 that autocast makes of float32 weights, and keeps while a micro-batch lasts."""
    gradients: float
    moments: float

    @property
    def total(self) -> float:
        """All of it, without activations and without the average (4 bytes, on the device that its setting names)."""
        return self.weights + self.compute + self.gradients + self.moments


def state_bytes(optimizer: Optimizer, weights: WeightFormat, precision: Literal["bf16", "fp32"] = "bf16") -> StateBytes:
    """Bytes of state for each parameter. Adafactor's rows and columns are less than a hundredth, and count as 0."""
    stored = 4.0 if weights == "fp32" else 2.0
    compute = 2.0 if weights == "fp32" and precision == "bf16" else 0.0
    if isinstance(optimizer, Adafactor):
        return StateBytes(stored, compute, 4.0, 0.0)
    if isinstance(optimizer, Muon):
        return StateBytes(stored, compute, 4.0, 4.0)
    moment = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0 + 4.0 / BLOCK}[optimizer.moments]
    return StateBytes(stored, compute, 4.0, 2 * moment)
