"""An optimizer that computes in float32 and stores less: weights in bfloat16, moments in bfloat16 or 8 bits.

torch's optimizers keep moments in the format of the weights and round to the nearest, which stops small updates
(`rounding`). Here each parameter is unpacked, updated by a rule in float32, and packed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from terminus.errors import UserError
from terminus.training.distributed.sharded_files import held
from terminus.training.optim.moment_formats import MomentStorage, State
from terminus.training.optim.stochastic_rounding import Dice, stochastic


@runtime_checkable
class Rule(Protocol):
    """The mathematics of an update."""

    @property
    def whole(self) -> bool:
        """Whether it must see all of a parameter, not a shard of it."""
        ...

    def begin(self, name: str, state: State, weights: Float32[Tensor, "..."]) -> None:
        """Puts what is remembered before the first step into the state."""
        ...

    def update(
        self, weights: Float32[Tensor, "*shape"], gradient: Float32[Tensor, "*shape"], state: State, step: int,
        rate: float, decay: float, dice: Dice,
    ) -> None:  # fmt: skip
        """Takes step number `step` (from 1): changes weights and state in place."""
        ...


@dataclass(frozen=True)
class AdamWRule:
    """torch's own fused AdamW between two forms of the moments."""

    beta1: float
    beta2: float
    epsilon: float
    moments: MomentStorage
    whole: bool = False

    def begin(self, name: str, state: State, weights: Float32[Tensor, "..."]) -> None:
        """Moments of zero."""
        for moment in ("exp_avg", "exp_avg_sq"):
            self.moments.begin(state, moment, weights)

    def update(
        self, weights: Float32[Tensor, "*shape"], gradient: Float32[Tensor, "*shape"], state: State, step: int,
        rate: float, decay: float, dice: Dice,
    ) -> None:  # fmt: skip
        """Algorithm 2 of Loshchilov & Hutter 1711.05101. The step uses the new moments before they are rounded."""
        # torch's own step, on moments in float32.
        mean, square = self.moments.read(state, "exp_avg"), self.moments.read(state, "exp_avg_sq")
        taken = torch.full((), step - 1.0, device=weights.device)  # the kernel counts one up
        adamw(
            [weights], [gradient], [mean], [square], [], [taken], fused=True, amsgrad=False, beta1=self.beta1,
            beta2=self.beta2, lr=rate, weight_decay=decay, eps=self.epsilon, maximize=False,
        )  # fmt: skip
        # Both moments are rounded by one draw of 32 bits, 16 for each.
        drawn: list[Tensor] = []

        def bits() -> Tensor:
            drawn.append(dice.bits("moments", weights) if not drawn else drawn[0] >> 16)
            return drawn[-1]

        self.moments.write(state, "exp_avg", mean, bits)
        self.moments.write(state, "exp_avg_sq", square, bits)


@dataclass(frozen=True)
class AdafactorRule:
    """Shazeer & Stern 1804.04235 without relative steps: the rate means what it means for AdamW.

    Ours, because torch's ties the rate to the size of the weights (and waits for the device twice per tensor), and
    neither it nor transformers' stores bfloat16 right on average or sees a kernel as a matrix: both factor 3 × 3
    kernels along the 3 × 3, which saves a third where this saves nearly all.
    """

    beta2_decay: float
    """The square's memory is 1 − step ** −this (section 7.2)."""
    clip: float
    """Largest root mean square of an update, in units of the rate (section 6)."""
    whole: bool = True

    def begin(self, name: str, state: State, weights: Float32[Tensor, "..."]) -> None:
        """Zeros: a mean square for each row and each column of a matrix, or for each element of a vector."""
        if weights.ndim < 2:
            state["square"] = torch.zeros_like(weights)
        else:
            matrix = weights.view(len(weights), -1)
            state["rows"], state["columns"] = torch.zeros_like(matrix[:, 0]), torch.zeros_like(matrix[0])

    def update(
        self, weights: Float32[Tensor, "*shape"], gradient: Float32[Tensor, "*shape"], state: State, step: int,
        rate: float, decay: float, dice: Dice,
    ) -> None:  # fmt: skip
        """Algorithm 4 of 1804.04235, and decoupled weight decay."""
        # Section 7.2: 1 at the first step and less at each, so that the zeros of the beginning need no correction.
        new = step**-self.beta2_decay
        squared = gradient.square().add_(1e-30)  # epsilon 1 of the paper: a dead gradient has no direction
        # Section 3: a vector has all its mean squares, a matrix those of rows times those of columns.
        if "square" in state:
            state["square"].lerp_(squared, new)
            update = gradient * state["square"].rsqrt()
        else:
            squared = squared.view(len(weights), -1)
            rows, columns = state["rows"].lerp_(squared.mean(1), new), state["columns"].lerp_(squared.mean(0), new)
            scale = torch.outer((rows / rows.mean()).rsqrt(), columns.rsqrt())
            update = gradient * scale.view(weights.shape)
        # Section 6: the update as a whole is clipped.
        update.div_((update.square().mean().sqrt() / self.clip).clamp_(min=1.0))
        weights.mul_(1 - rate * decay).sub_(update, alpha=rate)


class LowMemoryOptimizer(torch.optim.Optimizer):
    """A rule applied to each parameter in float32, whatever the parameter and its state are stored in.

    bfloat16 parameters are rounded stochastically, by a function of (seed, step, name, element). Gradients may be
    bfloat16 or float32 (`gradients.store_in_bf16`). State is kept in plain tensors, in the order of indices.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rule: Rule, seed: int) -> None:
        """Groups have `params`, a list of (name, parameter), and `weight_decay`."""
        self.rule, self.seed = rule, seed
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            names = group.get("param_names", ())  # a process may own nothing
            for name, parameter in zip(names, group["params"], strict=True):
                if parameter.grad is not None:
                    self._update(name, parameter, float(group["lr"]), float(group["weight_decay"]))

    def _update(self, name: str, parameter: Tensor, rate: float, decay: float) -> None:
        # What this process holds of the parameter, in float32.
        stored, start = self._held(name, parameter)
        gradient, _ = self._held(name, cast(Tensor, parameter.grad))
        weights = stored.float().contiguous()  # the parameter itself where it is float32 and lies in order
        state = cast(State, self.state[parameter])
        if not state:
            # On the CPU: it is read at each step, and a GPU would have to be waited for.
            state["step"] = torch.zeros(())
            self.rule.begin(name, state, weights)
        # The rule's step.
        step = int(state["step"].add_(1).item())
        dice = Dice(self.seed, step, name, start)
        self.rule.update(weights, gradient.float().contiguous(), state, step, rate, decay, dice)
        # Back into the format that it is stored in; nothing is copied where the rule worked on the parameter itself.
        if stored.dtype == torch.bfloat16:
            weights = stochastic(weights, dice.bits("weights", weights))
        if weights.data_ptr() != stored.data_ptr():
            stored.copy_(weights)

    def _held(self, name: str, tensor: Tensor) -> tuple[Tensor, int]:
        """The part of a tensor that this process holds, and the number of its first element in the whole."""
        problem = f"{name} is sharded"
        if self.rule.whole and isinstance(tensor, DTensor) and not all(one.is_replicate() for one in tensor.placements):
            raise _cannot_follow(problem)
        try:
            mine = held(tensor)
        except ValueError as error:
            raise _cannot_follow(f"{problem} ({error})") from error
        return mine.local, mine.start * prod(mine.shape[1:])


def _cannot_follow(problem: str) -> UserError:
    return UserError(
        f"{problem}, which this optimizer cannot follow",
        where="training.optimizer",
        rule="AdamW needs shards of whole rows, and Adafactor and Muon the whole parameter",
        fix="Use adamw, or training.parallel.shard: optimizer",
    )
