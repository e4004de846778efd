"""Do pictures show what their captions say, as far as the model's own towers can tell?

Only models that keep their vision tower can be judged so. The towers were trained on the same data as the model: the
score compares models that share them, and is not a CLIP score of the literature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPVisionModelWithProjection

from terminus.evaluation.captions import Picture
from terminus.evaluation.luminance import Mean, Pictures, mean_of
from terminus.model.text import TextTowers

DEFINITION = (
    "measured with the model's own text tower 2 and vision tower: cosine between a picture and its caption, and how "
    "often the nearest of all captions is its own"
)
PROBE = "; the captions are those of the contrast probe and differ in their subject alone, all on black"
HELD_OUT = "; the captions are those of the run's held-out pictures, each once"


@dataclass(frozen=True)
class Alignment:
    """One set of pictures, each against the captions of all."""

    captions: int
    chance: float
    """Top-1 of a guess."""
    cosine: Mean
    top1: Mean
    top1_held_out: Mean | None


@dataclass(frozen=True)
class Judge:
    """The towers of the model that is judged; they outlive its UNet."""

    text: TextTowers
    vision: CLIPVisionModelWithProjection | None


def measure_alignment(
    judge: Judge, captions: Sequence[str], pictures: Sequence[Picture], held_out: Sequence[bool] = ()
) -> Alignment | None:
    """Picture i answers caption i; of a caption that repeats, the first counts. `held_out` () leaves their part out.

    None without a vision tower for pictures of this size, or with fewer than two captions.
    """
    rows = list({caption: row for row, caption in reversed(list(enumerate(captions)))}.values())[::-1]
    side = None if judge.vision is None else judge.vision.config.image_size
    if side is None or len(rows) < 2 or any(pictures[row].shape[:2] != (side, side) for row in rows):
        return None
    similarity = _similarity(judge, [captions[row] for row in rows], np.stack([pictures[row] for row in rows]))
    right = (similarity.argmax(axis=1) == np.arange(len(rows))).astype(np.float64)
    apart = np.array([bool(held_out) and held_out[row] for row in rows])
    return Alignment(
        captions=len(rows),
        chance=1.0 / len(rows),
        cosine=mean_of(np.diag(similarity)),
        top1=mean_of(right),
        top1_held_out=mean_of(right[apart]) if apart.any() else None,
    )


def _similarity(judge: Judge, captions: Sequence[str], pictures: Pictures) -> Float[np.ndarray, "pictures captions"]:
    assert judge.vision is not None, "the caller has looked"
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        image = cast(Tensor, judge.vision(pixel_values=pixels.to(judge.text.device)).image_embeds)
        text = judge.text.encode(captions).pooled
    return (normalize(image.float(), dim=-1) @ normalize(text, dim=-1).T).double().cpu().numpy()
