"""The two CLIP text encoders, read the way SDXL reads them.

The context is the penultimate hidden state of both text encoders, side by side; the pooled vector is the second text
encoder's projected end-of-text state. The unconditional input is the encoding of the empty caption, in training and in
sampling alike (`force_zeros_for_empty_prompt` is false in what we write).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from terminus import runtime
from terminus.model.architecture import Architecture, TextEncoderShape

log = logging.getLogger("terminus")


@dataclass(frozen=True)
class TextFeatures:
    """Features of a caption, as the UNet reads them."""

    context: Float[Tensor, "batch tokens width"]
    pooled: Float[Tensor, "batch projection"]

    def __getitem__(self, rows: slice) -> TextFeatures:
        return TextFeatures(self.context[rows], self.pooled[rows])

    @staticmethod
    def join(parts: Sequence[TextFeatures]) -> TextFeatures:
        """Stacks along the batch."""
        return TextFeatures(torch.cat([p.context for p in parts]), torch.cat([p.pooled for p in parts]))


@dataclass(frozen=True)
class TextEncoders:
    """Tokenizers and text encoders; SDXL's second tokenizer pads with token 0, the first with the end token."""

    tokenizer_1: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    text_encoder_1: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection

    @property
    def device(self) -> torch.device:
        return next(self.text_encoder_2.parameters()).device

    def tokens(self, captions: Sequence[str]) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
        """Token ids for both text encoders, padded to the text encoders' length; what does not fit is cut, with a
        warning.
        """
        return tokenize(self.tokenizer_1, captions), tokenize(self.tokenizer_2, captions)

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """Features of each caption, float32."""
        return self.read(*self.tokens(captions))

    def read(self, ids_1: Int[Tensor, "batch tokens"], ids_2: Int[Tensor, "batch tokens"]) -> TextFeatures:
        """Features of rows of token ids, one tensor per text encoder, padded as `tokens` pads them; float32."""
        first = self.text_encoder_1(input_ids=runtime.sent(ids_1, self.device), output_hidden_states=True)
        second = self.text_encoder_2(input_ids=runtime.sent(ids_2, self.device), output_hidden_states=True)
        hidden = [cast(tuple[Tensor, ...], out.hidden_states)[-2] for out in (first, second)]
        pooled = cast(Tensor, second.text_embeds)
        return TextFeatures(torch.cat(hidden, dim=-1).to(torch.float32), pooled.to(torch.float32))


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Int[Tensor, "batch tokens"]:
    """Ids padded to `model_max_length`. What is longer is cut before its end-of-text token, which stays the last."""
    length = tokenizer.model_max_length
    # Asked for whole rows once, it also says which are too long; with truncation it would have to be asked again.
    ids = cast(list[list[int]], tokenizer(list(captions), truncation=False, verbose=False).input_ids)
    rows = torch.full((len(ids), length), cast(int, tokenizer.pad_token_id))
    for caption, row, padded in zip(captions, ids, rows, strict=True):
        if len(row) > length:
            log.warning("prompt has %d tokens, the model reads %d; cut: %.60s...", len(row), length, caption)
            row = [*row[: length - 1], row[-1]]
        padded[: len(row)] = torch.tensor(row)
    return rows


def build_text_encoders(architecture: Architecture, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]) -> TextEncoders:
    """Text encoders with random weights (from the global torch generator) for these tokenizers."""
    first, second = tokenizers
    return TextEncoders(
        first,
        second,
        CLIPTextModel(_text_config(architecture.text_encoder_1, architecture.positions, first)),
        CLIPTextModelWithProjection(_text_config(architecture.text_encoder_2, architecture.positions, second)),
    )


def build_vision(architecture: Architecture) -> CLIPVisionModelWithProjection:
    """The vision encoder that shares the text encoders' space, with random weights."""
    shape = architecture.vision
    if shape is None:
        raise ValueError("this architecture has no vision encoder")
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=shape.width,
            intermediate_size=3 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            patch_size=shape.patch,
            image_size=shape.pixels,
            projection_dim=architecture.text_encoder_2.projection,
            hidden_act="gelu",
        )
    )


def _text_config(shape: TextEncoderShape, positions: int, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    # eos_token_id must be the real one: the value 2 selects CLIP's legacy pooling by argmax of the ids.
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=positions,
        hidden_act=shape.activation,
        projection_dim=shape.projection,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
