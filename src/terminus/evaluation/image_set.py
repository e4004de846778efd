"""Everything that is measured of one set of images, whoever drew it: light, distances, captions, memorisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from terminus.evaluation.captions import ImageSource
from terminus.evaluation.distribution.extractors import Extractor
from terminus.evaluation.distribution.frechet import Features
from terminus.evaluation.distribution.measure import Distribution, measure_distribution
from terminus.evaluation.luminance import Mean, luma, mean_of
from terminus.evaluation.memorised import Memorised, TrainedImages, measure_memorised
from terminus.progress import Meter

DEFINITIONS = {
    "mean_luma": "mean Rec.601 luma (0..1) of an image, mean over the images",
    "range": "99th minus 1st percentile of an image's luma, mean over the images",
    "score": "100 × max(cosine of image and caption, 0), mean over the images; the CLIP score where the "
    "extractor is CLIP",
    "top1": "how often the nearest of all different captions is an image's own",
}


@dataclass(frozen=True)
class Brightness:
    """Light of whole images."""

    mean_luma: Mean
    range: Mean


@dataclass(frozen=True)
class CaptionAgreement:
    """Images against their captions, by one extractor that reads."""

    extractor: str
    kind: str
    fingerprint: str
    images: int
    captions: int
    """That differ."""
    score: Mean
    top1: Mean
    chance: float
    reference: Mean | None
    """`score` of the reference images of the same captions; null where they are of others."""


@dataclass(frozen=True)
class SetMetrics:
    """What was measured of a set of images, and against what."""

    images: int
    reference: str | None
    """What the reference is; null without one."""
    brightness: Brightness
    reference_brightness: Brightness | None
    distributions: tuple[Distribution, ...]
    """One per extractor; empty without a reference."""
    agreement: tuple[CaptionAgreement, ...]
    """One per extractor that reads; empty without captions."""
    memorised: Memorised | None
    """Null where the training images are not known."""


@dataclass(frozen=True)
class ImageSet:
    """A set to be measured, and what to measure it against."""

    images: Sequence[ImageSource]
    captions: Sequence[str | None] = ()
    """One per image; () where there are none."""
    reference: Sequence[ImageSource] | None = None
    reference_name: str | None = None
    paired: bool = False
    """Whether reference image i is of caption i."""
    training: TrainedImages | None = None


@dataclass(frozen=True)
class Measured:
    """The numbers, and the same image by image."""

    metrics: SetMetrics
    scores: dict[str, np.ndarray]
    """Column of a table of images by its name."""


def measure_set(subject: ImageSet, extractors: Sequence[Extractor], console: Console, seed: int = 0) -> Measured:
    """Every number that the set allows; UserError for sets that are too small, or features that are no numbers."""
    lumas = _brightness(subject.images)
    distributions: list[Distribution] = []
    agreement: list[CaptionAgreement] = []
    memorised: Memorised | None = None
    columns = {"mean_luma": lumas[0], "range": lumas[1]}
    for extractor in extractors:
        # Features are computed once for each extractor, and serve distances, agreement and neighbours.
        drawn = _features(extractor, subject.images, "drawn", console)
        known = None if subject.reference is None else _features(extractor, subject.reference, "reference", console)
        if known is not None:
            distributions.append(measure_distribution(extractor, drawn, known, seed))
        found = _agreement(extractor, subject, drawn, known)
        if found is not None:
            agreement.append(found[0])
            columns[f"score, {extractor.name}"] = found[1]
        if subject.training is not None and memorised is None:
            # By the first extractor alone: thousands of training images pass through it.
            trained = _features(extractor, subject.training.images, "training", console)
            memorised = measure_memorised(subject.images, drawn, subject.training, trained, known, extractor.name)
    reference = None if subject.reference is None else Brightness(*map(mean_of, _brightness(subject.reference)))
    metrics = SetMetrics(
        images=len(subject.images),
        reference=subject.reference_name,
        brightness=Brightness(mean_of(lumas[0]), mean_of(lumas[1])),
        reference_brightness=reference,
        distributions=tuple(distributions),
        agreement=tuple(agreement),
        memorised=memorised,
    )
    return Measured(metrics, columns)


def _features(extractor: Extractor, images: Sequence[ImageSource], what: str, console: Console) -> Features:
    with Meter(console, f"{extractor.kind} features, {what}", len(images), unit="images") as meter:
        return extractor.images(images, meter.advance)


def _brightness(images: Iterable[ImageSource]) -> tuple[np.ndarray, np.ndarray]:
    """Mean luma and dynamic range of each image."""
    means: list[float] = []
    ranges: list[float] = []
    for image in images:
        values = luma(image[None])
        low, high = np.percentile(values, (1, 99))
        means.append(float(values.mean()))
        ranges.append(float(high - low))
    return np.array(means), np.array(ranges)


def _agreement(
    extractor: Extractor, subject: ImageSet, drawn: Features, known: Features | None
) -> tuple[CaptionAgreement, np.ndarray] | None:
    """None for an extractor that cannot read, and for images without captions."""
    rows = [row for row, caption in enumerate(subject.captions) if caption]
    if extractor.read is None or not rows:
        return None
    texts = [subject.captions[row] or "" for row in rows]
    # Two images of one caption must not count as each other's error.
    different = list(dict.fromkeys(texts))
    own = np.array([different.index(text) for text in texts])
    read = extractor.captions(different)
    similar = drawn[rows] @ read.T
    cosines = similar[np.arange(len(rows)), own].astype(np.float64)
    scores = np.full(len(subject.images), np.nan)
    scores[rows] = 100 * cosines.clip(min=0)
    paired = None
    if known is not None and subject.paired:
        # What real images reach with the same captions: the score that can be hoped for.
        theirs = (known[rows] * read[own]).sum(axis=1).astype(np.float64)
        paired = mean_of(100 * theirs.clip(min=0))
    found = CaptionAgreement(
        extractor=extractor.name,
        kind=extractor.kind,
        fingerprint=extractor.fingerprint,
        images=len(rows),
        captions=len(different),
        score=mean_of(scores[rows]),
        top1=mean_of((similar.argmax(axis=1) == own).astype(np.float64)),
        chance=1 / len(different),
        reference=paired,
    )
    return found, scores
