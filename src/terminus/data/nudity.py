"""Nudity scores from NudeNet, a detector whose weights come with its package: `pip install 'terminus-xl[nudenet]'`.

Nothing is fetched. The package decodes no file here: it is given the pixels that everything else sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from terminus.errors import UserError

NUDENET = "nudenet"
"""What a recipe writes as `model`."""
CLASSES = (
    "ANUS_COVERED", "ANUS_EXPOSED", "ARMPITS_COVERED", "ARMPITS_EXPOSED", "BELLY_COVERED", "BELLY_EXPOSED",
    "BUTTOCKS_COVERED", "BUTTOCKS_EXPOSED", "FACE_FEMALE", "FACE_MALE", "FEET_COVERED", "FEET_EXPOSED",
    "FEMALE_BREAST_COVERED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_COVERED", "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED", "MALE_GENITALIA_EXPOSED",
)  # fmt: skip
"""What NudeNet 3 detects."""


@runtime_checkable
class _Detector(Protocol):
    def detect(self, image_path: UInt8[np.ndarray, "height width 3"], /) -> list[dict[str, object]]: ...


def nudity_score(image: Image.Image, labels: Sequence[str]) -> float:
    """The highest score of a detection among these classes, 0..1; 0 where there is none of at least 0.25."""
    # Pixels in OpenCV's order: the answer is then that of the package for the file itself.
    blue_first = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    found = detector().detect(blue_first)
    return max((cast(float, one["score"]) for one in found if one["class"] in labels), default=0.0)


@lru_cache(maxsize=1)
def detector() -> _Detector:
    """Loaded once per process, 0.2 s; `UserError` if the extra is not installed."""
    try:
        return import_module("nudenet").NudeDetector()
    except ImportError as error:
        raise UserError(
            f"NudeNet is not installed ({error})",
            where=f"data.filters.classifiers: {NUDENET}",
            rule="It is an extra, since it brings ONNX Runtime and OpenCV, and its package holds the AGPL-3.0",
            fix="pip install 'terminus-xl[nudenet]', or name the folder or hub id of an image classifier.",
        ) from None
