"""Does a model draw a dark image, and a bright one? Luminance of whole images where no background is named.

The contrast probe names a plain background and looks at the frame. Here the caption asks for light itself, the case in
which a model that learnt brightness from leaking noise has nothing to go by and draws grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terminus.evaluation.captions import DrawnCaption
from terminus.evaluation.luminance import Images, Mean, luma, mean_of
from terminus.evaluation.prompts import EMBEDDED_PIXELS, GENERIC, embedded_subjects
from terminus.sampling.prompts import escape

WORDS = ("dark", "bright")
DEFINITIONS = {
    "light": "mean Rec.601 luma (0..1) of whole images of `a dark image of ...` and `a bright image of ...`, same "
    "subjects and seeds; `gap` is bright minus dark",
    "dynamic_range": "99th minus 1st percentile of the luma of each of these images, mean over the images",
}


@dataclass(frozen=True)
class Light:
    """Whole images that were asked to be dark, and the same subjects bright."""

    dark: Mean
    bright: Mean
    gap: Mean
    """Of the same subject and seed."""
    dynamic_range: Mean


def light_prompts(native_pixels: int, count: int, seed: int) -> list[DrawnCaption]:
    """`count` subjects asked dark, then the same subjects with the same seeds bright."""
    subjects: Sequence[str] = GENERIC
    if native_pixels <= EMBEDDED_PIXELS:
        subjects = [drawing.subject for drawing in embedded_subjects(seed)]
    # Row i of the dark half and row i of the bright half share subject and seed.
    texts = [f"a {word} image of {subjects[i % len(subjects)]}" for word in WORDS for i in range(count)]
    return [DrawnCaption(text, escape(text), seed + place % count) for place, text in enumerate(texts)]


def measure_light(images: Images) -> Light:
    """Of the images of `light_prompts`, in its order."""
    values = luma(images).reshape(len(images), -1)
    means, (low, high) = values.mean(axis=1), np.percentile(values, (1, 99), axis=1)
    dark, bright = means[: len(means) // 2], means[len(means) // 2 :]
    return Light(mean_of(dark), mean_of(bright), mean_of(bright - dark), mean_of(high - low))
