"""Execution of the trained network: memory layout, compiled regions, and which activations are kept for the backward
pass.

None of it is part of what is learned. A checkpointed block computes the same numbers a second time, so gradients are
bit for bit those of a run that keeps everything; names of parameters stay, since modules are changed and never wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from terminus.errors import UserError
from terminus.model import execution

Checkpointing = Literal["none", "selective", "selective_ff", "full"]

BLOCKS = (*execution.REGIONS, "CLIPEncoderLayer")
"""Classes that are checkpointed one by one: a transformer block, a residual block, a layer of a text encoder."""
VARIANTS = 256
"""Shapes of one class that are compiled: SDXL's residual blocks have 13 per bucket, and torch stops at 8."""

_aten = torch.ops.aten
_MATMULS: frozenset[object] = frozenset((_aten.mm.default, _aten.addmm.default))
_KEPT: frozenset[object] = frozenset(
    (
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_fused_attention_overrideable.default,
    )
)
_WIDE = 4
"""The hidden layer of a feed-forward network is this many times as wide as the block (twice that with its gate)."""


def trainable(module: nn.Module, device: torch.device) -> None:
    """Turns gradients on, and puts convolutions into the layout that the device computes fastest in."""
    nn.Module.to(module, device).requires_grad_(True)
    if device.type == "cuda":  # on a CPU oneDNN chooses its own blocked layout, and channels last is slower
        cast(Any, module).to(memory_format=torch.channels_last)


def run_as(module: nn.Module, mode: Checkpointing, compiled: bool) -> None:
    """Applies `training.activation_checkpointing` and `training.compile` to the trained module."""
    # In this order: a compiled region then holds the checkpointed forward.
    recompute(module, mode)
    if compiled:
        compile_for_training(module, next(module.parameters()).device)


def recompute(module: nn.Module, mode: Checkpointing) -> None:
    """Makes every block of `module` drop activations after its forward pass and compute them again for the backward.

    `full` keeps a block's input alone; `selective` keeps what matrix products, convolutions and attention gave and
    computes norms and activation functions again; `selective_ff` computes the wide layer of each feed-forward network
    again as well. Call it once per module, and before `compile_regions`.
    """
    if mode == "none":
        return
    blocks = list(_blocks(module, BLOCKS))
    if not blocks:
        raise UserError(
            f"training.activation_checkpointing is {mode}, and {type(module).__name__} has no blocks to compute again",
            rule=f"Blocks are {', '.join(BLOCKS)}",
            fix="Set training.activation_checkpointing: none",
        )
    for block in blocks:
        cast(Any, block).forward = _recomputed(block, mode)


def compile_for_training(module: nn.Module, device: torch.device) -> None:
    """Compiles transformer and residual blocks one by one: most of the gain for a fraction of the compiling.

    Shapes are static, so every bucket has code of its own. UserError where torch's compiler does not work.
    """
    if problem := execution.compiler_problem(device):
        raise UserError(
            f"torch.compile does not work here ({problem})",
            where="training.compile",
            rule="It needs a C++ compiler on a CPU, and Triton as well on a GPU",
            fix="Install them, or set training.compile: false",
        )
    execution.compile_for_inference(module, VARIANTS)


def _blocks(module: nn.Module, classes: tuple[str, ...]) -> Iterator[nn.Module]:
    return (block for block in module.modules() if type(block).__name__ in classes)


def _recomputed(block: nn.Module, mode: Checkpointing) -> Callable[..., Any]:
    """The block's forward, checkpointed. Within the module, so that hooks (of shards, of compilers) stay outside."""
    forward = block.forward
    # Random numbers are restored only where a block draws any; SDXL's do not.
    random = any(isinstance(part, nn.Dropout) and part.p > 0 for part in block.modules())
    extra: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if mode != "full":
        # A shortcut comes after the second convolution, which would be computed again just to reach it.
        convolutions = 2 if getattr(block, "conv_shortcut", None) is not None else 1
        extra["context_fn"] = partial(_contexts, mode == "selective_ff", convolutions)

    def checkpointed(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():  # previews and validation keep nothing anyway
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, **named, **extra)

    return checkpointed


def _contexts(
    feed_forward: bool, convolutions: int
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """A policy of its own for every call of a block, because it counts."""
    return cast(Any, create_selective_checkpoint_contexts)(_Policy(feed_forward, convolutions))


class _Policy:
    """The decision of selective checkpointing which results of a block to keep."""

    def __init__(self, feed_forward: bool, convolutions: int) -> None:
        self.feed_forward = feed_forward
        """Whether the wide layer of a feed-forward network is computed again."""
        self.convolutions = convolutions
        """How many are kept. Those after them end the block, and nothing in it needs them."""
        self.seen = {False: 0, True: 0}
        """Convolutions so far, by whether they are computed again."""

    def __call__(
        self, context: SelectiveCheckpointContext, operation: object, *inputs: Any, **_: Any
    ) -> CheckpointPolicy:
        if operation is _aten.convolution.default:
            # Counted apart in the forward pass and when computing again, which must decide alike.
            self.seen[context.is_recompute] += 1
            keep = self.seen[context.is_recompute] <= self.convolutions
        elif operation in _MATMULS:
            # mm and addmm have the weight last.
            keep = self._keep_matmul(cast(Tensor, inputs[-1]))
        else:
            keep = operation in _KEPT
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    def _keep_matmul(self, weight: Tensor) -> bool:
        inner, outer = weight.shape[-2:]
        if inner == _WIDE * outer:  # ends a transformer block, and is never computed again
            return False
        # The wide layer, with or without its gate.
        return not (self.feed_forward and outer in (_WIDE * inner, 2 * _WIDE * inner))
