"""Does a model draw the light and dark that it is asked for? Frames against asked colours, and whole histograms.

The frame stands for the background: the prompts ask for plain ones. The same images are drawn a second time with a
leaky schedule (`draw.leaky`), the control, and the real images of the same captions are measured the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terminus.data.emoji import BACKGROUNDS
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.luminance import (
    REC601,
    Images,
    Mean,
    frame_rgb,
    histograms,
    interval,
    luma,
    luma_of,
    mean_of,
    resamples,
    wasserstein,
)
from terminus.evaluation.prompts import EvaluationPrompt

DEFINITIONS = {
    "border_luminance": "mean Rec.601 luma (0..1) of the outer frame of an image, 1/16 of its side wide",
    "distance": "absolute difference between an image's border luminance and the luma of the colour asked for",
    "rgb_error": "mean over R, G and B of |mean colour of the frame − colour asked for|, 0..1",
    "darkest, brightest": "1st and 99th percentile of the luma of a whole image, mean over the images",
    "black_white_gap": "border luminance asked for white minus that asked for black, same subject and seed; 1 is ideal",
    "wasserstein": "1-Wasserstein distance, in luma 0..1, between the pooled histograms (256 levels) of all pixels of "
    "the generated and of the real images of the same captions",
    "ci95": "percentile interval of 1000 bootstrap resamples over images",
}


@dataclass(frozen=True)
class BackgroundResult:
    """The images asked for on one background."""

    asked_luminance: float
    border_luminance: Mean
    seen: Mean | None
    """`border_luminance` of subjects in the training part of the embedded data; null for generic prompts."""
    held_out: Mean | None
    """`border_luminance` of held-out subjects."""
    distance: Mean
    rgb_error: Mean
    darkest: Mean
    brightest: Mean


@dataclass(frozen=True)
class ContrastResult:
    """Results of the contrast probe on one set of images."""

    backgrounds: dict[str, BackgroundResult]
    black_white_gap: Mean


@dataclass(frozen=True)
class HistogramDistance:
    """Generated against real images of the same captions."""

    images: int
    wasserstein: float
    ci95: tuple[float, float]
    mean_luma: float
    real_mean_luma: float


def measure_contrast(prompts: Sequence[EvaluationPrompt], images: Images) -> ContrastResult:
    """The contrast probe's numbers, where image i answers prompt i.

    Prompts for black and white come in the same order of subjects.
    """
    # Only the frame: what stands before a background hides a part of it.
    rgb = frame_rgb(images)
    border = rgb @ np.array(REC601)
    low, high = np.percentile(luma(images).reshape(len(images), -1), (1, 99), axis=1)
    results: dict[str, BackgroundResult] = {}
    for name, asked in BACKGROUNDS.items():
        rows = _where(prompts, name)
        if not rows:
            continue
        seen, held_out = _where(prompts, name, held_out=False), _where(prompts, name, held_out=True)
        results[name] = BackgroundResult(
            asked_luminance=luma_of(asked),
            border_luminance=mean_of(border[rows]),
            seen=mean_of(border[seen]) if seen else None,
            held_out=mean_of(border[held_out]) if held_out else None,
            distance=mean_of(np.abs(border[rows] - luma_of(asked))),
            rgb_error=mean_of(np.abs(rgb[rows] - np.array(asked) / 255.0).mean(axis=1)),
            darkest=mean_of(low[rows]),
            brightest=mean_of(high[rows]),
        )
    # Same subject and seed on both backgrounds: what remains of the difference is the background's.
    gap = border[_where(prompts, "white")] - border[_where(prompts, "black")]
    return ContrastResult(results, mean_of(gap))


def histogram_distance(images: Sequence[ImageSource], real: Sequence[ImageSource]) -> HistogramDistance:
    """Distance of drawn and real images' luma; image i and real image i are of one caption.

    The interval resamples captions, with both their images.
    """
    drawn, known = (
        np.concatenate([histograms(one[None]) for one in some]).astype(np.float64) for some in (images, real)
    )
    # The same captions are left out of both sets, so that the interval is of pairs.
    again = [wasserstein(drawn[index].sum(axis=0), known[index].sum(axis=0)) for index in resamples(len(drawn))]
    drawn_sum, known_sum = drawn.sum(axis=0), known.sum(axis=0)
    return HistogramDistance(
        images=len(drawn),
        wasserstein=wasserstein(drawn_sum, known_sum),
        ci95=interval(np.array(again)),
        mean_luma=_mean_luma(images),
        real_mean_luma=_mean_luma(real),
    )


def _mean_luma(images: Sequence[ImageSource]) -> float:
    """Mean luma over all pixels of all images, which need not be of one size."""
    total = sum(float(luma(one[None]).sum()) for one in images)
    return total / sum(one.shape[0] * one.shape[1] for one in images)


def _where(
    prompts: Sequence[EvaluationPrompt], background: str | None = None, held_out: bool | None = None
) -> list[int]:
    """Rows of the prompts for this background and of this kind; None is any."""
    return [
        index
        for index, prompt in enumerate(prompts)
        if background in (None, prompt.background) and held_out in (None, prompt.held_out)
    ]
