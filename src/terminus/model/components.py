"""A whole model: networks, and the record of how it was trained, which is what decides how it must be sampled.

A folder is a diffusers SDXL pipeline (so diffusers loads it) plus `terminus.json`; both are in `model.record`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from terminus.errors import UserError
from terminus.model.keys import modern_vae_name
from terminus.model.parts import MARKERS, TOKENIZERS, Parts, new_index, read_index, read_record
from terminus.model.record import Record, Schedule, save_record, write_json
from terminus.model.single_file import read_networks
from terminus.model.text import TextTowers
from terminus.model.text_encoders import (
    check_tokenizers,
    load_tokenizer,
    load_tower,
    load_vision,
    save_towers,
    save_vision,
)
from terminus.model.unet import UNet
from terminus.model.vae import Codec
from terminus.model.weights import load_module, resolve, save_module


@dataclass(frozen=True)
class Components:
    """Networks in float32 and evaluation mode, on one device."""

    unet: UNet
    codec: Codec
    text: TextTowers
    record: Record
    vision: CLIPVisionModelWithProjection | None = None

    def to(self, device: torch.device) -> Components:
        """Moves every network; returns self, as torch modules do."""
        modules = [self.unet, self.codec.vae, self.text.tower_1, self.text.tower_2, self.vision]
        for module in modules:
            if module is not None:
                cast(Any, module).to(device)
        return self

    @property
    def native_pixels(self) -> int:
        """The side of the square picture the model was trained on."""
        return self.record.side(self.unet.config["sample_size"], self.codec.factor)


def load_components(model: str | Path, schedule: Schedule | None = None) -> Components:
    """Loads a folder, a single file, a shipped name or a hub id; the schedule is what `model.detect` says, or this."""
    folder = resolve(model)
    if folder.is_file():
        return load_single_file(folder, schedule=schedule)
    read_index(folder)
    unet = load_module(UNet, folder / "unet", ignored=MARKERS).eval().requires_grad_(False)
    codec, text = load_codec(folder), load_towers(folder)
    vision = load_vision(folder / "vision") if (folder / "vision").is_dir() else None
    check_widths(unet, text, str(folder))
    return _sized(Components(unet, codec, text, read_record(folder, schedule), vision), str(folder))


def load_single_file(path: Path, ema: bool = False, schedule: Schedule | None = None) -> Components:
    """Loads one .safetensors file in the LDM layout; `ema` asks for the UNet's moving average, where it holds one."""
    networks, parts = read_networks(path, ema=ema, schedule=schedule)
    unet, text = cast(UNet, networks["unet"]), towers_of(networks, parts)
    check_widths(unet, text, str(path))
    vision = cast("CLIPVisionModelWithProjection | None", networks.get("vision"))
    codec = Codec(cast(AutoencoderKL, networks["vae"]))
    return _sized(Components(unet, codec, text, parts.record, vision), str(path))


def _sized(components: Components, where: str) -> Components:
    """The same, of a size that can be drawn: what does not say how large it draws is drawn at its native size."""
    try:
        components.native_pixels  # noqa: B018 - for its error
    except UserError as error:
        raise UserError(str(error), where=where) from error
    return components


def load_codec(model: str | Path) -> Codec:
    """The codec of a model folder or single file, of "nano", or of a hub id, in evaluation mode and float32."""
    path = resolve(model)
    if path.is_file():
        return Codec(cast(AutoencoderKL, read_networks(path, ["vae"])[0]["vae"]))
    vae = load_module(AutoencoderKL, path / "vae", renamed=modern_vae_name)
    return Codec(vae.eval().requires_grad_(False))


def load_towers(folder: Path) -> TextTowers:
    """Both text towers of a diffusers SDXL folder or single file, float32, in evaluation mode."""
    if folder.is_file():
        return towers_of(*read_networks(folder, ["text_encoder", "text_encoder_2"]))
    towers = TextTowers(
        load_tokenizer(folder / "tokenizer"),
        load_tokenizer(folder / "tokenizer_2"),
        load_tower(CLIPTextModel, CLIPTextConfig, folder / "text_encoder"),
        load_tower(CLIPTextModelWithProjection, CLIPTextConfig, folder / "text_encoder_2"),
    )
    check_tokenizers(towers, str(folder))
    return towers


def towers_of(networks: Mapping[str, nn.Module], parts: Parts) -> TextTowers:
    """Text encoders made of networks that were read."""
    first, second = (parts.vocabularies[name].tokenizer() for name in TOKENIZERS)
    tower_1, tower_2 = networks["text_encoder"], networks["text_encoder_2"]
    towers = TextTowers(first, second, cast(CLIPTextModel, tower_1), cast(CLIPTextModelWithProjection, tower_2))
    check_tokenizers(towers, parts.where)
    return towers


def save_components(components: Components, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes a folder that `load_components` and diffusers' SDXL pipelines load."""
    folder.mkdir(parents=True, exist_ok=True)
    save_module(components.unet, folder / "unet", dtype)
    save_module(components.codec.vae, folder / "vae", dtype)
    save_towers(components.text, folder, dtype)
    if components.vision is not None:
        save_vision(components.vision, folder / "vision", dtype)
    save_record(components.record, folder)
    write_json(folder / "model_index.json", new_index())


def check_widths(unet: UNet, text: TextTowers, where: str) -> None:
    """UserError unless the towers give what the UNet reads."""
    projection = cast(int, text.tower_2.config.projection_dim)
    sizes = 6 * cast(int, unet.config["addition_time_embed_dim"] or 0)
    for what, have, want in (
        ("a context", text.tower_1.config.hidden_size + text.tower_2.config.hidden_size, "cross_attention_dim"),
        ("pooled text and sizes", projection + sizes, "projection_class_embeddings_input_dim"),
    ):
        if have != unet.config[want]:
            raise UserError(
                f"The UNet reads {what} of {unet.config[want]}, the text towers give {have}",
                where=where,
                rule=f"{want} of the UNet follows from the widths of both towers",
                fix="Use a UNet and text towers that were trained together, or the architecture of these towers",
            )
