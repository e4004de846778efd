"""Formats of an optimizer's moments between steps: in float32, in bfloat16, or in 8 bits.

Every step is computed in float32; these are only the forms in which its results wait for the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from terminus.training.optim.stochastic_rounding import stochastic

MomentFormat = Literal["fp32", "bf16", "int8"]

State = dict[str, Tensor]
"""What is remembered of one parameter, by name."""

Bits = Callable[[], Int32[Tensor, "..."]]
"""Draws random bits for each element; called only by those who need them."""

BLOCK = 256
"""Elements that share a scale in 8 bits."""
SMALLEST = 4096
"""Moments with fewer elements stay in float32, as in Dettmers et al. 2110.02861: they cost nothing, and hurt most."""


@runtime_checkable
class MomentStorage(Protocol):
    """One of the forms. A moment is called by its name in the state, where it may have more than one tensor."""

    def begin(self, state: State, name: str, like: Float32[Tensor, "..."]) -> None:
        """Puts a moment of zeros into the state."""
        ...

    def read(self, state: State, name: str) -> Float32[Tensor, "..."]:
        """The moment in float32."""
        ...

    def write(self, state: State, name: str, value: Float32[Tensor, "..."], bits: Bits) -> None:
        """Keeps a new value, which must be what `read` gave, changed in place or not."""
        ...


class Float:
    """float32: nothing is lost."""

    def begin(self, state: State, name: str, like: Float32[Tensor, "..."]) -> None:
        """Zeros."""
        state[name] = torch.zeros_like(like, memory_format=torch.contiguous_format)

    def read(self, state: State, name: str) -> Float32[Tensor, "..."]:
        """The tensor itself, which the step then changes in place."""
        return state[name]

    def write(self, state: State, name: str, value: Float32[Tensor, "..."], bits: Bits) -> None:
        """Does nothing: `value` is what `read` gave."""


class Brain:
    """bfloat16, rounded stochastically: a decay of 0.999 moves less than half of its last bit."""

    def begin(self, state: State, name: str, like: Float32[Tensor, "..."]) -> None:
        """Zeros."""
        state[name] = torch.zeros_like(like, dtype=torch.bfloat16, memory_format=torch.contiguous_format)

    def read(self, state: State, name: str) -> Float32[Tensor, "..."]:
        """A copy in float32, exact."""
        return state[name].float()

    def write(self, state: State, name: str, value: Float32[Tensor, "..."], bits: Bits) -> None:
        """Rounds up or down at random, right on average."""
        state[name] = stochastic(value, bits())


class Blocks:
    """8 bits: each block of 256 elements is scaled to its largest, and each becomes the nearest of 256 levels.

    Dettmers et al. 2110.02861, sections 2.1 and 2.2. Ours, in two tensor operations, because torchao's optimizer
    compiles a kernel for every shape before its first step, rounds bfloat16 weights with random numbers that no restart
    repeats, and changes how diffusers starts wherever it is installed. The levels are the same as torchao's.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[bool, torch.device], Float32[Tensor, " 256"]] = {}

    def begin(self, state: State, name: str, like: Float32[Tensor, "..."]) -> None:
        """Zeros; in float32 where the moment is small or does not divide into blocks."""
        if like.numel() < SMALLEST or like.numel() % BLOCK:
            state[name] = torch.zeros_like(like)
        else:
            self._keep(state, name, torch.zeros_like(like))

    def read(self, state: State, name: str) -> Float32[Tensor, "..."]:
        """A copy in float32; the tensor itself where it is kept so."""
        codes = state[name]
        if codes.dtype == torch.float32:
            return codes
        levels = self._levels(name, codes.device)[codes.int()].view(-1, BLOCK)
        return levels.mul_(state[f"{name}_scale"][:, None]).view(codes.shape)

    def write(self, state: State, name: str, value: Float32[Tensor, "..."], bits: Bits) -> None:
        """The nearest levels."""
        if state[name].dtype != torch.float32:
            self._keep(state, name, value)

    def _keep(self, state: State, name: str, value: Float32[Tensor, "..."]) -> None:
        levels, blocks = self._levels(name, value.device), value.reshape(-1, BLOCK)
        # Shares of the largest element of each block; one of zeros is divided by the smallest number there is.
        scale = blocks.abs().amax(1)
        shares = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        # The nearest level is the one whose limits, half-way to its neighbours, a share lies between.
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(shares, between, right=True, out_int32=True)
        state[name], state[f"{name}_scale"] = codes.to(torch.uint8).view(value.shape), scale

    def _levels(self, name: str, device: torch.device) -> Float32[Tensor, " 256"]:
        signed = name == "exp_avg"  # a mean of squares needs no sign, and has twice the levels
        if (signed, device) not in self._tables:
            self._tables[signed, device] = levels(signed).to(device)
        return self._tables[signed, device]


def levels(signed: bool) -> Float32[Tensor, " 256"]:
    """The dynamic tree of 2110.02861: seven decades below 1, each with twice as many levels as the one below it."""
    parts = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        # Each decade is divided equally, and its levels are the middles.
        edges = torch.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1)
        middles = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        parts += [middles, -middles] if signed else [middles]
    return torch.cat(parts).sort().values


def build_moments(form: MomentFormat) -> MomentStorage:
    """The form by its name."""
    return {"fp32": Float, "bf16": Brain, "int8": Blocks}[form]()
