"""Brightness measured: luma, the frame of an image, pooled histograms, and how sure a mean is.

Luma is Rec.601 of the stored (gamma-encoded) values, 0 black to 1 white: the measure that the data filters use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

REC601 = (0.299, 0.587, 0.114)
RESAMPLES = 1000
LEVELS = 256

Images = UInt8[np.ndarray, "count height width 3"]


@dataclass(frozen=True)
class Mean:
    """A mean over `n` images with its 95 % bootstrap interval (percentiles of 1000 resampled means)."""

    n: int
    mean: float
    std: float
    """Standard deviation over the images (n − 1); 0 for one image."""
    ci95: tuple[float, float]


def luma(images: Images) -> Float[np.ndarray, "count height width"]:
    """Rec.601 luma of each pixel, 0..1."""
    return images.astype(np.float64) @ (np.array(REC601) / 255.0)


def luma_of(rgb: Sequence[int | float]) -> float:
    """Rec.601 luma of one colour, 0..255 → 0..1."""
    return float(np.dot(rgb, REC601) / 255.0)


def frame(height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """True in the outer frame, which is 1/16 of the shorter side wide and at least one pixel."""
    border = max(1, min(height, width) // 16)
    mask = np.ones((height, width), dtype=bool)
    mask[border : height - border, border : width - border] = False
    return mask


def frame_rgb(images: Images) -> Float[np.ndarray, "count 3"]:
    """Mean colour of each image's frame, 0..1. Its luma is the mean luma of the frame: luma is linear."""
    mask = frame(*images.shape[1:3])
    return images[:, mask].astype(np.float64).mean(axis=1) / 255.0


def histograms(images: Images) -> Int[np.ndarray, "count 256"]:
    """Pixels of each image by luma, rounded to 256 levels."""
    levels = np.rint(luma(images) * (LEVELS - 1)).astype(np.int64).reshape(len(images), -1)
    return np.stack([np.bincount(row, minlength=LEVELS) for row in levels])


def wasserstein(a: Float[np.ndarray, " levels"], b: Float[np.ndarray, " levels"]) -> float:
    """1-Wasserstein distance of two histograms of luma, 0..1: the integral of |CDF_a − CDF_b| over luma.

    It is the mean brightness by which pixels must be moved to turn one image set's histogram into the other's.
    """
    # In one dimension the optimal transport is the difference of the cumulative distributions.
    difference = np.cumsum(a / a.sum()) - np.cumsum(b / b.sum())
    return float(np.abs(difference).sum() / (LEVELS - 1))


def mean_of(values: Float[np.ndarray, " count"]) -> Mean:
    """The mean of one number per image."""
    means = values[resamples(len(values))].mean(axis=1)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Mean(len(values), float(values.mean()), std, interval(means))


def resamples(count: int) -> Int[np.ndarray, "resamples count"]:
    """Bootstrap indices; the same for the same count."""
    return np.random.default_rng(count).integers(0, count, (RESAMPLES, count))


def interval(resampled: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The percentile interval that holds the middle 95 % of the resampled values."""
    low, high = np.percentile(resampled, (2.5, 97.5))
    return float(low), float(high)
