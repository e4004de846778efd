"""Edits, which a user asks for besides a prompt: an image to start from, and which part of it may change."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.tiling import starts
from terminus.sampling.canvas import (
    Canvas,
    ImageSource,
    Margins,
    Mask,
    Repaint,
    digest,
    enlarge,
    extended,
    open_image,
    open_mask,
)
from terminus.sampling.canvas import redraw as redraw_canvas
from terminus.sampling.canvas import repaint as repaint_canvas
from terminus.sampling.generation_metadata import Enlargement, MaskUse
from terminus.sampling.limits import HIRES_STRENGTH, check_hires, check_strength
from terminus.sampling.settings import Settings

log = logging.getLogger("terminus")

TILE_OVERLAP = 1 / 4
"""Overlap as a share of a tile's side; less shows where tiles meet, more is only slower."""
_ENLARGED = 0.3
"""Strength of an upscaled image that the network sees whole."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A canvas, how much of it is drawn anew, and what the finished image says of that."""

    canvas: Canvas
    strength: float
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of `GenerationMetadata` that the edit sets."""
    tile: tuple[int, int] | None = None
    """(side, overlap) in latents."""


@dataclass(frozen=True)
class Hires:
    """A second pass on an enlarged first image, which keeps its composition."""

    factor: float = 1.5
    strength: float = HIRES_STRENGTH

    def __post_init__(self) -> None:
        check_hires(self.factor, self.strength)


def image_to_image(image: ImageSource, strength: float, settings: Settings, components: Components) -> Edit:
    """The whole image drawn anew by `strength`."""
    pixels = open_image(image)
    facts = {"task": "img2img", "strength": check_strength(strength), "image_sha256": digest(pixels)}
    return Edit(redraw_canvas(pixels, settings, components), strength, facts)


def inpainting(
    image: ImageSource, mask: ImageSource, strength: float, how: Repaint, settings: Settings, components: Components
) -> Edit:
    """The white part of the mask drawn anew."""
    pixels, hidden = open_image(image), open_mask(mask)
    canvas = repaint_canvas(pixels, hidden, how, check_strength(strength), settings, components)
    facts = {"task": "inpaint", "image_sha256": digest(pixels), "mask": _use(hidden, how, strength, canvas)}
    return Edit(canvas, strength, {"strength": strength, **facts})


def outpainting(image: ImageSource, margins: Margins, how: Repaint, settings: Settings, components: Components) -> Edit:
    """The image continued beyond its edges."""
    pixels = open_image(image)
    larger, hidden = extended(pixels, margins)
    canvas = repaint_canvas(larger, hidden, how, 1.0, settings, components)
    facts = {"task": "outpaint", "image_sha256": digest(pixels), "mask": _use(hidden, how, 1.0, canvas)}
    return Edit(canvas, 1.0, {"strength": 1.0, "margins": tuple(margins), **facts})


def upscaling(
    image: ImageSource, factor: float, strength: float | None, settings: Settings, components: Components
) -> Edit:
    """The image enlarged, and drawn anew by `strength` in tiles of the size that the model knows.

    Each tile is drawn from the whole prompt, and with enough strength each becomes the whole image: None lowers the
    strength by the number of tiles, and says so; a higher one is kept, with a warning.
    """
    if settings.size is not None:
        raise UserError("Upscaling takes no size", rule="An upscaled image has the size of its image times the factor")
    if strength is not None:
        check_strength(strength)
    pixels = open_image(image)
    canvas = enlarge(pixels, factor, components)
    # In tiles of the size that the model learnt, if it cannot see all at once.
    scale = components.vae.factor
    side = components.native_pixels // scale
    tile = (side, round(side * TILE_OVERLAP)) if max(canvas.size) > components.native_pixels else None
    tiles = 1 if tile is None else math.prod(len(starts(length // scale, *tile)) for length in canvas.size)
    strength = _strength_in_tiles(strength, tiles)
    used = {} if tile is None else {"tile": tile[0] * scale, "overlap": tile[1] * scale}
    growth = Enlargement(factor, Size(*pixels.shape[:2]), "lanczos", **used)
    facts = {"task": "upscale", "strength": strength, "image_sha256": digest(pixels), "enlargement": growth}
    return Edit(canvas, strength, facts, tile)


def strength_for(tiles: int) -> float:
    """The default strength for an upscaled image of so many tiles: lower, the more tiles there are."""
    return round(_ENLARGED / math.sqrt(tiles), 3)


def _strength_in_tiles(asked: float | None, tiles: int) -> float:
    # Said in both cases: that it was lowered, or that it is high for so many tiles.
    fitting = strength_for(tiles)
    if tiles > 1 and asked is None:
        log.warning(
            "drawn in %d tiles, each from the whole prompt: strength is lowered from %g to %g, so that none of them "
            "becomes an image of its own; --strength sets it", tiles, _ENLARGED, fitting,
        )  # fmt: skip
    elif asked is not None and asked > fitting and tiles > 1:
        log.warning(
            "drawn in %d tiles, each from the whole prompt: at strength %g each of them may become an image of its "
            "own; %g, the default for so many, keeps to what is there", tiles, asked, fitting,
        )  # fmt: skip
    return fitting if asked is None else asked


def _use(mask: Mask, how: Repaint, strength: float, canvas: Canvas) -> MaskUse:
    around = None if how.padding is None else canvas.size
    return MaskUse(digest(mask), how.fill_for(strength), how.feather, crop_padding=how.padding, crop_size=around)
