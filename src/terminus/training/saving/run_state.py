"""The part of a run's state that checkpoints hold, as this process sees it: weights, their average, the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from terminus.training.distributed.sharded_files import HeldRows, held
from terminus.training.loop import State
from terminus.training.optim.optimizer import AdamW, Optimizer, optimizer_tensors, restore_optimizer
from terminus.training.saving import checkpoint
from terminus.training.saving.atomic_files import reading_file

MOMENT_BYTES = {"fp32": 8, "bf16": 4, "int8": 2}
"""Bytes of AdamW's two moments for each weight."""


def checkpoint_pieces(state: State, module: torch.nn.Module) -> checkpoint.Pieces:
    """The tensors that this process adds to a checkpoint."""
    if not state.engine.writes:
        return {part: {} for part in checkpoint.PARTS}
    return {
        "weights": {name: one for name, one in _weights(module).items() if state.engine.mine(name)},
        "average": _averages(state),
        "optimizer": optimizer_tensors(state.optimizer, _names(module)),
    }


def restore(state: State, module: torch.nn.Module, saved: checkpoint.Saved) -> None:
    """Puts a checkpoint's tensors into the state; its position is left to the caller."""
    with reading_file("A checkpoint", saved.folder):
        with saved.tensors("weights") as stored:
            checkpoint.copy_into(_weights(module), stored)
        with saved.tensors("average") as stored:
            checkpoint.copy_into(_averages(state), stored, some=True)
        # Parameters without state in the checkpoint must have none here.
        state.optimizer.state.clear()
        with saved.tensors("optimizer") as stored:
            restore_optimizer(state.optimizer, _names(module), stored)


def checkpoint_size(state: State, module: torch.nn.Module, settings: Optimizer) -> int:
    """Bytes that this process will add to each checkpoint; before the first step the optimizer has no tensors yet."""
    engine = state.engine
    if not engine.writes:
        return 0
    # A float32 average, and the moments, beside the weights themselves.
    per_weight = 4 + (MOMENT_BYTES[settings.moments] if isinstance(settings, AdamW) else 0)
    mine = [one for name, one in _weights(module).items() if engine.mine(name)]
    return sum(one.size + per_weight * one.local.numel() for one in mine)


def _averages(state: State) -> dict[str, HeldRows]:
    average = state.average
    return {name: held(average.trained[name]).of(one) for name, one in average.tensors.items()}


def _weights(module: torch.nn.Module) -> dict[str, HeldRows]:
    return {name: held(parameter) for parameter, name in _names(module).items()}


def _names(module: torch.nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
