"""Everything about one candidate that needs no other: read, decode, measure, filter, plan.

A plain function, so that every engine gives the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from terminus import decode
from terminus.bounded_files import read_bounded
from terminus.conditioning import Size
from terminus.data import filters, geometry, record
from terminus.data.filters import Filters, Measures, Score
from terminus.data.geometry import CropPlan, Transform
from terminus.data.record import content_hash
from terminus.images import Color, Dropped

THUMBNAIL = 96
"""Longest side of an image in the report, in pixels."""
MEASURED = 256
"""Shortest side, at least, of what is measured, in pixels."""
CLASSIFIED = 512
"""Shortest side, at least, of what a classifier sees, in pixels: marks are small."""

_MAKE, _MODEL = 0x010F, 0x0110
"""EXIF tags."""


@dataclass(frozen=True)
class ImageVerdict:
    """A candidate that was looked at, and the verdict on it."""

    file: bytes | tuple[Path, Path]
    """Its bytes, or its path and the folder it must lie in."""
    background: Color
    checksum: str | None = None
    """"sha256:<hex>" or "md5:<hex>" that the bytes must have."""
    mask: bytes | None = None
    given: Mapping[Score, float] = field(default_factory=dict[Score, float])
    """Scores that need not be computed."""


@dataclass(frozen=True)
class Seen:
    """The facts on which a candidate is decided; None and empty where it did not come that far."""

    image_hash: str | None = None
    """sha256 of the file's bytes, hex."""
    md5: str | None = None
    size: Size | None = None
    measures: Measures | None = None
    scores: dict[Score, float] = field(default_factory=dict[Score, float])
    """What classifiers say; not what the source says."""
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Examined:
    """A candidate that may be kept, if it is no duplicate."""

    data: bytes
    transparent: bool
    plan: CropPlan
    image_hash: str
    measures: Measures
    seen: Seen


@dataclass(frozen=True)
class Refused:
    """A candidate that is dropped, with what is known of it."""

    dropped: Dropped
    seen: Seen = Seen()


def examine_image(subject: ImageVerdict, rules: Filters, transform: Transform) -> Examined | Refused:
    """Reads, decodes and judges one image."""
    # The bytes, if they are those that the source describes.
    data = subject.file
    if not isinstance(data, bytes):
        data = read_bounded(*data, rules.max_file_bytes)
    if isinstance(data, Dropped):
        return Refused(data)
    image_hash, md5 = content_hash(data), record.md5(data)
    seen = Seen(image_hash, md5)
    if subject.checksum is not None and subject.checksum.lower() not in (f"sha256:{image_hash}", f"md5:{md5}"):
        return Refused(Dropped("checksum differs", f"the file is sha256:{image_hash}, md5:{md5}"), seen)
    # The image, its measures, and what would be cut out of it.
    decoded = decode.decode(data, decode.Limits(rules.max_file_bytes, rules.max_pixels))
    if isinstance(decoded, Dropped):
        return Refused(decoded, seen)
    whole = Image.fromarray(decoded.on(subject.background))
    # Averaged once over whole blocks of pixels; measures of the average are those of the image, much sooner.
    image = whole.reduce(max(1, min(whole.size) // MEASURED))
    measures = filters.measure_image(image, has_camera(data))
    plan = geometry.plan(decoded.size, transform, geometry.position(image_hash, transform))
    # Whether it may be kept: classifiers, which cost most, see only what passes all else.
    scores: dict[Score, float] = {}
    dropped = _judged(decoded.size, measures, plan, rules, transform) or _masked(subject, decoded.size, rules)
    if dropped is None and rules.classifiers:
        scores = _classified(whole, subject.given, rules)
        dropped = filters.scores(scores, rules)
    seen = Seen(image_hash, md5, decoded.size, measures, scores, thumbnail(image))
    if dropped or plan is None:
        return Refused(dropped or Dropped("smaller than its bucket"), seen)
    return Examined(data, decoded.alpha is not None, plan, image_hash, measures, seen)


def _judged(
    size: Size, measures: Measures, plan: CropPlan | None, rules: Filters, transform: Transform
) -> Dropped | None:
    if dropped := filters.shape(size, rules):
        return dropped
    if plan is None:
        detail = f"{size.width}x{size.height}; nothing is enlarged to {transform.resolution}"
        return Dropped("smaller than its bucket", detail)
    return filters.camera(measures, rules) or filters.luminance(measures, rules)


def _masked(subject: ImageVerdict, size: Size, rules: Filters) -> Dropped | None:
    if subject.mask is None:
        return None
    mask = decode.decode(subject.mask, decode.Limits(rules.max_file_bytes, rules.max_pixels))
    if isinstance(mask, Dropped):
        return Dropped("mask cannot be used", f"{mask.reason} {mask.detail}".strip())
    if mask.size != size:
        here = f"{mask.size.width}x{mask.size.height}"
        return Dropped("mask cannot be used", f"it has {here} pixels, the image {size.width}x{size.height}")
    return None


def _classified(whole: Image.Image, given: Mapping[Score, float], rules: Filters) -> dict[Score, float]:
    wanted = [classifier for classifier in rules.classifiers if classifier.score not in given]
    if not wanted:
        return {}
    from terminus.data import classify  # not at the top: few recipes need transformers to prepare

    image = whole.reduce(max(1, min(whole.size) // CLASSIFIED))
    return {classifier.score: classify.class_score(image, classifier) for classifier in wanted}


def has_camera(data: bytes) -> bool:
    """Whether the EXIF of an image file names what took it; False for EXIF that cannot be read."""
    try:
        with Image.open(BytesIO(data), formats=decode.FORMATS) as image:
            exif = image.getexif()
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, OverflowError, EOFError, TypeError):
        return False
    named = (exif.get(_MAKE), exif.get(_MODEL))
    return any(isinstance(name, str) and name.strip(" \0") for name in named)


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG for the report."""
    file = BytesIO()
    image.resize(_within(image.size), Image.Resampling.BOX).save(file, "JPEG", quality=80)
    return file.getvalue()


def _within(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, THUMBNAIL / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
