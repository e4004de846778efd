"""A request from an image's own metadata: to draw the same image again.

An image names its model, its initial image, its mask and its adapters by their hashes. All of them are compared
before anything is drawn: another image than the one that was asked for teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.sampling.canvas import ImageSource, Margins, Repaint
from terminus.sampling.edits import Edit, Hires, image_to_image, inpainting, outpainting, upscaling
from terminus.sampling.generation_metadata import GenerationMetadata
from terminus.sampling.metadata import Format, encode_image
from terminus.sampling.settings import ImageRequest, Settings

_CALLED = {
    "model_hash": "model",
    "schedule": "schedule of the model",
    "image_sha256": "initial image",
    "mask": "mask",
    "adapters": "set of adapters",
    "controls": "set of guides",
}
"""Inputs that must be given again, by the field that tells them from others."""


@dataclass(frozen=True, eq=False)
class RecordedRequest:
    """Everything that one image was drawn with."""

    request: ImageRequest
    settings: Settings
    edit: Edit | None
    hires: Hires | None


def _drawn_size(generation: GenerationMetadata) -> Size | None:
    """The size that was asked for: of the masked crop, or before an enlargement; None for upscaling, which has none."""
    if generation.task == "upscale":
        return None
    if generation.mask:
        return generation.mask.crop_size
    return generation.enlargement.source if generation.enlargement else generation.size


def recorded_request(
    generation: GenerationMetadata, components: Components, image: ImageSource | None, mask: ImageSource | None
) -> RecordedRequest:
    """The request that an image's metadata and the files it names describe; UserError for missing or extra files."""
    check_given(generation, image, mask)
    varied, grown = generation.variation, generation.enlargement
    # Enlarged from a prompt, it had a second pass.
    again = Hires(grown.factor, generation.strength or 1.0) if grown and generation.task == "text2img" else None
    settings = Settings(
        steps=generation.steps,
        guidance=generation.guidance,
        rescale=generation.rescale,
        interval=generation.interval or (0.0, 1.0),
        solver=generation.solver,
        spacing=generation.spacing,
        size=_drawn_size(generation),
        variation=varied.strength if varied else 0.0,
        conditioning=generation.conditioning,
        negative_conditioning=generation.negative_conditioning,
        precision=generation.precision,
    )
    number = varied.seed if varied else 0
    request = ImageRequest(
        generation.prompt, generation.seed, generation.negative, number, generation.template, generation.expanded_from
    )
    return RecordedRequest(request, settings, _edit(generation, settings, components, image, mask), again)


def check_given(generation: GenerationMetadata, image: ImageSource | None, mask: ImageSource | None) -> None:
    """UserError unless just those images are given that this one was drawn from."""
    given = {"image": image is not None, "mask": mask is not None}
    needed = {"image": generation.task != "text2img", "mask": generation.task == "inpaint"}
    if given != needed:
        files = [name for name, need in needed.items() if need]
        raise UserError(
            f"This image is drawn again from {' and '.join(files) or 'neither image nor mask'}",
            rule=f"Its task is {generation.task}",
            fix=f"Give what it was drawn from: --{' and --'.join(files)}" if files else "Leave them out",
        )


def check_same(generation: GenerationMetadata, found: Mapping[str, Any]) -> None:
    """UserError if what was `found`, fields of `GenerationMetadata`, is not what the image was drawn with."""
    # The same metadata with what is here: where they differ, something else was given.
    here = replace(generation, **found)
    other = [name for field, name in _CALLED.items() if _told(here, field) != _told(generation, field)]
    if other:
        raise UserError(
            f"This image was drawn with another {' and another '.join(other)}",
            rule=f"It says: model {generation.model} ({generation.model_hash[:10]}), {_files(generation)}",
            fix="Give what it was drawn with; adapters are attached before",
        )


def _told(generation: GenerationMetadata, field: str) -> object:
    """Adapters add up: neither their order nor what they are called decides anything."""
    if field != "adapters":
        return getattr(generation, field)
    return sorted(
        (one.sha256, one.weight, one.weight if one.text_weight is None else one.text_weight)
        for one in generation.adapters
    )


def _files(generation: GenerationMetadata) -> str:
    named = [f"initial image {generation.image_sha256[:10]}"] if generation.image_sha256 else []
    named += [f"mask {generation.mask.sha256[:10]}"] if generation.mask else []
    named += [f"adapter {one.name} at {one.weight:g} ({one.sha256[:10]})" for one in generation.adapters]
    named += [f"{one.kind} {one.name} at {one.scale:g}" for one in generation.controls]
    return ", ".join(named) or "no other files"


def _edit(
    generation: GenerationMetadata,
    settings: Settings,
    components: Components,
    image: ImageSource | None,
    mask: ImageSource | None,
) -> Edit | None:
    if image is None:
        return None
    strength, use = generation.strength or 1.0, generation.mask
    # With a mask it is an inpainting; else the task says what was done to the image.
    how = Repaint(use.fill, use.feather, use.crop_padding) if use else Repaint()
    if mask is not None:
        return inpainting(image, mask, strength, how, settings, components)
    if generation.task == "outpaint":
        return outpainting(image, Margins(*(generation.margins or (0, 0, 0, 0))), how, settings, components)
    if generation.task == "upscale":
        factor = generation.enlargement.factor if generation.enlargement else 1.0
        return upscaling(image, factor, strength, settings, components)
    return image_to_image(image, strength, settings, components)


def difference(image: Image.Image, file: Path) -> str | None:
    """The difference between this image and that in the file, in the file's own format; None if no byte of a pixel
    does."""
    with Image.open(file) as there:
        kind: Format = "JPEG" if there.format == "MPO" else cast(Format, there.format)
        # In 16 bits with sign: differences of bytes would wrap around.
        known = np.asarray(there.convert("RGB")).astype(np.int16)
    with Image.open(BytesIO(encode_image(image, kind, private=True))) as here:  # JPEG changes pixels, ours as theirs
        made = np.asarray(here.convert("RGB")).astype(np.int16)
    if made.shape != known.shape:
        return f"it is {known.shape[1]}x{known.shape[0]} pixels, what was drawn {made.shape[1]}x{made.shape[0]}"
    gaps = np.abs(made - known).max(axis=-1)
    return f"{np.count_nonzero(gaps):,} of {gaps.size:,} differ, by up to {gaps.max()} of 255" if gaps.any() else None
