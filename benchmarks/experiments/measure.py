"""What a trained arm draws: how dark its black is, how bright its white, and how its drawings vary.

Every arm draws the same prompts with the same seeds, settings and VAE. Brightness is the mean luma (Rec.601 of the
stored values, 0..1) of the frame of a picture, 1/16 of its side wide, which holds the background and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from terminus.data import emoji
from terminus.data.emoji import BACKGROUNDS, Emoji
from terminus.evaluation.distribution.extractors import Extractor
from terminus.evaluation.distribution.mmd import cmmd
from terminus.evaluation.luminance import REC601, Images, frame_rgb
from terminus.evaluation.prompts import EvaluationPrompt, real_images
from terminus.model.components import Components, load_components
from terminus.sampling.prompts import escape
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img, to_bytes

SETTINGS = Settings(steps=20, guidance=3.0, rescale=0.7)
"""The same for all arms: a rescale that only some of them had would be another difference."""
GROUPS = ("Food & Drink", "Smileys & Emotion", "Travel & Places")
SUBJECTS = 32
"""Drawn with each kind of caption; half of them are held-out subjects."""
VARIED = 96
"""Held-out drawings, on any background, that the distribution is compared with."""


@dataclass(frozen=True)
class Measured:
    """One trained model. Brightness is a mean over `SUBJECTS` images."""

    black: float
    """Asked for on a black background; 0 is right."""
    white: float
    """Asked for on a white background; 1 is right."""
    dark: float
    """Asked for as a dark image."""
    bright: float
    """Asked for as a bright image."""
    spread: float
    """Standard deviation of the brightness of images whose caption names no background."""
    cmmd: float
    """From held-out drawings, by the features of nano's vision encoder."""


def subjects() -> list[Emoji]:
    """Half trained, half held out, evenly spread over the drawings of the trained groups."""
    chosen: list[Emoji] = []
    for split in ("train", "validation"):
        ours = [one for one in emoji.drawings() if one.split == split and one.group in GROUPS]
        chosen += [ours[number * len(ours) // (SUBJECTS // 2)] for number in range(SUBJECTS // 2)]
    return chosen


def prompts_of(kind: str) -> list[str]:
    """The captions of one kind, in the grammar of prompts: black, white, dark, bright, plain."""
    captions = {
        "black": lambda one: emoji.emoji_caption(one, "black"),
        "white": lambda one: emoji.emoji_caption(one, "white"),
        "dark": lambda one: emoji.brightness_caption(one, BACKGROUNDS["black"]),
        "bright": lambda one: emoji.brightness_caption(one, BACKGROUNDS["white"]),
        "plain": emoji.plain_caption,
    }
    return [escape(captions[kind](one)) for one in subjects()]


def draw(components: Components, prompts: Sequence[str]) -> Images:
    """One image for each prompt, seeds 0, 1, ...; uint8 [images, height, width, 3]."""
    parts: list[np.ndarray] = []
    for start in range(0, len(prompts), 32):
        some = prompts[start : start + 32]
        *_, last = text2img(components, some, range(start, start + len(some)), SETTINGS)
        parts.append(to_bytes(components, last.x).numpy())
    return np.concatenate(parts)


def brightness(images: Images) -> np.ndarray:
    """The luma of each image's frame, 0..1."""
    return frame_rgb(images) @ np.array(REC601)


def varied() -> list[EvaluationPrompt]:
    """Held-out drawings, each on one of the trained backgrounds."""
    colors = tuple(name for name in BACKGROUNDS if name != "teal")
    rows = [
        row for row in emoji.emoji_rows(("3d", "flat"), 1, 1, None, colors, GROUPS) if row.drawing.split == "validation"
    ]
    chosen = [rows[number * len(rows) // VARIED] for number in range(VARIED)]
    return [EvaluationPrompt(row.caption, row.background, number, row.drawing) for number, row in enumerate(chosen)]


def measure(model: Path, extractor: Extractor) -> tuple[Measured, dict[str, Images]]:
    """The numbers of one model, and the images behind them by kind."""
    components = load_components(str(model))
    drawn = {kind: draw(components, prompts_of(kind)) for kind in ("black", "white", "dark", "bright", "plain")}
    means = {kind: float(brightness(images).mean()) for kind, images in drawn.items()}
    asked = varied()
    drawn["varied"] = draw(components, [one.prompt for one in asked])
    real = real_images(asked, drawn["varied"].shape[1])
    distance = cmmd(extractor.images(list(drawn["varied"])), extractor.images(list(real)))
    return Measured(
        black=means["black"],
        white=means["white"],
        dark=means["dark"],
        bright=means["bright"],
        spread=float(brightness(drawn["plain"]).std(ddof=1)),
        cmmd=distance,
    ), drawn
