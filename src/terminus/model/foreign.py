"""Single files that others wrote: is it SDXL, and if not, what is it?

Such a file has tensors and no configuration. SDXL's follows from its shapes; anything else is named in one error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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
"""The scaling factor of SDXL's latents; no single file carries it."""
_RULE = "Terminus uses models of the SDXL base architecture"
_ADAPTER_FIX = (
    "`terminus sample MODEL --lora FILE` uses it with its model, `terminus convert FILE NEW --onto MODEL` writes out "
    "what it adds to that model"
)
_PARTS = {
    "UNet": UNET_PREFIX,
    "VAE": VAE_PREFIX,
    "first text encoder": CLIP_PREFIX,
    "second text encoder": OPEN_CLIP_PREFIX,
}


def infer_configs(header: Header) -> dict[str, dict[str, Any]]:
    """`config.json` of each network of a plain SDXL file; UserError naming what it is otherwise."""
    # A UNet that is there as its moving average alone has names without dots.
    blocks, first = f"{UNET_PREFIX}input_blocks.", "0.0.weight"
    if has_only_ema(header):
        blocks, first = f"{EMA_PREFIX}diffusion_modelinput_blocks", "00weight"
    _check_context(header)
    _check_networks(header, _PARTS | {"UNet": blocks})
    return sdxl_configs(_input_channels(header, blocks + first))


def _check_context(header: Header) -> None:
    """UserError for a UNet whose cross-attention has another width: that of another family."""
    width = _context_width(header)
    if width not in (None, SDXL.context_width):
        known = f" ({CONTEXTS[width]})" if width in CONTEXTS else ""
        raise UserError(
            f"This is not SDXL: its UNet reads a context of width {width}{known}, SDXL's is {SDXL.context_width}",
            where=str(header.path), rule=_RULE,
        )  # fmt: skip


def _check_networks(header: Header, prefixes: Mapping[str, str]) -> None:
    """UserError for a file without one of the four networks, each known by the beginning of its names."""
    names, where = header.tensors.keys(), str(header.path)
    missing = [part for part, prefix in prefixes.items() if not any(name.startswith(prefix) for name in names)]
    if "UNet" in missing:
        kind = guess(names)
        fix = _ADAPTER_FIX if "LoRA" in kind else ""
        raise UserError(f"This is not an SDXL checkpoint: it looks like {kind}", where=where, rule=_RULE, fix=fix)
    if missing:
        raise UserError(
            f"This file has no {' and no '.join(missing)}",
            where=where,
            rule=f"A single file has all four networks ({', '.join(f'{p}*' for p in _PARTS.values())})",
            fix="Use the full checkpoint; this one was saved without them",
        )


def _input_channels(header: Header, name: str) -> int:
    """Input channels of the UNet's first convolution, whose weight has this name: 4, and up to 16 where it inpaints."""
    info = header.tensors.get(name)
    shape = () if info is None else info.shape
    if len(shape) != 4 or not 4 <= shape[1] <= 16:
        stated = None if info is None else list(shape)
        raise UserError(
            f"The UNet's first convolution is {stated}, not [320, 4 to 16, 3, 3]", where=str(header.path), rule=_RULE
        )
    return shape[1]


def sdxl_configs(in_channels: int = 4) -> dict[str, dict[str, Any]]:
    """The four configurations of SDXL, as diffusers and transformers write them."""
    return json.loads(_configs(replace(SDXL, unet=replace(SDXL.unet, in_channels=in_channels))))


@cache
def _configs(architecture: Architecture) -> str:
    # Built without numbers: their own configuration is then that of what would be built.
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
    # Written without dots, names cannot be split again: every parameter's is written like that, and looked up.
    flat: dict[str, str] = {}
    for name in unet.state_dict():
        ldm = unet_map().ldm_name(name)
        flat[f"{EMA_PREFIX}diffusion_model{ldm.replace('.', '')}"] = UNET_PREFIX + ldm
    stored = [name for name in header.tensors if is_average(name)]
    unknown = sorted(name for name in stored if name not in flat)
    if unknown:
        raise UserError(
            f"{len(unknown)} EMA weights belong to no parameter of SDXL's UNet, the first is {unknown[0]!r:.120}",
            where=str(header.path),
        )
    return {name: flat[name] for name in stored}


def _context_width(header: Header) -> int | None:
    """Width of the text that the first cross-attention of an LDM UNet reads; None where none is found."""
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
