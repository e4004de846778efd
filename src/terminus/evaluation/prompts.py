"""The contrast probe: one image per subject and background, and the real images to compare with.

Black and white are asked of the same subjects with the same seeds, so that nothing differs but the word. Half of
them are held-out subjects where the embedded data are what the model knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from jaxtyping import UInt8

from terminus import runtime
from terminus.conditioning import Size
from terminus.data import emoji, geometry
from terminus.data.emoji import BACKGROUNDS, CONTRAST, Emoji
from terminus.decode import HARD_PIXEL_LIMIT, Decoded, Limits, decode
from terminus.sampling.prompts import escape

EMBEDDED_PIXELS = 128
"""The side of the embedded drawings: models of at most this size are asked for them."""

GENERIC = (
    "a red apple", "a wooden chair", "a glass bottle", "a sleeping cat", "an old camera", "a brass key",
    "a pine tree", "a porcelain teapot", "a running shoe", "a violin", "a goldfish", "a stack of books",
    "a bicycle", "a human hand", "a sunflower", "a stone castle",
)  # fmt: skip
"""Subjects that models of photographs and drawings know alike."""


@dataclass(frozen=True)
class EvaluationPrompt:
    """One image that is asked for."""

    text: str
    background: str
    seed: int
    drawing: Emoji | None = None
    """The embedded drawing that it describes."""

    @property
    def prompt(self) -> str:
        """The same in the grammar of `sampling.prompts`."""
        return escape(self.text)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour asked for, sRGB 0..255."""
        return BACKGROUNDS[self.background]

    @property
    def held_out(self) -> bool | None:
        """Whether the embedded data hold this subject out of training; None for generic prompts."""
        return None if self.drawing is None else self.drawing.split == "validation"


def build_prompts(native_pixels: int, extreme: int, color: int, seed: int) -> list[EvaluationPrompt]:
    """`extreme` prompts each for black and white, `color` for each other background."""
    counts = {name: extreme if name in CONTRAST else color for name in BACKGROUNDS}
    if native_pixels > EMBEDDED_PIXELS:
        return [
            EvaluationPrompt(f"{GENERIC[i % len(GENERIC)]} on a solid {name} background", name, seed + i)
            for name, count in counts.items()
            for i in range(count)
        ]
    subjects = embedded_subjects(seed)
    return [
        EvaluationPrompt(
            emoji.emoji_caption(subjects[i % len(subjects)], name), name, seed + i, subjects[i % len(subjects)]
        )
        for name, count in counts.items()
        for i in range(count)
    ]


def real_images(prompts: Sequence[EvaluationPrompt], side: int) -> UInt8[np.ndarray, "count side side 3"]:
    """The embedded drawings for these prompts, at the model's size; every prompt has its drawing."""
    transform = geometry.Transform(side)
    images: list[np.ndarray] = []
    for prompt in prompts:
        assert prompt.drawing is not None, "only embedded prompts have real images"
        data = emoji.rgba(prompt.drawing)
        decoded = decode(data, Limits(len(data), HARD_PIXEL_LIMIT))
        assert isinstance(decoded, Decoded), "what the package ships decodes"
        image = decoded.on(prompt.rgb)
        way = geometry.plan(Size(*image.shape[:2]), transform, geometry.CropPosition(0.0, 0.0))
        assert way is not None, "the drawings are at least as large as the model's images"
        images.append(geometry.crop_and_resize(image, way))
    return np.stack(images)


def embedded_subjects(seed: int) -> list[Emoji]:
    """3D drawings, a held-out one and a seen one in turns, each kind in an order that the seed decides."""
    drawings = [drawing for drawing in emoji.drawings() if drawing.style == "3d"]
    drawings.sort(key=lambda drawing: runtime.key(seed, 0, f"evaluation {drawing.id}"))
    held_out = [drawing for drawing in drawings if drawing.split == "validation"]
    seen = [drawing for drawing in drawings if drawing.split == "train"][: len(held_out)]
    # In turns, so that any number of prompts has as many held-out subjects as seen ones.
    turns = chain.from_iterable(zip_longest(held_out, seen))
    return [drawing for drawing in turns if drawing is not None]
