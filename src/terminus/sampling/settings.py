"""Sampling settings: the numbers that a user may choose, and what they come to on a given model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from terminus import runtime
from terminus.conditioning import MicroConditioning, Size
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.sampling.guidance import Guidance
from terminus.sampling.limits import SEED, SEEDS, check_settings
from terminus.sampling.shapes import Aspect as Aspect

_RESCALE = 0.7
_SIDES = 4
"""Sides from a quarter of the model's own to four times it: outside, networks of this kind draw texture."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw."""

    prompt: str
    """In the grammar of `prompts`, its wildcards already chosen."""
    seed: int
    negative: str = ""
    variation: int = 0
    """Which neighbour of the seed's noise, where `Settings.variation` asks for neighbours."""
    template: str | None = None
    """The prompt before its wildcards were chosen; None where it has none."""
    expanded_from: str | None = None
    """The user's prompt, where a text model wrote it out; it decides no pixel."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed {self.seed}", rule=SEED)
        for text in (self.prompt, self.negative):
            # What is not UTF-8 on a command line reaches Python as such halves of characters.
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                raise UserError(f"{text!r} is not valid text", rule="Prompts are Unicode; write them in UTF-8")


@dataclass(frozen=True)
class Settings:
    """The sampling settings; the defaults are those of the command line and the Python API."""

    steps: int = 28
    guidance: float = 4.0
    """1 is the prompt's own prediction, and half the work."""
    rescale: float | None = None
    """Guidance rescale (Lin et al., section 3.4), 0..1; None is 0.7 at zero terminal SNR, and 0 else and for flows."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts on this part of the timesteps, 1 being pure noise (Kynkäänniemi et al. 2404.07724)."""
    solver: str = "dpmpp_2m"
    spacing: str = "trailing"
    size: Size | Aspect | None = None
    """Pixels, or a shape; None is the size that the model was trained on."""
    variation: float = 0.0
    """How far each image's noise is turned from its seed's, 0..1: images of one seed become neighbours."""
    conditioning: MicroConditioning | None = None
    """Sizes and crop that the network is told; None is a whole image of the size drawn."""
    negative_conditioning: MicroConditioning | None = None
    """The same for the unconditional prediction; None is as `conditioning`."""
    precision: runtime.Precision | None = None
    """Precision of the networks; None is bf16 on a GPU and fp32 elsewhere. Latents and solvers are always float32."""

    def __post_init__(self) -> None:
        check_settings(
            self.steps, self.guidance, self.rescale, self.interval, self.solver, self.spacing, self.variation
        )

    def rescale_for(self, components: Components) -> float:
        """The guidance rescale in force for this model; 0 without guidance, which has nothing to undo."""
        if self.guidance == 1.0:
            return 0.0
        schedule = components.record.schedule
        # A flow's prediction is mostly noise, which a rescale would leave in the image (docs/math.md).
        usual = _RESCALE if schedule.zero_terminal and schedule.prediction != "flow" else 0.0
        return usual if self.rescale is None else self.rescale

    def guidance_for(self, components: Components) -> Guidance:
        """The guidance in force for this model."""
        return Guidance(self.guidance, self.rescale_for(components), self.interval)

    def precision_for(self, components: Components) -> runtime.Precision:
        """The number format in force on this model's device."""
        return self.precision or ("bf16" if components.text_encoders.device.type == "cuda" else "fp32")

    def size_for(self, components: Components) -> Size:
        """The size in force, in pixels; UserError if this model cannot draw it."""
        native = components.native_pixels
        if isinstance(self.size, Aspect):
            return size_of_shape(self.size, components)
        size = self.size or Size(native, native)
        nearest = nearest_size(size, components)
        if size == nearest:
            return size
        low, high = _sides(components)
        multiple = size_multiple(components)
        raise UserError(
            f"This model cannot draw {size.width}x{size.height}",
            rule=f"Width and height are multiples of {multiple} from {low} to {high} pixels; it learnt at {native}",
            fix=f"The nearest is {nearest.width}x{nearest.height}",
        )


def size_multiple(components: Components) -> int:
    """Sides must be multiples of this many pixels, so that each halving in VAE and UNet can be undone."""
    levels = len(cast(Sequence[int], components.unet.config["block_out_channels"]))
    return components.vae.factor * 2 ** (levels - 1)


def nearest_size(size: Size, components: Components) -> Size:
    """The drawable size whose sides are nearest."""
    multiple, (low, high) = size_multiple(components), _sides(components)
    return Size(*(min(max(round(side / multiple) * multiple, low), high) for side in size))


def size_of_shape(aspect: Aspect, components: Components) -> Size:
    """The drawable size of this shape with about the native number of pixels (SDXL: multiples of 64)."""
    if min(aspect) < 1:
        raise UserError(f"shape {aspect.width}:{aspect.height}", rule="Both numbers of a shape are at least 1")
    native, multiple = components.native_pixels, size_multiple(components)
    # A sixteenth of the native side in whole multiples: 64 pixels for SDXL.
    grid = multiple * max(1, native // 16 // multiple)
    ratio = math.sqrt(aspect.width / aspect.height)
    low, high = _sides(components)
    # Of this shape, with the area of the native square.
    sides = (native / ratio, native * ratio)
    return Size(*(min(max(round(side / grid) * grid, low), high) for side in sides))


def _sides(components: Components) -> tuple[int, int]:
    native = components.native_pixels
    return max(size_multiple(components), native // _SIDES), native * _SIDES
