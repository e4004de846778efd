"""Everything about one candidate that needs no other: read, decode, measure, filter, plan.

A plain function, so that every engine gives the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from terminus import decode
from terminus.data import filters, geometry
from terminus.data.filters import Filters, Measures
from terminus.data.geometry import Plan, Transform
from terminus.data.record import content_hash
from terminus.pictures import Color, Dropped

THUMBNAIL = 96
"""Longest side of a picture in the report, in pixels."""
MEASURED = 256
"""Shortest side, at least, of what is measured, in pixels."""


@dataclass(frozen=True)
class Examined:
    """A candidate that may be kept, if it is no duplicate."""

    data: bytes
    image_hash: str
    transparent: bool
    measures: Measures
    plan: Plan
    thumbnail: bytes


@dataclass(frozen=True)
class Refused:
    """A candidate that is dropped, with what is known of it."""

    dropped: Dropped
    image_hash: str | None = None
    thumbnail: bytes | None = None


def examine(
    source: bytes | tuple[Path, Path], background: Color, rules: Filters, transform: Transform
) -> Examined | Refused:
    """`source` is the file's bytes, or its path and the folder it must lie in."""
    data = source if isinstance(source, bytes) else decode.read(*source, rules.max_file_bytes)
    if isinstance(data, Dropped):
        return Refused(data)
    image_hash = content_hash(data)
    decoded = decode.decode(data, decode.Limits(rules.max_file_bytes, rules.max_pixels))
    if isinstance(decoded, Dropped):
        return Refused(decoded, image_hash)
    dropped = filters.shape(decoded.size, rules)
    picture = Image.fromarray(decoded.on(background))
    # Averaged once over whole blocks of pixels; measures of the average are those of the image, much sooner.
    picture = picture.reduce(max(1, min(picture.size) // MEASURED))
    small = thumbnail(picture)
    plan = geometry.plan(decoded.size, transform, geometry.position(image_hash, transform))
    if plan is None and dropped is None:
        size = f"{decoded.size.width}x{decoded.size.height}"
        dropped = Dropped("smaller than its bucket", f"{size}; nothing is enlarged to {transform.resolution}")
    measures = filters.measure(picture)
    dropped = dropped or filters.luminance(measures, rules)
    if dropped or plan is None:
        return Refused(dropped or Dropped("smaller than its bucket"), image_hash, small)
    return Examined(data, image_hash, decoded.alpha is not None, measures, plan, small)


def thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG for the report."""
    file = BytesIO()
    picture.resize(_within(picture.size), Image.Resampling.BOX).save(file, "JPEG", quality=80)
    return file.getvalue()


def _within(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, THUMBNAIL / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
