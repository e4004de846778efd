"""Does a model draw its training images again? Nearest neighbours by perceptual hash and by features.

The hash finds copies as such: re-encoded, scaled or slightly changed. Features find what is nearer to one training
image than that image's own neighbours are (authenticity, Alaa et al. 2102.08921); the share of images that training
held out for which this holds says how often it happens to honest images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from terminus.data.duplicates import COLOR_DISTANCE, HASH_DISTANCE, NearDuplicates, Twin
from terminus.data.filters import measure_image
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.distribution.frechet import Features
from terminus.evaluation.distribution.manifold import squared_distances
from terminus.sampling.sheet import sheet

SHOWN = 24
DEFINITIONS = {
    "copies": f"drawn images whose 64-bit difference hash is within {HASH_DISTANCE} bits of a training image's, and "
    f"whose 8×8 colours are within {COLOR_DISTANCE:.0f} of 255 levels",
    "too near": "drawn images that are nearer to a training image, by features, than that image is to any other "
    "training image; `held_out` is the same of real images that were not trained on",
    "ci95 of a rate": "Wilson's interval",
}


@dataclass(frozen=True)
class Rate:
    """A share of images."""

    count: int
    n: int
    share: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Memorised:
    """Drawn images against training images."""

    training_images: int
    """That were looked at."""
    training_available: int
    source: str
    extractor: str
    copies: Rate
    too_near: Rate
    held_out: Rate | None
    """Of the reference images, as `too_near`; null without any."""
    nearest: tuple[tuple[int, int, float], ...]
    """The closest pairs: row of the drawn set, row of the training set, distance of their features."""


@dataclass(frozen=True)
class TrainedImages:
    """The images that a model was trained on, or as many of them as are looked at."""

    images: Sequence[ImageSource]
    available: int
    source: str


def measure_memorised(
    drawn: Sequence[ImageSource],
    features: Features,
    training: TrainedImages,
    training_features: Features,
    held_out: Features | None,
    extractor: str,
) -> Memorised:
    """Of images and their features by one extractor; there are at least two training images."""
    nearest, apart = _nearest(features, training_features)
    # The closest pairs are shown, whether or not they count as copies: people judge better than a threshold.
    order = np.argsort(apart, kind="stable")[:SHOWN]
    return Memorised(
        training_images=len(training.images),
        training_available=training.available,
        source=training.source,
        extractor=extractor,
        copies=wilson_rate(len(_copies(drawn, training.images)), len(drawn)),
        too_near=_too_near(features, training_features),
        held_out=None if held_out is None else _too_near(held_out, training_features),
        nearest=tuple((int(row), int(nearest[row]), float(apart[row])) for row in order),
    )


def write_neighbours(
    found: Memorised, drawn: Sequence[ImageSource], training: TrainedImages, path: Path, name: Callable[[int], str]
) -> None:
    """A sheet of the closest pairs: what was drawn above the training image that is nearest to it."""
    columns = 8
    images: list[Image.Image] = []
    labels: list[str] = []
    titles: list[str] = []
    blank = Image.new("RGB", (8, 8), (255, 255, 255))
    for start in range(0, len(found.nearest), columns):
        some = found.nearest[start : start + columns]
        fill = [blank] * (columns - len(some))
        images += [*(Image.fromarray(drawn[row]) for row, _, _ in some), *fill]
        images += [*(Image.fromarray(training.images[other]) for _, other, _ in some), *fill]
        labels += [*(name(row) for row, _, _ in some), *("" for _ in fill)]
        labels += [*(f"distance {apart:.3f}" for _, _, apart in some), *("" for _ in fill)]
        titles += ["drawn", "nearest training image"]
    sheet(images, labels, columns=columns, row_titles=titles).save(path)


def wilson_rate(count: int, n: int) -> Rate:
    """A share with Wilson's 95 % interval, which stays within 0..1 and is honest at 0."""
    z, share = 1.959964, count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Rate(count, n, share, (max(0.0, middle - half), min(1.0, middle + half)))


def _copies(drawn: Sequence[ImageSource], training: Sequence[ImageSource]) -> list[int]:
    """Rows of drawn images that look like a training image."""
    known = NearDuplicates()
    for number, image in enumerate(training):
        measured = measure_image(Image.fromarray(image))
        known.add(Twin(str(number), str(number)), measured.dhash, measured.thumbprint)
    # The same measures that `prepare` finds near duplicates with.
    looks = (measure_image(Image.fromarray(image)) for image in drawn)
    return [row for row, one in enumerate(looks) if known.find(one.dhash, one.thumbprint) is not None]


def _too_near(features: Features, training: Features) -> Rate:
    nearest, apart = _nearest(features, training)
    between = _own_neighbour(training)
    # An image that training holds twice has no distance to its neighbour; nothing can be nearer than that.
    return wilson_rate(int((apart < between[nearest]).sum()), len(features))


def _nearest(features: Features, training: Features) -> tuple[np.ndarray, np.ndarray]:
    """For each row the nearest training row, and how far it is."""
    rows, others = features.astype(np.float64), training.astype(np.float64)
    found: list[np.ndarray] = []
    apart: list[np.ndarray] = []
    for start in range(0, len(rows), 1024):
        # In blocks: 50,000 by 4096 distances would take gigabytes.
        squared = squared_distances(rows[start : start + 1024], others)
        found.append(squared.argmin(axis=1))
        apart.append(np.sqrt(squared.min(axis=1)))
    return np.concatenate(found), np.concatenate(apart)


def _own_neighbour(training: Features) -> np.ndarray:
    """Distance of each training image to the nearest other one."""
    rows = training.astype(np.float64)
    found: list[np.ndarray] = []
    for start in range(0, len(rows), 1024):
        squared = squared_distances(rows[start : start + 1024], rows)
        places = np.arange(len(squared))
        # Its own row is no neighbour.
        squared[places, start + places] = np.inf
        found.append(np.sqrt(squared.min(axis=1)))
    return np.concatenate(found)
