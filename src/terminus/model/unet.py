"""The denoising network: a diffusers UNet behind one function, so that its call convention stays in this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from terminus.model.architecture import Architecture
from terminus.model.text import TextFeatures

UNet = UNet2DConditionModel


def build_unet(architecture: Architecture) -> UNet:
    """A UNet of SDXL's classes with random weights (from the global torch generator)."""
    shape = architecture.unet
    levels = len(shape.channels)
    build = cast(Callable[..., UNet2DConditionModel], UNet2DConditionModel)  # annotated with one-element tuples
    return build(
        sample_size=shape.latent_size,
        in_channels=shape.in_channels,
        out_channels=architecture.codec.latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        block_out_channels=shape.channels,
        layers_per_block=shape.layers_per_level,
        transformer_layers_per_block=shape.transformer_layers,
        attention_head_dim=shape.heads,  # diffusers' historic name for the number of heads
        norm_num_groups=shape.norm_groups,
        use_linear_projection=True,
        cross_attention_dim=architecture.context_width,
        addition_embed_type="text_time",
        addition_time_embed_dim=shape.size_embedding,
        projection_class_embeddings_input_dim=architecture.text_time_width,
    )


def predict(
    unet: UNet,
    x: Float[Tensor, "batch channels height width"],
    t: Int[Tensor, " batch"],
    text: TextFeatures,
    time_ids: Float[Tensor, "batch 6"],
) -> Float[Tensor, "batch 4 height width"]:
    """The network's output (a velocity for our models) in float32, whatever precision it ran in."""
    added = {"text_embeds": text.pooled, "time_ids": time_ids}
    call = cast(Callable[..., tuple[Tensor]], unet)
    return call(x, t, text.context, added_cond_kwargs=added, return_dict=False)[0].to(torch.float32)
