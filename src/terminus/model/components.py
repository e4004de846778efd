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
from terminus.model.parts import MARKERS, TOKENIZERS, CheckpointParts, new_index, read_index, read_record
from terminus.model.record import Record, Schedule, save_record, write_json
from terminus.model.single_file import read_networks
from terminus.model.text import TextEncoders
from terminus.model.text_encoders import (
    check_tokenizers,
    load_text_encoder,
    load_tokenizer,
    load_vision,
    save_text_encoders,
    save_vision,
)
from terminus.model.unet import UNet
from terminus.model.vae import VAE
from terminus.model.weights import load_module, resolve, save_module


@dataclass(frozen=True)
class Components:
    """Networks in float32 and evaluation mode, on one device."""

    unet: UNet
    vae: VAE
    text_encoders: TextEncoders
    record: Record
    vision: CLIPVisionModelWithProjection | None = None

    def to(self, device: torch.device) -> Components:
        """Moves every network; returns self, as torch modules do."""
        modules = [
            self.unet,
            self.vae.autoencoder,
            self.text_encoders.text_encoder_1,
            self.text_encoders.text_encoder_2,
            self.vision,
        ]
        for module in modules:
            if module is not None:
                cast(Any, module).to(device)
        return self

    @property
    def native_pixels(self) -> int:
        """The side of the square image the model was trained on."""
        return self.record.side(self.unet.config["sample_size"], self.vae.factor)


def load_components(model: str | Path, schedule: Schedule | None = None) -> Components:
    """Loads a folder, a single file, a shipped name or a hub id; the schedule is what `model.detect` says, or this."""
    folder = resolve(model)
    if folder.is_file():
        return load_single_file(folder, schedule=schedule)

    # A folder says which classes its components are of; only SDXL's are loaded.
    read_index(folder)
    unet = load_module(UNet, folder / "unet", ignored=MARKERS).eval().requires_grad_(False)
    vae, text = load_vae(folder), load_text_encoders(folder)
    vision = load_vision(folder / "vision") if (folder / "vision").is_dir() else None
    check_widths(unet, text, str(folder))
    return _sized(Components(unet, vae, text, read_record(folder, schedule), vision), str(folder))


def load_single_file(path: Path, ema: bool = False, schedule: Schedule | None = None) -> Components:
    """Loads one .safetensors file in the LDM layout; `ema` asks for the UNet's moving average, where it holds one."""
    networks, parts = read_networks(path, ema=ema, schedule=schedule)
    unet, text = cast(UNet, networks["unet"]), text_encoders_of(networks, parts)
    check_widths(unet, text, str(path))
    vision = cast("CLIPVisionModelWithProjection | None", networks.get("vision"))
    vae = VAE(cast(AutoencoderKL, networks["vae"]))
    return _sized(Components(unet, vae, text, parts.record, vision), str(path))


def _sized(components: Components, where: str) -> Components:
    """The same, of a size that can be drawn: what does not say how large it draws is drawn at its native size."""
    try:
        components.native_pixels  # noqa: B018 - for its error
    except UserError as error:
        raise UserError(str(error), where=where) from error
    return components


def load_vae(model: str | Path) -> VAE:
    """The VAE of a model folder or single file, of "nano", or of a hub id, in evaluation mode and float32."""
    path = resolve(model)
    if path.is_file():
        return VAE(cast(AutoencoderKL, read_networks(path, ["vae"])[0]["vae"]))
    vae = load_module(AutoencoderKL, path / "vae", renamed=modern_vae_name)
    return VAE(vae.eval().requires_grad_(False))


def load_text_encoders(folder: Path) -> TextEncoders:
    """Both text encoders of a diffusers SDXL folder or single file, float32, in evaluation mode."""
    if folder.is_file():
        return text_encoders_of(*read_networks(folder, ["text_encoder", "text_encoder_2"]))
    text_encoders = TextEncoders(
        load_tokenizer(folder / "tokenizer"),
        load_tokenizer(folder / "tokenizer_2"),
        load_text_encoder(CLIPTextModel, CLIPTextConfig, folder / "text_encoder"),
        load_text_encoder(CLIPTextModelWithProjection, CLIPTextConfig, folder / "text_encoder_2"),
    )
    check_tokenizers(text_encoders, str(folder))
    return text_encoders


def text_encoders_of(networks: Mapping[str, nn.Module], parts: CheckpointParts) -> TextEncoders:
    """Text encoders made of networks that were read."""
    first, second = (parts.vocabularies[name].tokenizer() for name in TOKENIZERS)
    text_encoder_1, text_encoder_2 = networks["text_encoder"], networks["text_encoder_2"]
    text_encoders = TextEncoders(
        first, second, cast(CLIPTextModel, text_encoder_1), cast(CLIPTextModelWithProjection, text_encoder_2)
    )
    check_tokenizers(text_encoders, parts.where)
    return text_encoders


def save_components(components: Components, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes a folder that `load_components` and diffusers' SDXL pipelines load."""
    folder.mkdir(parents=True, exist_ok=True)
    save_module(components.unet, folder / "unet", dtype)
    save_module(components.vae.autoencoder, folder / "vae", dtype)
    save_text_encoders(components.text_encoders, folder, dtype)
    if components.vision is not None:
        save_vision(components.vision, folder / "vision", dtype)
    save_record(components.record, folder)
    write_json(folder / "model_index.json", new_index(components.record.schedule))


def check_widths(unet: UNet, text: TextEncoders, where: str) -> None:
    """UserError unless the text encoders give what the UNet reads."""
    projection = cast(int, text.text_encoder_2.config.projection_dim)
    # Six numbers are embedded: original size, crop and target size.
    sizes = 6 * cast(int, unet.config["addition_time_embed_dim"] or 0)
    for what, have, want in (
        (
            "a context",
            text.text_encoder_1.config.hidden_size + text.text_encoder_2.config.hidden_size,
            "cross_attention_dim",
        ),
        ("pooled text and sizes", projection + sizes, "projection_class_embeddings_input_dim"),
    ):
        if have != unet.config[want]:
            raise UserError(
                f"The UNet reads {what} of {unet.config[want]}, the text encoders give {have}",
                where=where,
                rule=f"{want} of the UNet follows from the widths of both text encoders",
                fix="Use a UNet and text encoders that were trained together, or their own architecture",
            )
