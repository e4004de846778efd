"""Agreement of images with their captions, by the model's own text encoder and vision encoder.

Only models that keep their vision encoder can be judged so. The text encoders were trained on the same data as the
model: the score compares models that share them, and is not a CLIP score of the literature.
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

from terminus.evaluation.captions import ImageSource
from terminus.evaluation.luminance import Images, Mean, mean_of
from terminus.model.text import TextEncoders

DEFINITION = (
    "measured with the model's own text encoder 2 and vision encoder: cosine between an image and its caption, and how "
    "often the nearest of all captions is its own"
)
PROBE = "; the captions are those of the contrast probe and differ in their subject alone, all on black"
HELD_OUT = "; the captions are those of the run's held-out images, each once"


@dataclass(frozen=True)
class Alignment:
    """One set of images, each against the captions of all."""

    captions: int
    chance: float
    """Top-1 accuracy of a guess."""
    cosine: Mean
    top1: Mean
    top1_held_out: Mean | None


@dataclass(frozen=True)
class AlignmentEncoders:
    """The text encoders of the model that is judged; they outlive its UNet."""

    text: TextEncoders
    vision: CLIPVisionModelWithProjection | None


def measure_alignment(
    judge: AlignmentEncoders, captions: Sequence[str], images: Sequence[ImageSource], held_out: Sequence[bool] = ()
) -> Alignment | None:
    """Agreement of image i with caption i; the first counts where a caption repeats.

    `held_out` marks captions that are also measured apart; () leaves that out.

    None without a vision encoder for images of this size, or with fewer than two captions.
    """
    # Backwards, so that the first of equal captions is the one that stays.
    first = {captions[row]: row for row in reversed(range(len(captions)))}
    rows = list(reversed(first.values()))
    if len(rows) < 2 or not _can_see(judge, [images[row] for row in rows]):
        return None
    # Each image against the captions of all; the diagonal holds its own.
    similarity = _similarity(judge, [captions[row] for row in rows], np.stack([images[row] for row in rows]))
    right = (similarity.argmax(axis=1) == np.arange(len(rows))).astype(np.float64)
    apart = np.array([bool(held_out) and held_out[row] for row in rows])
    return Alignment(
        captions=len(rows),
        chance=1.0 / len(rows),
        cosine=mean_of(np.diag(similarity)),
        top1=mean_of(right),
        top1_held_out=mean_of(right[apart]) if apart.any() else None,
    )


def _can_see(judge: AlignmentEncoders, images: Sequence[ImageSource]) -> bool:
    """Whether the model has a vision encoder, and one for images of this size."""
    if judge.vision is None:
        return False
    side = judge.vision.config.image_size
    return all(image.shape[:2] == (side, side) for image in images)


def _similarity(
    judge: AlignmentEncoders, captions: Sequence[str], images: Images
) -> Float[np.ndarray, "images captions"]:
    assert judge.vision is not None, "the caller has looked"
    # -1..1, as this vision encoder was trained: no mean and deviation of CLIP.
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        image = cast(Tensor, judge.vision(pixel_values=pixels.to(judge.text.device)).image_embeds)
        text = judge.text.encode(captions).pooled
    return (normalize(image.float(), dim=-1) @ normalize(text, dim=-1).T).double().cpu().numpy()
