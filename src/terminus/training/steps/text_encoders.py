"""The text encoders' step: CLIP's symmetric contrastive loss (Radford et al. 2103.00020, figure 3) for each text
encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPVisionModelWithProjection

from terminus import runtime
from terminus.data.batch import Batch
from terminus.model.text import TextEncoders
from terminus.model.vae import to_signal
from terminus.training.step import StepLoss
from terminus.training.steps.captions import drawn_captions


class ContrastiveModel(nn.Module):
    """Both text encoders, a vision encoder, and what only training needs: a temperature, and text encoder 1's
    projection.
    """

    def __init__(self, text: TextEncoders, vision: CLIPVisionModelWithProjection, projection: int) -> None:
        super().__init__()
        self.text = text
        self.text_encoder_1, self.text_encoder_2, self.vision = text.text_encoder_1, text.text_encoder_2, vision
        self.projection_1 = nn.Linear(text.text_encoder_1.config.hidden_size, projection, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.6593))  # ln(1 / 0.07), as in CLIP

    def features(self, captions: list[str], pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors [batch, projection] of the captions by text encoder 1 and text encoder 2, and of the images."""
        ids_1, ids_2 = (runtime.sent(ids, self.log_scale.device) for ids in self.text.tokens(captions))
        first = self.projection_1(self.text_encoder_1(input_ids=ids_1).pooler_output)
        second = cast(Tensor, self.text_encoder_2(input_ids=ids_2).text_embeds)
        image = cast(Tensor, self.vision(pixel_values=pixels).image_embeds)
        vectors = [normalize(vector.float(), dim=-1) for vector in (first, second, image)]
        return vectors[0], vectors[1], vectors[2]


@dataclass(frozen=True)
class TextEncodersStep:
    """Captions against images within the micro-batch."""

    model: ContrastiveModel
    seed: int
    device: torch.device
    precision: runtime.Precision

    @property
    def trained(self) -> nn.Module:
        """Both text encoders and the vision encoder, as one module."""
        return self.model

    def loss(self, batch: Batch, step: int) -> StepLoss:
        """`error` is 1 where an image's nearest caption (text encoder 2) is not one of its own."""
        pixels = runtime.sent(to_signal(batch.values), self.device)
        captions = drawn_captions(batch, self.seed)
        with runtime.autocast(self.device, self.precision):
            first, second, image = self.model.features(captions, pixels)
        scale = self.model.log_scale.clamp(max=4.6052).exp()  # at most 100, as in CLIP
        # Two images may share a caption; each then counts as right for both.
        same = runtime.sent(torch.tensor([[a == b for b in captions] for a in captions]), self.device)
        loss = 0.5 * (_contrast(scale * image @ first.T, same) + _contrast(scale * image @ second.T, same))
        wrong = ~same.gather(1, (image @ second.T).argmax(1, keepdim=True)).squeeze(1)
        return StepLoss(loss, wrong.float())

    def seeded(self, seed: int) -> TextEncodersStep:
        """The same step, drawing other random numbers."""
        return replace(self, seed=seed)


def _contrast(logits: Float[Tensor, "batch batch"], same: Tensor) -> Float[Tensor, " batch"]:
    # An image whose caption occurs twice belongs to each as much.
    target = same.float() / same.sum(1, keepdim=True)
    rows = cross_entropy(logits, target, reduction="none")
    columns = cross_entropy(logits.T, target, reduction="none")
    return 0.5 * (rows + columns)
