"""The denoising network: a diffusers UNet behind one function, so that its call convention stays in this file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        out_channels=architecture.vae.latent_channels,
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


@dataclass(frozen=True)
class Residuals:
    """Tensors that controls add inside the UNet; controls of one image add up."""

    down: tuple[Tensor, ...] = ()
    """One per skip connection (ControlNet)."""
    mid: Tensor | None = None
    intrablock: tuple[Tensor, ...] = ()
    """One per level, and one for the middle where it has the shape of that (T2I-Adapter)."""

    def __add__(self, other: Residuals) -> Residuals:
        return Residuals(
            _sum(self.down, other.down),
            _sum_of_mids(self.mid, other.mid),
            _sum(self.intrablock, other.intrablock),
        )


def _sum_of_mids(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def predict(
    unet: UNet,
    x: Float[Tensor, "batch channels height width"],
    t: Int[Tensor, " batch"] | Float[Tensor, " batch"],
    text: TextFeatures,
    time_ids: Float[Tensor, "batch 6"],
    residuals: Residuals | None = None,
    image_embeds: Sequence[Float[Tensor, "batch images *width"]] | None = None,
) -> Float[Tensor, "batch 4 height width"]:
    """The network's output (a velocity for our models) in float32, whatever precision it ran in.

    `t` is the time as `NoiseSchedule.network_time` tells it.

    `image_embeds` has one entry per attached IP-Adapter, and is needed while one is (`model.image_prompt`).
    """
    added: dict[str, object] = {"text_embeds": text.pooled, "time_ids": time_ids}
    if image_embeds is not None:
        added["image_embeds"] = list(image_embeds)
    extra: dict[str, object] = {}
    if residuals is not None and residuals.mid is not None:
        extra["down_block_additional_residuals"] = residuals.down
        extra["mid_block_additional_residual"] = residuals.mid
    if residuals is not None and residuals.intrablock:
        # diffusers takes these out of the list one by one, so it gets a list of its own at every call.
        extra["down_intrablock_additional_residuals"] = list(residuals.intrablock)
    call = cast(Callable[..., tuple[Tensor]], unet)
    output = call(x, t, text.context, added_cond_kwargs=added, return_dict=False, **extra)[0]
    return output.to(torch.float32)


def _sum(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True)) if first and second else first or second
