"""Which images are kept: small pure functions, each of which knows one reason to drop.

An image that passes returns None. Measures are taken on the whole upright image, before any crop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image, ImageStat
from pydantic import Field

from terminus.conditioning import Size
from terminus.config.base import Config
from terminus.decode import HARD_PIXEL_LIMIT
from terminus.pictures import Dropped

HASH_DISTANCE = 3
"""Bits of 64 in which near duplicates may differ: re-encoding and mild scaling change 0 to 3."""
COLOR_DISTANCE = 4.0
"""Mean absolute difference of their 8x8 thumbnails in levels of 255; another background is far above it."""


class Filters(Config):
    """Thresholds. Whatever they drop is listed in the report with its reason."""

    max_file_bytes: int = Field(default=100_000_000, ge=1)
    """Larger files are not read."""
    max_pixels: int = Field(default=80_000_000, ge=1, le=HARD_PIXEL_LIMIT)
    """Images with more pixels are not decoded."""
    min_edge: int = Field(default=0, ge=0)
    """Shortest side in pixels. Images smaller than their bucket are dropped anyway: nothing is enlarged."""
    max_aspect: float = Field(default=4.0, ge=1.0)
    """Longest side divided by the shortest."""
    min_luminance: float = Field(default=0.0, ge=0.0, le=1.0)
    """Lowest mean Rec.601 luma, 0 (black) to 1 (white)."""
    max_luminance: float = Field(default=1.0, ge=0.0, le=1.0)
    """Highest mean Rec.601 luma, 0 to 1; Gamma v2 was trained with 0.5."""
    duplicates: Literal["exact", "near"] = "exact"
    """What counts as a duplicate: the same bytes, or also pictures that look the same in shape and colour."""


@dataclass(frozen=True)
class Measures:
    """What is measured of every image that decodes."""

    luminance: float
    """Mean Rec.601 luma, 0..1."""
    dhash: str
    """16 hex digits."""
    thumbprint: bytes
    """8x8 RGB."""


def measure(image: Image.Image) -> Measures:
    """Of an RGB image."""
    small = image.resize((72, 64), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    luminance = ImageStat.Stat(image.convert("L")).mean[0] / 255
    return Measures(luminance, bits.tobytes().hex(), small.resize((8, 8), Image.Resampling.BOX).tobytes())


def shape(size: Size, filters: Filters) -> Dropped | None:
    """Sides and aspect."""
    short, long = sorted(size)
    if short < filters.min_edge:
        return Dropped("edge too short", f"{size.width}x{size.height}, the limit is {filters.min_edge}")
    if long > filters.max_aspect * short:
        return Dropped("too elongated", f"{size.width}x{size.height}, the limit is {filters.max_aspect:g}:1")
    return None


def luminance(measures: Measures, filters: Filters) -> Dropped | None:
    """Mean luma."""
    if measures.luminance < filters.min_luminance:
        return Dropped("too dark", f"luminance {measures.luminance:.3f}, the limit is {filters.min_luminance:g}")
    if measures.luminance > filters.max_luminance:
        return Dropped("too bright", f"luminance {measures.luminance:.3f}, the limit is {filters.max_luminance:g}")
    return None


@dataclass
class NearDuplicates:
    """Finds an earlier image that looks the same.

    Two hashes within 3 bits of each other agree in at least one of their four 16-bit quarters, so only
    images that share a quarter are compared.
    """

    names: list[str] = field(default_factory=list[str])
    _prints: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    _quarters: dict[tuple[int, int], list[int]] = field(default_factory=dict[tuple[int, int], list[int]])

    def add(self, name: str, dhash: str, thumbprint: bytes) -> None:
        """Remembers an image that is kept."""
        value = int(dhash, 16)
        for quarter in _quarters(value):
            self._quarters.setdefault(quarter, []).append(len(self.names))
        self.names.append(name)
        self._prints.append((value, thumbprint))

    def find(self, dhash: str, thumbprint: bytes) -> str | None:
        """The name of the first remembered image that looks the same."""
        value = int(dhash, 16)
        nearby = {place for quarter in _quarters(value) for place in self._quarters.get(quarter, ())}
        colors = np.frombuffer(thumbprint, np.uint8).astype(np.int16)
        for place in sorted(nearby):
            other, other_print = self._prints[place]
            if (value ^ other).bit_count() > HASH_DISTANCE:
                continue
            difference = np.abs(colors - np.frombuffer(other_print, np.uint8))
            if float(difference.mean()) <= COLOR_DISTANCE:
                return self.names[place]
        return None


def _quarters(value: int) -> Iterable[tuple[int, int]]:
    return ((index, value >> (16 * index) & 0xFFFF) for index in range(4))
