"""The kind of a file of tensors, by their names alone: no network is built, and no number is read."""

from __future__ import annotations

import re
from collections.abc import Collection

from terminus.errors import UserError
from terminus.model.header import Header
from terminus.model.keys import UNET_PREFIX, VAE_PREFIX

EMA_PREFIX = "model_ema."
_OTHERS = (
    (r"^lora_|\.lora_(up|down|A|B|a|b)\b|\.hada_w|\.lokr_w|\.dora_scale", "an adapter (LoRA or LyCORIS), not a model"),
    (r"^control_model\.|controlnet_cond_embedding|^input_hint_block", "a ControlNet, not a model"),
    (r"^image_proj\.|^ip_adapter\.", "an IP-Adapter, not a model"),
    (r"double_blocks\.|single_transformer_blocks\.", "a FLUX model or one of its kind"),
    (r"joint_blocks\.|joint_transformer_blocks\.|^joint_transformer", "a Stable Diffusion 3 model or one of its kind"),
    (r"^(clip_l|clip_g|emb_params|string_to_param)$", "a textual inversion, not a model"),
    (r"^(down_blocks|mid_block|up_blocks)\.", "one network in the layout of diffusers, not a whole model"),
    (r"^(encoder|decoder)\.(conv_in|down|up)", "an autoencoder alone, not a whole model"),
    (r"^(text_model|transformer\.resblocks)\.", "a text encoder alone, not a whole model"),
    (r"^(diffusion_model\.)?input_blocks\.", "a UNet alone, not a whole model"),
)
_SCALED = re.compile(r"\.(scale_weight|weight_scale|weight_scale_inv|scaled_fp8|comfy_quant|absmax|qweight)$")
"""Beside numbers that mean nothing without them."""
CONTEXTS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "the SDXL refiner"}


def guess(names: Collection[str]) -> str:
    """A name for tensors that are no SDXL model, by their names."""
    if not names:
        return "an empty file"
    if all(name.startswith(VAE_PREFIX) for name in names):
        return "an autoencoder alone, not a whole model"
    for pattern, kind in _OTHERS:
        if any(re.search(pattern, name) for name in names):
            return kind
    return f"something else; its first of {len(names)} tensors is {ascii(min(names))[:80]}"


def has_only_ema(header: Header) -> bool:
    """Whether the UNet is there as a moving average alone."""
    names = header.tensors.keys()
    return not any(name.startswith(UNET_PREFIX) for name in names) and any(map(is_average, names))


def is_average(name: str) -> bool:
    """Whether it names a moving average of a parameter of the UNet."""
    return name.startswith(f"{EMA_PREFIX}diffusion_model")


def refuse_scaled(header: Header) -> None:
    """UserError for weights that were divided by scales, which are stored beside them."""
    found = next((name for name in header.tensors if _SCALED.search(name)), None)
    if found is not None:
        raise UserError(
            f"Its weights are quantised: they belong to scales such as {ascii(found)[:120]}", where=str(header.path),
            rule="Weights are read as plain numbers of 8 bits (fp8) or more, never with scales beside them",
            fix="Use the fp16 or bf16 file of this model",
        )  # fmt: skip
