"""Which images are kept: small pure functions, each of which knows one reason to drop.

An image that passes returns None. Measures are taken on the whole upright image, before any crop. What can be
decided from what the source says is decided in `source_filters`, before a file is read or downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageStat
from pydantic import Field

from terminus.conditioning import Size
from terminus.config.base import Config
from terminus.decode import HARD_PIXEL_LIMIT
from terminus.images import Dropped

Score = Literal["watermark", "unsafe", "aesthetic", "similarity"]
"""What a source may say of an image as a number: a field of `record.SourceMetadata`, a column of `images`."""


class Classifier(Config):
    """An image classifier that gives the scores which a source does not."""

    score: Literal["watermark", "unsafe"]
    """Which score it gives, as the sum of the probabilities of `labels`; a source's own number comes first."""
    model: str
    """A transformers image classifier with safetensors weights (a folder, or a hub id), or nudenet, an extra."""
    labels: tuple[str, ...] = Field(min_length=1)
    """The classes that count, as its config.json or NudeNet names them; NudeNet's best detection is the score."""


class CaptionRules(Config):
    """Which captions are used; an image without any that passes is dropped."""

    min_words: int = Field(default=1, ge=1)
    """Fewest words, counted by the spaces between them."""
    max_characters: int = Field(default=65536, ge=1)
    """Longest caption."""
    script: Literal["any", "latin"] = "any"
    """latin: at least nine of ten letters are Latin ones."""
    forbidden: tuple[str, ...] = ()
    """Texts that may not occur anywhere in a caption, in any case."""


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
    """What counts as a duplicate: the same bytes, or also images that look the same in shape and colour."""
    require_exif_camera: bool = False
    """Whether only photographs whose EXIF names a camera are kept."""
    max_watermark: float | None = Field(default=None, ge=0.0, le=1.0)
    """Highest probability of a watermark; null does not ask."""
    max_unsafe: float | None = Field(default=None, ge=0.0, le=1.0)
    """Highest probability of content that is not safe for work; null does not ask."""
    min_aesthetic: float | None = None
    """Lowest aesthetic score, on the scale of the source's column; null does not ask."""
    min_similarity: float | None = Field(default=None, ge=-1.0, le=1.0)
    """Lowest CLIP similarity of image and text; null does not ask."""
    unscored: Literal["drop", "keep"] = "drop"
    """What becomes of an image without a score that one of these four limits asks for."""
    classifiers: tuple[Classifier, ...] = ()
    """Give scores where the source has none."""
    require_tags: tuple[str, ...] = ()
    """Only images with at least one of these tags, in any case; none named asks for none."""
    exclude_tags: tuple[str, ...] = ()
    """No image with any of these tags, in any case."""
    captions: CaptionRules = CaptionRules()
    """Which captions are used."""
    blocklists: tuple[str, ...] = ()
    """Text files or URIs, a line each: sha256, md5 or dhash in hex, a URL, or a host with all below it."""


@dataclass(frozen=True)
class Measures:
    """The measures of an image, taken of every one that decodes."""

    luminance: float
    """Mean Rec.601 luma, 0..1."""
    dhash: str
    """16 hex digits."""
    thumbprint: bytes
    """8x8 RGB."""
    camera: bool = False
    """Whether its EXIF names a camera."""


def measure_image(image: Image.Image, camera: bool = False) -> Measures:
    """The measures of an RGB image; `camera` is passed on."""
    # 72 x 64 divides into the 9 x 8 of the hash and the 8 x 8 of the thumbprint.
    small = image.resize((72, 64), Image.Resampling.BOX)
    # Difference hash: whether each grey is brighter than the one to its left.
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    luminance = ImageStat.Stat(image.convert("L")).mean[0] / 255
    return Measures(luminance, bits.tobytes().hex(), small.resize((8, 8), Image.Resampling.BOX).tobytes(), camera)


def shape(size: Size, filters: Filters) -> Dropped | None:
    """Sides and aspect."""
    short, long = sorted(size)
    if short < filters.min_edge:
        return Dropped("edge too short", f"{size.width}x{size.height}, the limit is {filters.min_edge}")
    if long > filters.max_aspect * short:
        return Dropped("too elongated", f"{size.width}x{size.height}, the limit is {filters.max_aspect:g}:1")
    return None


def camera(measures: Measures, filters: Filters) -> Dropped | None:
    """Whether a photograph says what took it."""
    if filters.require_exif_camera and not measures.camera:
        return Dropped("no camera in EXIF", "neither Make nor Model")
    return None


def luminance(measures: Measures, filters: Filters) -> Dropped | None:
    """Mean luma."""
    if measures.luminance < filters.min_luminance:
        return Dropped("too dark", f"luminance {measures.luminance:.3f}, the limit is {filters.min_luminance:g}")
    if measures.luminance > filters.max_luminance:
        return Dropped("too bright", f"luminance {measures.luminance:.3f}, the limit is {filters.max_luminance:g}")
    return None


def scores(values: Mapping[Score, float], filters: Filters) -> Dropped | None:
    """The scores that are there, against their limits; NaN is beyond every limit."""
    highest: dict[Score, tuple[float | None, str]] = {
        "watermark": (filters.max_watermark, "watermark"),
        "unsafe": (filters.max_unsafe, "unsafe content"),
    }
    for name, (limit, reason) in highest.items():
        if limit is not None and name in values and not values[name] <= limit:
            return Dropped(reason, f"score {values[name]:.3f}, the limit is {limit:g}")
    lowest: dict[Score, tuple[float | None, str]] = {
        "aesthetic": (filters.min_aesthetic, "low aesthetic score"),
        "similarity": (filters.min_similarity, "text and image differ"),
    }
    for name, (limit, reason) in lowest.items():
        if limit is not None and name in values and not values[name] >= limit:
            return Dropped(reason, f"score {values[name]:.3f}, the limit is {limit:g}")
    return None


def limited_scores(filters: Filters) -> tuple[Score, ...]:
    """The scores that a limit asks for."""
    limits: dict[Score, float | None] = {
        "watermark": filters.max_watermark,
        "unsafe": filters.max_unsafe,
        "aesthetic": filters.min_aesthetic,
        "similarity": filters.min_similarity,
    }
    return tuple(name for name, limit in limits.items() if limit is not None)
