"""Single files that others wrote: is it SDXL, and if not, what is it?

Such a file has tensors and no configuration. SDXL's follows from its shapes; anything else is named in one error.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from terminus.errors import UserError
from terminus.model.architecture import SDXL, Architecture
from terminus.model.header import Header
from terminus.model.keys import CLIP_PREFIX, OPEN_CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, unet_map
from terminus.model.kinds import CONTEXTS, EMA_PREFIX, guess, has_only_ema, is_average
from terminus.model.text import build_text_encoders
from terminus.model.unet import build_unet
from terminus.model.vae import build_vae
from terminus.model.vocabulary import clip_tokenizers

_SCALE = 0.13025
"""Of SDXL's latents; no single file carries it."""
_PARTS = {
    "UNet": UNET_PREFIX,
    "VAE": VAE_PREFIX,
    "first text encoder": CLIP_PREFIX,
    "second text encoder": OPEN_CLIP_PREFIX,
}


def infer_configs(header: Header) -> dict[str, dict[str, Any]]:
    """`config.json` of each network of a plain SDXL file; UserError naming what it is otherwise."""
    where, names = str(header.path), header.tensors.keys()
    blocks = f"{EMA_PREFIX}diffusion_modelinput_blocks" if has_only_ema(header) else f"{UNET_PREFIX}input_blocks."
    prefixes = _PARTS | {"UNet": blocks}
    missing = [part for part, prefix in prefixes.items() if not any(name.startswith(prefix) for name in names)]
    width = _context_width(header)
    fix = "Terminus uses models of the SDXL base architecture"
    if width not in (None, SDXL.context_width):
        known = f" ({CONTEXTS[width]})" if width in CONTEXTS else ""
        raise UserError(
            f"This is not SDXL: its UNet reads a context of width {width}{known}, SDXL's is {SDXL.context_width}",
            where=where, rule=fix,
        )  # fmt: skip
    if "UNet" in missing:
        kind = guess(names)
        adapter = (
            "`terminus sample MODEL --lora FILE` uses it with its model, `terminus convert FILE NEW --onto MODEL` "
        )
        lora = f"{adapter}writes out what it adds to that model" if "LoRA" in kind else ""
        raise UserError(f"This is not an SDXL checkpoint: it looks like {kind}", where=where, rule=fix, fix=lora)
    if missing:
        raise UserError(
            f"This file has no {' and no '.join(missing)}",
            where=where,
            rule=f"A single file has all four networks ({', '.join(f'{p}*' for p in _PARTS.values())})",
            fix="Use the full checkpoint; this one was saved without them",
        )
    info = header.tensors.get(f"{blocks}00weight" if has_only_ema(header) else f"{blocks}0.0.weight")
    if info is None or len(info.shape) != 4 or not 4 <= info.shape[1] <= 16:
        shape = None if info is None else list(info.shape)
        raise UserError(f"The UNet's first convolution is {shape}, not [320, 4 to 16, 3, 3]", where=where, rule=fix)
    return sdxl_configs(info.shape[1])


def sdxl_configs(in_channels: int = 4) -> dict[str, dict[str, Any]]:
    """The four configurations of SDXL, as diffusers and transformers write them."""
    return json.loads(_configs(replace(SDXL, unet=replace(SDXL.unet, in_channels=in_channels))))


@cache
def _configs(architecture: Architecture) -> str:
    with torch.device("meta"):
        unet, vae = build_unet(architecture), build_vae(architecture).autoencoder
        text_encoders = build_text_encoders(architecture, clip_tokenizers())
    vae.register_to_config(scaling_factor=_SCALE, force_upcast=True)
    configs = {"unet": json.loads(unet.to_json_string()), "vae": json.loads(vae.to_json_string())}
    for name, text_encoder in (
        ("text_encoder", text_encoders.text_encoder_1),
        ("text_encoder_2", text_encoders.text_encoder_2),
    ):
        configs[name] = json.loads(text_encoder.config.to_json_string()) | {
            "architectures": [type(text_encoder).__name__]
        }
    return json.dumps(configs)


def ema_names(header: Header) -> dict[str, str]:
    """Stored name -> LDM name of the UNet's moving averages, whose stored names have lost their dots."""
    with torch.device("meta"):
        unet = build_unet(SDXL)
    flat: dict[str, str] = {}
    for name in unet.state_dict():
        ldm = unet_map().ldm_name(name)
        flat[f"{EMA_PREFIX}diffusion_model{ldm.replace('.', '')}"] = UNET_PREFIX + ldm
    stored = [name for name in header.tensors if is_average(name)]
    unknown = sorted(name for name in stored if name not in flat)
    if unknown:
        raise UserError(
            f"{len(unknown)} EMA weights are of no parameter of SDXL's UNet, the first is {unknown[0]!r:.120}",
            where=str(header.path),
        )
    return {name: flat[name] for name in stored}


def _context_width(header: Header) -> int | None:
    """What the first cross-attention of an LDM UNet reads."""
    pattern = re.compile(
        r"(^|\.)(input_blocks\.\d+\.1\.|input_blocks\d+1)transformer_?blocks?\S*attn2\S*to_k\S*weight$"
    )
    found = sorted(
        name
        for name in header.tensors
        if (name.startswith(UNET_PREFIX) and pattern.search(name)) or (is_average(name) and "attn2to_k" in name)
    )
    shape = header.tensors[found[0]].shape if found else ()
    return shape[1] if len(shape) == 2 else None
