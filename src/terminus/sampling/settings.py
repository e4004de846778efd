"""How pictures are made: the numbers that a user may choose, and what they come to on a given model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from terminus import runtime
from terminus.conditioning import Size
from terminus.config.errors import did_you_mean
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.sampling.solvers import SOLVERS

SEEDS = 2**63
"""Seeds are 0 .. SEEDS − 1."""
_GUIDANCE = 100.0
_RESCALE = 0.7
_SIDES = 4
"""Sides from a quarter of the model's own to four times it: outside, networks of this kind draw texture."""


@dataclass(frozen=True)
class Settings:
    """How pictures are made; the defaults are those of the command line and the Python API."""

    steps: int = 28
    guidance: float = 4.0
    """1 is the prompt's own prediction, and half the work."""
    rescale: float | None = None
    """Guidance rescale (Lin et al., section 3.4), 0..1; None is 0.7 on zero-terminal-SNR models and 0 on others."""
    solver: str = "dpmpp_2m"
    size: Size | None = None
    """Pixels; None is the size that the model was trained on."""
    precision: runtime.Precision | None = None
    """Of the networks; None is bf16 on a GPU and fp32 elsewhere. Latents and solvers are float32 always."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"{self.steps} sampling steps", rule="A picture needs at least one step")
        if not (math.isfinite(self.guidance) and 0 <= self.guidance <= _GUIDANCE):
            rule = f"Guidance is a number from 0 to {_GUIDANCE:g}; 1 leaves it out, 3 to 7 is usual"
            raise UserError(f"guidance {self.guidance}", rule=rule)
        if self.rescale is not None and not 0 <= self.rescale <= 1:
            raise UserError(f"rescale {self.rescale}", rule="Guidance rescale is a number from 0 to 1")
        if self.solver not in SOLVERS:
            near = did_you_mean(self.solver, SOLVERS)
            raise UserError(f"There is no solver `{self.solver}`", rule=f"Solvers: {', '.join(SOLVERS)}", fix=near)

    def rescale_for(self, components: Components) -> float:
        """The guidance rescale in force for this model; 0 without guidance, which has nothing to undo."""
        if self.guidance == 1.0:
            return 0.0
        usual = _RESCALE if components.record.schedule.zero_terminal else 0.0
        return usual if self.rescale is None else self.rescale

    def precision_for(self, components: Components) -> runtime.Precision:
        """The number format in force on this model's device."""
        return self.precision or ("bf16" if components.text.device.type == "cuda" else "fp32")

    def size_for(self, components: Components) -> Size:
        """The size in force, in pixels; UserError if this model cannot draw it."""
        native, multiple = components.native_pixels, size_multiple(components)
        size = self.size or Size(native, native)
        low, high = max(multiple, native // _SIDES), native * _SIDES
        if all(side % multiple == 0 and low <= side <= high for side in size):
            return size
        nearest = Size(*(min(max(round(side / multiple) * multiple, low), high) for side in size))
        raise UserError(
            f"This model cannot draw {size.width}x{size.height}",
            rule=f"Width and height are multiples of {multiple} from {low} to {high} pixels; it learnt at {native}",
            fix=f"The nearest is {nearest.width}x{nearest.height}",
        )


def size_multiple(components: Components) -> int:
    """Sides must be multiples of this many pixels, so that each halving in codec and UNet can be undone."""
    levels = len(cast(Sequence[int], components.unet.config["block_out_channels"]))
    return components.codec.factor * 2 ** (levels - 1)
