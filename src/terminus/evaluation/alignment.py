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

from terminus.evaluation.luminance import Mean, Pictures, mean_of
from terminus.evaluation.prompts import Prompt
from terminus.model.components import Components

DEFINITION = (
    "measured with the model's own text tower 2 and vision tower: cosine between a picture and its caption, and how "
    "often the nearest of all captions is its own; the captions differ in their subject alone, all on black"
)


@dataclass(frozen=True)
class Alignment:
    """One set of pictures, each against the captions of all."""

    captions: int
    chance: float
    """Top-1 of a guess."""
    cosine: Mean
    top1: Mean
    top1_held_out: Mean | None


def measure_alignment(
    components: Components, prompts: Sequence[Prompt], pictures: Pictures, background: str = "black"
) -> Alignment | None:
    """None without a vision tower for pictures of this size, or where captions repeat."""
    rows = [index for index, prompt in enumerate(prompts) if prompt.background == background]
    chosen = [prompts[index] for index in rows]
    captions = [prompt.text for prompt in chosen]
    vision = components.vision
    if vision is None or vision.config.image_size != pictures.shape[1] or len(set(captions)) < len(captions):
        return None
    similarity = _similarity(components, captions, pictures[rows])
    right = (similarity.argmax(axis=1) == np.arange(len(rows))).astype(np.float64)
    held_out = np.array([prompt.held_out is True for prompt in chosen])
    return Alignment(
        captions=len(captions),
        chance=1.0 / len(captions),
        cosine=mean_of(np.diag(similarity)),
        top1=mean_of(right),
        top1_held_out=mean_of(right[held_out]) if held_out.any() else None,
    )


def _similarity(
    components: Components, captions: Sequence[str], pictures: Pictures
) -> Float[np.ndarray, "pictures captions"]:
    assert components.vision is not None, "the caller has looked"
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        image = cast(Tensor, components.vision(pixel_values=pixels.to(components.text.device)).image_embeds)
        text = components.text.encode(captions).pooled
    return (normalize(image.float(), dim=-1) @ normalize(text, dim=-1).T).double().cpu().numpy()
