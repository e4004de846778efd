"""Everything that decides an image, as plain numbers: written into it, and read back to draw it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from typing import Any, Literal, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from terminus.conditioning import MicroConditioning, Size
from terminus.model.record import Schedule
from terminus.runtime import Precision

Task = Literal["text2img", "img2img", "inpaint", "outpaint", "upscale"]
_VERSION = "version"


@dataclass(frozen=True)
class Variation:
    """Noise turned from that of the image's seed towards another's."""

    seed: int
    strength: float
    """0 is the image's own noise, 1 the other."""


@dataclass(frozen=True)
class MaskUse:
    """The mask of an image that was painted anew in part, and how that part was joined to the rest."""

    sha256: str
    """SHA-256 of the mask's zeros and ones, in hex."""
    fill: str = "original"
    """The fill that the painted part began from."""
    feather: int = 0
    """Pixels over which new and old are mixed."""
    inverted: bool = False
    crop_padding: int | None = None
    """Pixels around the mask when only its surroundings were drawn; None is the whole image."""
    crop_size: Size | None = None
    """That those surroundings were drawn at, in pixels."""


@dataclass(frozen=True)
class Enlargement:
    """From a smaller image to this one."""

    factor: float
    source: Size
    """Size of the image that was enlarged, in pixels."""
    method: str
    """How the pixels or latents were stretched before they were drawn again."""
    steps: int | None = None
    """Steps of the second pass; None is as many as the first's."""
    tile: int | None = None
    """Side in pixels; None is all at once."""
    overlap: int | None = None
    """Overlap of neighbouring tiles, in pixels."""


@dataclass(frozen=True)
class AdapterUse:
    """A LoRA or its kin, in force while the image was drawn."""

    name: str
    sha256: str
    """SHA-256 of the file after its header, in hex, which renaming and retitling keep (A1111 shows the first 12)."""
    weight: float = 1.0
    text_weight: float | None = None
    """In the text encoders; None is as `weight`."""


@dataclass(frozen=True)
class ControlUse:
    """An image that guided the drawing: ControlNet, T2I-Adapter, IP-Adapter."""

    kind: str
    name: str
    scale: float
    image_sha256: str
    interval: tuple[float, float] | None = None
    """The part of the sampling in which it acted, 0..1; None is all of it."""
    sha256: str | None = None
    """SHA-256 of the network's file, or files, in hex."""


@dataclass(frozen=True)
class GenerationMetadata:
    """Everything that decides an image. A field at None was not used."""

    prompt: str
    negative: str
    seed: int
    steps: int
    solver: str
    guidance: float
    rescale: float
    size: Size
    """Size of the finished image, in pixels."""
    precision: Precision
    model: str
    model_hash: str
    """SHA-256 of the weights' file, in hex."""
    schedule: Schedule
    task: Task = "text2img"
    spacing: str = "trailing"
    interval: tuple[float, float] | None = None
    """Guidance acted on this part of the timesteps, 1 being pure noise; None is all of them."""
    template: str | None = None
    """The prompt before its wildcards were chosen; None where that is the prompt itself."""
    expanded_from: str | None = None
    """The user's prompt, where a text model wrote it out; None where nobody did."""
    strength: float | None = None
    """How much of an initial image was drawn anew, 0..1."""
    image_sha256: str | None = None
    """SHA-256 of the initial image's upright RGB pixels, in hex."""
    variation: Variation | None = None
    mask: MaskUse | None = None
    margins: tuple[int, int, int, int] | None = None
    """Outpainting: pixels added left, top, right, bottom."""
    enlargement: Enlargement | None = None
    adapters: tuple[AdapterUse, ...] = ()
    controls: tuple[ControlUse, ...] = ()
    conditioning: MicroConditioning | None = None
    """Sizes and crop that the network was told; None is a whole image of `size`."""
    negative_conditioning: MicroConditioning | None = None
    """The same for the unconditional prediction; None is as `conditioning`."""


_ORIGIN = TypeAdapter(GenerationMetadata)


def version() -> str:
    """The version of this package."""
    return metadata.version("terminus-xl")


def to_json(generation: GenerationMetadata) -> str:
    """Sorted and ASCII, so that equal origins are equal bytes and no container can spoil them."""
    return json.dumps({_VERSION: version(), **_plain(generation)}, sort_keys=True, allow_nan=False)


def from_text(text: str) -> GenerationMetadata:
    """The inverse of `to_json`. ValueError, in a short sentence, unless all of it is understood."""
    stored: object = from_json(text, allow_inf_nan=False)
    if not isinstance(stored, dict):
        raise ValueError("it is not a JSON object")
    payload = cast(dict[str, Any], stored)
    # Who wrote it decides no pixel.
    writer = payload.pop(_VERSION, None)
    try:
        # As JSON once more: there a strict check takes a list for a tuple.
        generation = _ORIGIN.validate_json(json.dumps(payload), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}") from error
    if _plain(generation) != payload:  # a key of another version, which may decide pixels
        raise ValueError(f"it holds more than this version knows; it was written by version {writer}")
    return generation


def without_surrogates(text: str) -> str:
    """Without halves of characters, such as the name of a folder may have; no file holds them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: Any) -> Any:
    """Dataclasses and named tuples as objects, tuples as lists; what was not used is left out."""
    if is_dataclass(value):
        pairs = ((field.name, getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, tuple):
        if not hasattr(cast(object, value), "_fields"):
            return [_plain(item) for item in cast("tuple[object, ...]", value)]
        pairs = cast(Any, value)._asdict().items()
    else:
        return without_surrogates(value) if isinstance(value, str) else value
    return {name: _plain(item) for name, item in pairs if item is not None and item != ()}
