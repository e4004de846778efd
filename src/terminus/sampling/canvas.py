"""From a user's image to one that the model can draw on, and back.

A canvas has a size that the model can draw. What is drawn on it is brought back to where it belongs in the user's
image, whose own pixels stay exactly what they were wherever nothing was asked to change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from terminus.conditioning import Size
from terminus.decode import HARD_PIXEL_LIMIT, Decoded, Limits, decode, of_image
from terminus.errors import UserError
from terminus.images import Dropped
from terminus.model.components import Components
from terminus.sampling.files import read_file
from terminus.sampling.limits import check_factor, check_margins, check_repaint
from terminus.sampling.masks import Fill, feathered, fill_masked
from terminus.sampling.settings import Aspect, Settings, nearest_size, size_multiple, size_of_shape

# Images of several sizes meet in one function here, so the names of the axes bind nothing.
Pixels = UInt8[Tensor, "_height _width 3"]
Mask = Bool[Tensor, "_height _width"]
Batch = UInt8[Tensor, "batch _height _width 3"]
ImageSource = str | Path | Image.Image
"""A file, or a Pillow image."""

_LIMITS = Limits(file_bytes=2**28, pixels=HARD_PIXEL_LIMIT)
_WHITE = (255, 255, 255)
_LARGEST = 16_384
"""The longest side of an image that we make, in pixels."""
_COLLAR = 64
"""Pixels around the part that is drawn whose colours are continued into it."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """The image that is drawn on."""

    pixels: Pixels
    mask: Mask | None
    """Where the image is painted anew; None is everywhere."""
    finish: Callable[[Batch], Batch]
    """Drawn images of the canvas' size → images as the user gets them."""
    place: Callable[[Pixels], Pixels] = lambda other: other
    """Another image of the same whole (such as its depths) → the part of it that lies on the canvas."""

    @property
    def size(self) -> Size:
        return Size(*self.pixels.shape[:2])


class Margins(NamedTuple):
    """Pixels that are added on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass(frozen=True)
class Repaint:
    """The way in which a masked part is painted anew."""

    fill: str | None = None
    """What is put behind the mask; None is `surroundings` at strength 1 and `original` below."""
    feather: int = 0
    """Width of the soft edge inside the mask, in pixels."""
    padding: int | None = None
    """Draw the mask and this many pixels around it at the model's size; None draws on the whole image."""

    def __post_init__(self) -> None:
        check_repaint(self.fill, self.feather, self.padding)

    def fill_for(self, strength: float) -> Fill:
        """The fill that is used: by default the surroundings, or below strength 1 what was there."""
        if self.fill:
            return cast(Fill, self.fill)
        return "surroundings" if strength == 1.0 else "original"


def open_image(source: ImageSource) -> Pixels:
    """Upright sRGB pixels of a file or a Pillow image; what is transparent lies on white."""
    if isinstance(source, Image.Image):
        return _of_image(source)
    return _on_white(decode(read_file(Path(source), _LIMITS.file_bytes), _LIMITS), str(source))


def _of_image(image: Image.Image) -> Pixels:
    if 0 in image.size:
        raise UserError("This image has no pixels", rule="Images have at least one")
    return _on_white(of_image(image))


def _on_white(decoded: Decoded | Dropped, where: str = "") -> Pixels:
    if isinstance(decoded, Dropped):
        detail = f" ({decoded.detail})" if decoded.detail else ""
        rule = "Images are JPEG, PNG or WebP files" if where else "Its pixels can be read, as long as its file is open"
        raise UserError(f"This image cannot be used: {decoded.reason}{detail}", where=where, rule=rule)
    return torch.from_numpy(decoded.on(_WHITE))


def open_mask(source: ImageSource) -> Mask:
    """True where the file is nearer to white than to black."""
    return open_image(source).float().mean(-1) > 127.5


def digest(pixels: Tensor) -> str:
    """SHA-256 of an image's upright pixels, row by row, in hex: of a mask, of its zeros and ones."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def redraw(image: Pixels, settings: Settings, components: Components) -> Canvas:
    """The whole image, at the asked size or else at the drawable one nearest to its own; cropped to its shape."""
    size = settings.size_for(components) if settings.size is not None else _fitting(_size(image), components)
    return Canvas(scaled(image, size), None, lambda drawn: drawn, lambda other: scaled(other, size))


def enlarge(image: Pixels, factor: float, components: Components) -> Canvas:
    """The image with sides `factor` times as long (LANCZOS)."""
    check_factor(factor)
    size = Size(*(round(side * factor) for side in image.shape[:2]))
    low = size_multiple(components)
    _check_area(size)
    if min(size) < low:
        raise UserError(f"{size.width}x{size.height} pixels", rule=f"Sides are at least {low} pixels afterwards")
    # The model's multiple is reached by repeating the last row and column, which `finish` cuts off again.
    return Canvas(
        _padded(_resized(image, size), low),
        None,
        lambda drawn: drawn[:, : size.height, : size.width].contiguous(),
        lambda other: _padded(scaled(other, size), low),
    )


def extended(image: Pixels, margins: Margins) -> tuple[Pixels, Mask]:
    """A larger image with the old one in it, its edges continued, and the mask of what is new."""
    check_margins(*margins)
    left, top, right, bottom = margins
    _check_area(Size(image.shape[0] + top + bottom, image.shape[1] + left + right))
    # torch pads from the last dimension on: left and right come first.
    sides = (left, right, top, bottom)
    larger = functional.pad(image.permute(2, 0, 1)[None].float(), sides, mode="replicate")[0]
    mask = functional.pad(torch.zeros(image.shape[:2]), sides, value=1.0) > 0
    return larger.permute(1, 2, 0).to(torch.uint8), mask


def repaint(
    image: Pixels, mask: Mask, how: Repaint, strength: float, settings: Settings, components: Components
) -> Canvas:
    """The image with its masked part hidden; `finish` puts what is drawn there into the untouched image."""
    if mask.shape != image.shape[:2]:
        sizes = [f"{width}x{height}" for height, width in (mask.shape, image.shape[:2])]
        rule = "A mask has the size of its image; white is painted anew, black stays"
        raise UserError(f"The mask is {sizes[0]}, the image {sizes[1]}", rule=rule)
    if not mask.any():
        raise UserError("The mask is black everywhere", rule="White is painted anew, so there would be nothing to do")
    # The box of the image that is drawn, and the size to draw it at: the whole as it is, or a part enlarged.
    whole, multiple = _size(image), size_multiple(components)
    if how.padding is None:
        _check_whole(image, settings, components)
        box, size = (slice(0, whole.height), slice(0, whole.width)), None
    else:
        around = _extent(mask, how.padding)
        size = settings.size_for(components) if settings.size is not None else _shape(around, components)
        box = _box(around, size, whole)

    # What the model sees behind the mask, and how much of the drawn image counts at each pixel.
    near, inner = _collar(box, whole)
    backdrop = fill_masked(image[near], mask[near], how.fill_for(strength))[inner]
    weight = feathered(mask[near], how.feather)[inner][..., None]

    # The mask at the drawn size: a pixel is painted anew if any pixel that it stands for is.
    region, hidden = Size(*mask[box].shape), mask[box]
    if size is None:
        hidden = _padded(hidden[..., None], multiple)[..., 0]
    else:
        hidden = functional.adaptive_max_pool2d(_nearest(hidden, size), size)[0] > 0

    def drawable(part: Pixels) -> Pixels:
        return _padded(part, multiple) if size is None else _resized(part, size)

    def finish(drawn: Batch) -> Batch:
        # Back at the size of the box, and into the image.
        parts = [_resized(one, region) if size else one[: region.height, : region.width] for one in drawn]
        return torch.stack([_composed(image, backdrop, part, weight, box) for part in parts])

    return Canvas(drawable(backdrop), hidden, finish, lambda other: drawable(scaled(other, whole)[box]))


def _composed(image: Pixels, backdrop: Pixels, part: Pixels, weight: Tensor, box: Box) -> Pixels:
    """`part` in its box where weight is above 0, fading into the backdrop; elsewhere the image, untouched."""
    mixed = (weight * part.float() + (1 - weight) * backdrop.float()).round().to(torch.uint8)
    whole = image.clone()
    whole[box] = torch.where(weight > 0, mixed, image[box])
    return whole


def _check_area(size: Size) -> None:
    """UserError for an image that could be written, but is too large for our programs to read again."""
    if max(size) > _LARGEST or size.height * size.width > HARD_PIXEL_LIMIT:
        rule = f"Images have sides up to {_LARGEST:,} and in all up to {HARD_PIXEL_LIMIT:,} pixels"
        raise UserError(f"This would be an image of {size.width}x{size.height} pixels", rule=rule)


def _check_whole(image: Pixels, settings: Settings, components: Components) -> None:
    size = _size(image)
    drawn = Size(*_padded(image, size_multiple(components)).shape[:2])
    if settings.size is not None and settings.size_for(components) != drawn:
        rule = "Inpainting a whole image keeps its size; a size is for the part around the mask"
        raise UserError(
            "A size is given without a padding", rule=rule, fix="Give a padding, such as 32, or leave the size out"
        )
    if drawn != nearest_size(drawn, components):
        raise UserError(
            f"This model cannot draw {size.width}x{size.height} at once",
            rule=f"It learnt at {components.native_pixels} pixels",
            fix="Give a padding, such as 32: then only the mask and so many pixels around it are drawn",
        )


Extent = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns, each from and to; beyond the image too."""
Box = tuple[slice, slice]
"""Rows and columns of the image."""


def _extent(mask: Mask, padding: int) -> Extent:
    """The mask and its padding."""
    places = [mask.any(dim=axis).nonzero() for axis in (1, 0)]
    rows, columns = ((int(one[0]) - padding, int(one[-1]) + 1 + padding) for one in places)
    return rows, columns


def _shape(around: Extent, components: Components) -> Size:
    """The size at which the model draws what has this shape."""
    height, width = (stop - start for start, stop in around)
    return size_of_shape(Aspect(width, height), components)


def _box(around: Extent, shape: Size, whole: Size) -> Box:
    """The extent, grown to the shape of `shape` as far as the image goes."""
    lengths = [stop - start for start, stop in around]
    # As large as the shape must be to cover the extent; then each side is moved into the image.
    scale = max(length / side for length, side in zip(lengths, shape, strict=True))
    slices: list[slice] = []
    for (start, stop), side, most in zip(around, shape, whole, strict=True):
        # Without the small number rounding errors would add a row.
        length = min(math.ceil(side * scale - 1e-6), most)
        first = min(max((start + stop - length) // 2, 0), most - length)
        slices.append(slice(first, first + length))
    return slices[0], slices[1]


def _collar(box: Box, whole: Size) -> tuple[Box, Box]:
    """The box with a collar, which is all of a large image that a mask's edge depends on; and the box within that."""
    rows, columns = (
        slice(max(side.start - _COLLAR, 0), min(side.stop + _COLLAR, most))
        for side, most in zip(box, whole, strict=True)
    )
    within = [
        slice(side.start - out.start, side.stop - out.start) for side, out in zip(box, (rows, columns), strict=True)
    ]
    return (rows, columns), (within[0], within[1])


def _fitting(size: Size, components: Components) -> Size:
    """The drawable size nearest to this one, its shape kept where it has to be scaled."""
    native = components.native_pixels
    # Far from what the model draws only the shape is kept.
    if max(size) > 4 * native or min(size) < native // 4:
        return size_of_shape(Aspect(size.width, size.height), components)
    return nearest_size(size, components)


def scaled(image: Pixels, size: Size) -> Pixels:
    """Cropped at the centre to the shape of `size`, and resized to it."""
    height, width = image.shape[:2]
    scale = max(size.height / height, size.width / width)
    # Cropped first: a line of one pixel, scaled to an image's height, would be millions of pixels long.
    tall, wide = min(size.height / scale, height), min(size.width / scale, width)
    left, top = (width - wide) / 2, (height - tall) / 2
    return _resized(image, size, (left, top, min(left + wide, width), min(top + tall, height)))


def _resized(pixels: Pixels, size: Size, box: tuple[float, float, float, float] | None = None) -> Pixels:
    """`box` of the image (left, top, right, bottom; None is all of it) at this size, by LANCZOS."""
    if _size(pixels) == size:
        return pixels
    image = Image.fromarray(pixels.numpy()).resize((size.width, size.height), Image.Resampling.LANCZOS, box)
    return torch.from_numpy(np.array(image))


def _nearest(mask: Mask, size: Size) -> Tensor:
    """At least as large as `size` on both sides, so that pooling to it loses no masked pixel."""
    larger = [max(have, want) for have, want in zip(mask.shape, size, strict=True)]
    return functional.interpolate(mask[None, None].float(), size=larger, mode="nearest-exact")[0]


def _padded(image: Tensor, multiple: int) -> Tensor:
    """Right and bottom edge repeated up to the next multiple."""
    height, width = image.shape[:2]
    # What is missing to the next multiple, 0 if nothing is.
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return image
    padded = functional.pad(image.permute(2, 0, 1)[None].float(), (0, right, 0, down), mode="replicate")
    return padded[0].permute(1, 2, 0).to(image.dtype)


def _size(image: Pixels) -> Size:
    return Size(*image.shape[:2])
