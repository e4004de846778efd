"""The records of preparation: a candidate comes in, a row or a rejection comes out.

The fields of the row classes are the columns of the tables (`schema`), so that a column exists in one place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

import pyarrow as pa

from terminus.conditioning import Size
from terminus.data.caption import Caption
from terminus.data.geometry import CropPlan
from terminus.images import Color, Dropped

Split = Literal["train", "validation"]
LargeBytes = Annotated[bytes, pa.large_binary()]
"""Bytes of a column that holds more than 2 GiB in one batch."""
Counts = Annotated[tuple[int, ...], pa.list_(pa.int64())]


@dataclass(frozen=True)
class SourceMetadata:
    """A source's statements on an image beside its captions; None where it says nothing."""

    watermark: float | None = None
    """Probability of a watermark, 0..1."""
    unsafe: float | None = None
    """Probability of content that is not safe for work, 0..1."""
    aesthetic: float | None = None
    """Score of an aesthetic predictor, most often 1..10."""
    similarity: float | None = None
    """Of image and text under CLIP, -1..1."""
    tags: tuple[str, ...] = ()
    size: Size | None = None
    """In pixels: what is too small by its own account need not be downloaded."""


@dataclass(frozen=True)
class Candidate:
    """An image that a source offers. One of `path` (with `root`), `data`, `url` and `problem` is set; only a URL may
    stand beside another."""

    source: str
    """Name of the source in the recipe."""
    source_id: str
    """Unique within the source and the same in every run; for a folder the relative path."""
    captions: tuple[Caption, ...] = ()
    path: Path | None = None
    root: Path | None = None
    """The folder that `path` must not lead out of."""
    data: bytes | None = None
    url: str | None = None
    """Where the image lies in the web. It is downloaded from there unless `data` or `path` brings it."""
    checksum: str | None = None
    """What the source says of the file's bytes: "sha256:<hex>" or "md5:<hex>"."""
    metadata: SourceMetadata = SourceMetadata()
    mask: bytes | None = None
    """An image file of the same shape: where it is black, the loss is not counted."""
    stamp: str = ""
    """Changes when the content behind `source_id` may have changed: an unchanged one is not read again."""
    background: Color | None = None
    """Overrides the recipe's background for transparent images, and makes the image another row."""
    split: Split | None = None
    """Set by sources that know; otherwise decided by the image's hash."""
    licence: str | None = None
    near_duplicates: bool = False
    """True for sources whose images are alike on purpose."""
    problem: Dropped | None = None
    """Set where the source already knows that the image cannot be used."""

    @property
    def remote(self) -> bool:
        """Whether it has to be downloaded."""
        return self.url is not None and self.data is None and self.path is None

    def state(self, background: Color) -> str:
        """Changes with anything that a source says of the image; in the same state it is not judged again."""
        content = content_hash(self.data) if self.data else self.stamp
        metadata = (self.captions, self.background or background, self.split, self.licence, self.problem)
        # Added only where something is said, so that all other candidates keep the state that they had without these.
        if (more := (self.url, self.checksum, self.metadata, self.mask)) != (None, None, SourceMetadata(), None):
            metadata += more
        return _digest(content, repr(metadata))[:16]


@dataclass(frozen=True)
class SourcePart:
    """A piece of a source that can be skipped as a whole: an archive, a table."""

    id: str
    """Unique within the source and the same in every run."""
    stamp: str
    """Changes when its content does; "" for what must be read every time."""
    candidates: Callable[[], Iterator[Candidate]]


@runtime_checkable
class Parted(Protocol):
    """A source that consists of parts."""

    def parts(self) -> Iterator[SourcePart]:
        """In the order of `candidates`, which gives what all of them give."""
        ...


@dataclass(frozen=True)
class PartRow:
    """A row of the `parts` table: what became of the candidates of a part that was judged to its end."""

    source: str
    part: str
    stamp: str
    transform: str
    rules: str
    """Digest of all that decides about its candidates: the source's settings, the filters, the block-lists' content."""
    reasons: tuple[str, ...]
    """Why candidates were dropped; "" is the count of those that were kept."""
    counts: Counts


@dataclass(frozen=True)
class Rejection:
    """A row of the `rejected` table."""

    source: str
    source_id: str
    image_hash: str | None
    """None where the file was never read (a FIFO, a missing file)."""
    state: str
    transform: str
    rules: str
    """The filters under which it was dropped, as canonical JSON."""
    reason: str
    detail: str
    thumbnail: bytes | None = None
    """Small JPEG for the report, where the image could be decoded."""
    twin: str | None = None
    """Key of the kept image that it duplicates."""
    url: str | None = None
    licence: str | None = None
    original_height: int | None = None
    original_width: int | None = None
    luminance: float | None = None
    watermark: float | None = None
    unsafe: float | None = None
    aesthetic: float | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class ImageRow:
    """A row of the `images` table: an image that training will use, with its untouched bytes."""

    key: str
    image_hash: str
    """sha256 of the file's bytes, hex."""
    source: str
    source_id: str
    split: Split
    captions: tuple[str, ...]
    caption_origins: tuple[str, ...]
    caption_weights: tuple[float, ...]
    """How often each caption is drawn, in proportion."""
    data: LargeBytes
    background: str | None
    """"#rrggbb" under transparent pixels; null if the image has none."""
    plan: CropPlan
    luminance: float
    """Mean Rec.601 luma of the whole upright image, 0..1."""
    dhash: str
    """64-bit difference hash, 16 hex digits."""
    thumbprint: bytes
    """The image at 8x8 RGB: tells colours apart where the difference hash cannot."""
    licence: str | None
    state: str
    """`Candidate.state` when it was judged."""
    transform: str
    rules: str
    """The filters that it passed, as canonical JSON."""
    url: str | None = None
    watermark: float | None = None
    unsafe: float | None = None
    aesthetic: float | None = None
    similarity: float | None = None
    tags: tuple[str, ...] = ()
    camera: bool = False
    """Whether its EXIF names a camera."""
    mask: LargeBytes | None = None
    """Image file of the same shape: where it is black, the loss is not counted."""


@dataclass(frozen=True)
class LatentRow:
    """A row of the `latents` table: what training reads."""

    key: str
    image_key: str
    image_hash: str
    source: str
    source_id: str
    split: Split
    captions: tuple[str, ...]
    caption_origins: tuple[str, ...]
    caption_weights: tuple[float, ...]
    plan: CropPlan
    posterior: bytes
    """float16 little-endian [2, channels, height, width]: mean, log variance, before any scale factor."""
    latent_channels: int
    latent_height: int
    latent_width: int
    vae: str
    transform: str
    mask: bytes | None = None
    """uint8 [latent_height, latent_width], 255 where the loss counts in full; null counts all of it."""


@dataclass(frozen=True)
class CaptionRow:
    """A row of the `captions` table: one answer. One of `caption` and `reason` is set."""

    key: str
    """Of the image and the request together."""
    image_key: str
    """Of the row of `images`: its pixels are what the model saw."""
    source: str
    source_id: str
    origin: str
    """Name of the captioner in the recipe."""
    request: str
    """Hash of `settings`."""
    settings: str
    """What decides the answer as canonical JSON: model, prompt, limits, temperature, seed."""
    model: str
    """What the server said answered; the revision of a local model."""
    caption: str | None
    reason: str | None
    """Why the answer is of no use; one of `answer.REASONS`."""
    detail: str
    """What was said, clipped, where it is of no use."""
    weight: float | None
    """In proportion to the image's other captions; null where another answer of this origin took its place."""
    own_weight: float | None
    """Weight of the source's captions beside it; null leaves theirs."""
    prompt_tokens: int
    completion_tokens: int
    created: datetime


def content_hash(data: bytes) -> str:
    """sha256 of a file's bytes, hex."""
    return hashlib.sha256(data).hexdigest()


def md5(data: bytes) -> str:
    """The MD5 of a file's bytes, hex: what many data sets and block-lists name files by."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def image_key(image_hash: str, background: str | None, transform: str) -> str:
    """Identity of an image under a transform, hex."""
    return _digest(image_hash, background or "", transform)


def latent_key(image_hash: str, background: str | None, transform: str, vae: str) -> str:
    """Identity of a latent, hex: other pixels or another VAE give another key."""
    return _digest(image_hash, background or "", transform, vae)


def hex_color(color: Color) -> str:
    """(255, 0, 10) is "#ff000a"."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _digest(*parts: str) -> str:
    # The unit separator cannot occur in any part, so no two lists of parts give the same text.
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
