"""The geometry of training images: each one's bucket, its LANCZOS size, its crop.

Kept apart from decoding and from the store so that one object, `CropPlan`, decides both the pixels and the
numbers that the UNet is told about them (Podell et al. 2307.01952, section 2.2): they cannot disagree.
Nothing is ever enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional

from terminus import runtime
from terminus.conditioning import Crop, MicroConditioning, Size
from terminus.data.order import permuted

CropRule = Literal["center", "random", "native"]

FORMULA = "lanczos-1"
"""Part of every transform spec: changes when the same settings would give other pixels."""


class CropPosition(NamedTuple):
    """The position of a crop in the free space: (vertical, horizontal), each in [0, 1)."""

    vertical: float
    horizontal: float


@dataclass(frozen=True)
class Transform:
    """The transform of every image, as plain numbers; `spec` names it in the store."""

    resolution: int
    """Side of the square whose area every bucket approaches, in pixels."""
    crop: CropRule = "center"
    """center, random: LANCZOS down until the bucket is just covered, then cut; native: cut as it is."""
    step: int | None = None
    """Buckets are multiples of this many pixels, and it divides `resolution`; None is one square bucket."""
    seed: int = 0
    """Decides random positions; no part of a centred transform."""

    @property
    def spec(self) -> str:
        """A string that differs whenever the pixels of some image could differ."""
        buckets = "square" if self.step is None else f"aspect/{self.step}"
        place = self.crop if self.crop == "center" else f"{self.crop}@{self.seed}"
        return f"{FORMULA} {self.resolution} {buckets} {place}"


@dataclass(frozen=True)
class CropPlan:
    """One image's way from file to pixels; sizes are (height, width)."""

    original: Size
    """Of the decoded, upright image."""
    resized: Size
    """After LANCZOS; equal to `original` if nothing is resampled."""
    crop: Crop
    """Top-left corner of the cut, in pixels of the resized image."""
    target: Size
    """Of the cut: the size of the bucket."""

    @property
    def bucket(self) -> str:
        """ "HxW", the bucket's name in the store."""
        return f"{self.target.height}x{self.target.width}"

    @property
    def room(self) -> int:
        """The number of different cuts of the same size that the resized image has; 1 if it is cut to its own size."""
        return (self.resized.height - self.target.height + 1) * (self.resized.width - self.target.width + 1)

    def at(self, corner: Crop) -> CropPlan:
        """The same image cut elsewhere."""
        return replace(self, crop=corner)

    @property
    def conditioning(self) -> MicroConditioning:
        """The micro-conditioning that belongs to exactly these pixels."""
        return MicroConditioning(self.original, self.crop, self.target)


@lru_cache(maxsize=64)
def buckets(resolution: int, step: int | None) -> tuple[Size, ...]:
    """All sizes that images are cut to.

    With a step: every multiple of it with an area within 10 % below resolution² and sides between half
    and twice the resolution. At (1024, 64) these are the 40 buckets of Podell et al., appendix I, and the
    transpose of 704x1344 that their list leaves out.
    """
    if step is None:
        return (Size(resolution, resolution),)
    area = resolution * resolution
    sides = range(-(-resolution // (2 * step)) * step, 2 * resolution + 1, step)
    return tuple(Size(h, w) for h in sides for w in sides if 0.9 * area <= h * w <= area)


def nearest_bucket(original: Size, choices: Sequence[Size]) -> Size | None:
    """The bucket of the closest shape among those that fit into the image; None if none fits."""
    ratio = log(original.width / original.height)
    fitting = [size for size in choices if size.height <= original.height and size.width <= original.width]
    if not fitting:
        return None
    # The nearest shape, and of two that are equally near the larger.
    return min(
        fitting,
        key=lambda size: (round(abs(log(size.width / size.height) - ratio), 9), -size.height * size.width),
    )


def position(image_hash: str, transform: Transform) -> CropPosition:
    """The crop position of one image: a pure function of its content and the seed."""
    index = int(image_hash[:15], 16)
    return CropPosition(
        runtime.uniform(transform.seed, index, "crop vertical"),
        runtime.uniform(transform.seed, index, "crop horizontal"),
    )


def plan(original: Size, transform: Transform, where: CropPosition) -> CropPlan | None:
    """The way of one image; None if every bucket would need it enlarged."""
    target = nearest_bucket(original, buckets(transform.resolution, transform.step))
    if target is None:
        return None
    resized = original if transform.crop == "native" else cover(original, target)
    # Room for the cut to move in.
    free = Size(resized.height - target.height, resized.width - target.width)
    if transform.crop == "center":
        corner = Crop(free.height // 2, free.width // 2)
    else:
        corner = Crop(int(where.vertical * (free.height + 1)), int(where.horizontal * (free.width + 1)))
    return CropPlan(original, resized, corner, target)


def cover(original: Size, target: Size) -> Size:
    """The smallest size of the original's shape that covers `target`, rounded to the nearest pixel."""
    if original.height * target.width < original.width * target.height:
        # The original is wider, so that the height decides.
        return Size(target.height, max(target.width, round(original.width * target.height / original.height)))
    return Size(max(target.height, round(original.height * target.width / original.width)), target.width)


def cuts(way: CropPlan, image_hash: str, spec: str, count: int) -> tuple[CropPlan, ...]:
    """Up to `count` different cuts of one resized image, the first of them `way`.

    The others are drawn without repetition from all places that are left, by the image's hash and the spec alone, so
    cut k is the same however many are asked for. Where there is no room there are fewer: an unaltered square is one.
    """
    columns = way.resized.width - way.target.width + 1
    # Places are numbered row by row; that of the first cut is not drawn again.
    taken = way.crop.top * columns + way.crop.left
    found = [way]
    for number in range(min(count, way.room) - 1):
        place = permuted(number, way.room - 1, f"{image_hash}:{spec}")
        place += place >= taken
        found.append(way.at(Crop(*divmod(place, columns))))
    return tuple(found)


def specs(spec: str, count: int) -> tuple[str, ...]:
    """The names of one image's cuts in the store; the first is the transform's own spec."""
    return (spec, *(f"{spec} cut {number}" for number in range(1, count)))


def crop_and_resize(pixels: UInt8[np.ndarray, "height width 3"], way: CropPlan) -> UInt8[np.ndarray, "rows columns 3"]:
    """The pixels that `way` describes, from the decoded upright image."""
    return cut(resize(pixels, way), way)


def resize(pixels: UInt8[np.ndarray, "height width 3"], way: CropPlan) -> UInt8[np.ndarray, "rows columns 3"]:
    """The whole image at the size from which `way` cuts.

    torch's antialiased LANCZOS on channels-last bytes is within one level of Pillow's (its weights have 16
    bits: two levels at hard edges) and several times faster. Both work on the gamma-encoded values.
    """
    if pixels.shape[:2] != way.original:
        raise ValueError(f"the plan is for {way.original}, the image is {pixels.shape[:2]}")
    if way.resized == way.original:
        return pixels
    # HWC seen as NCHW has exactly torch's channels-last strides: no copy.
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    image = functional.interpolate(image, size=tuple(way.resized), mode="lanczos", antialias=True)
    return image[0].permute(1, 2, 0).numpy()


def cut(resized: UInt8[np.ndarray, "height width ..."], way: CropPlan) -> UInt8[np.ndarray, "rows columns ..."]:
    """The crop of `way` out of the resized image."""
    if resized.shape[:2] != way.resized:
        raise ValueError(f"the plan cuts from {way.resized}, the image is {resized.shape[:2]}")
    (top, left), (height, width) = way.crop, way.target
    return np.ascontiguousarray(resized[top : top + height, left : left + width])
