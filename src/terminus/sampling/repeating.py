"""What a picture says of itself, turned back into what was asked for: to draw the same picture again.

A picture names its model, its initial picture, its mask and its adapters by their hashes. All of them are compared
before anything is drawn: another picture than the one that was asked for teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from terminus.errors import UserError
from terminus.model.components import Components
from terminus.sampling.canvas import Margins, Picture, Repaint
from terminus.sampling.edits import Edit, Hires, image_to_image, inpainting, outpainting, upscaling
from terminus.sampling.generation_metadata import Origin
from terminus.sampling.metadata import Format, encode
from terminus.sampling.settings import Request, Settings

_CALLED = {
    "model_hash": "model",
    "schedule": "schedule of the model",
    "image_sha256": "initial picture",
    "mask": "mask",
    "adapters": "set of adapters",
    "controls": "set of guides",
}
"""What is given again, by the field that tells it from others."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What one picture was asked for with."""

    request: Request
    settings: Settings
    edit: Edit | None
    hires: Hires | None


def asked(origin: Origin, components: Components, image: Picture | None, mask: Picture | None) -> Asked:
    """From a picture's own words and the files that it names; UserError for a file too few or too many."""
    check_given(origin, image, mask)
    varied, grown = origin.variation, origin.enlargement
    again = Hires(grown.factor, origin.strength or 1.0) if grown and origin.task == "text2img" else None
    size = origin.mask.crop_size if origin.mask else grown.source if grown else origin.size
    settings = Settings(
        steps=origin.steps,
        guidance=origin.guidance,
        rescale=origin.rescale,
        interval=origin.interval or (0.0, 1.0),
        solver=origin.solver,
        spacing=origin.spacing,
        size=None if origin.task == "upscale" else size,
        variation=varied.strength if varied else 0.0,
        conditioning=origin.conditioning,
        negative_conditioning=origin.negative_conditioning,
        precision=origin.precision,
    )
    number = varied.seed if varied else 0
    request = Request(origin.prompt, origin.seed, origin.negative, number, origin.template)
    return Asked(request, settings, _edit(origin, settings, components, image, mask), again)


def check_given(origin: Origin, image: Picture | None, mask: Picture | None) -> None:
    """UserError unless just those pictures are given that this one was drawn from."""
    given = {"image": image is not None, "mask": mask is not None}
    needed = {"image": origin.task != "text2img", "mask": origin.task == "inpaint"}
    if given != needed:
        files = [name for name, need in needed.items() if need]
        raise UserError(
            f"This picture is drawn again from {' and '.join(files) or 'neither image nor mask'}",
            rule=f"Its task is {origin.task}",
            fix=f"Give what it was drawn from: --{' and --'.join(files)}" if files else "Leave them out",
        )


def compare(origin: Origin, found: Mapping[str, Any]) -> None:
    """UserError if what was `found`, fields of `Origin`, is not what the picture was drawn with."""
    here = replace(origin, **found)
    other = [name for field, name in _CALLED.items() if _told(here, field) != _told(origin, field)]
    if other:
        raise UserError(
            f"This picture was drawn with another {' and another '.join(other)}",
            rule=f"It says: model {origin.model} ({origin.model_hash[:10]}), {_files(origin)}",
            fix="Give what it was drawn with; adapters are attached before",
        )


def _told(origin: Origin, field: str) -> object:
    """Adapters add up: neither their order nor what they are called decides anything."""
    if field != "adapters":
        return getattr(origin, field)
    return sorted(
        (one.sha256, one.weight, one.weight if one.text_weight is None else one.text_weight) for one in origin.adapters
    )


def _files(origin: Origin) -> str:
    named = [f"initial picture {origin.image_sha256[:10]}"] if origin.image_sha256 else []
    named += [f"mask {origin.mask.sha256[:10]}"] if origin.mask else []
    named += [f"adapter {one.name} at {one.weight:g} ({one.sha256[:10]})" for one in origin.adapters]
    named += [f"{one.kind} {one.name} at {one.scale:g}" for one in origin.controls]
    return ", ".join(named) or "no other files"


def _edit(
    origin: Origin, settings: Settings, components: Components, image: Picture | None, mask: Picture | None
) -> Edit | None:
    if image is None:
        return None
    strength, use = origin.strength or 1.0, origin.mask
    how = Repaint(use.fill, use.feather, use.crop_padding) if use else Repaint()
    if mask is not None:
        return inpainting(image, mask, strength, how, settings, components)
    if origin.task == "outpaint":
        return outpainting(image, Margins(*(origin.margins or (0, 0, 0, 0))), how, settings, components)
    if origin.task == "upscale":
        factor = origin.enlargement.factor if origin.enlargement else 1.0
        return upscaling(image, factor, strength, settings, components)
    return image_to_image(image, strength, settings, components)


def difference(picture: Image.Image, file: Path) -> str | None:
    """How this picture differs from that in the file, in the file's own format; None if no byte of a pixel does."""
    with Image.open(file) as there:
        kind: Format = "JPEG" if there.format == "MPO" else cast(Format, there.format)
        known = np.asarray(there.convert("RGB")).astype(np.int16)
    with Image.open(BytesIO(encode(picture, kind, private=True))) as here:  # JPEG changes pixels, ours as theirs
        made = np.asarray(here.convert("RGB")).astype(np.int16)
    if made.shape != known.shape:
        return f"it is {known.shape[1]}x{known.shape[0]} pixels, what was drawn {made.shape[1]}x{made.shape[0]}"
    gaps = np.abs(made - known).max(axis=-1)
    return f"{np.count_nonzero(gaps):,} of {gaps.size:,} differ, by up to {gaps.max()} of 255" if gaps.any() else None
