"""Gradients kept within a global norm."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def clip_gradient_norm(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scales all gradients down so that their joint norm is at most `limit`; returns the norm they had before.

    Gradients that are sharded over processes count whole: every process gets the same norm and must take part.
    """
    held = [parameter for parameter in parameters if parameter.grad is not None]
    norm: Tensor = get_total_norm([parameter.grad for parameter in held if parameter.grad is not None])
    # Of sharded gradients each process has a part of the norm.
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    clip_grads_with_norm_(held, limit, norm)
    return float(norm)
