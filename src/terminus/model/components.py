"""A whole model: networks, and the record of how it was trained, which is what decides how it must be sampled.

A folder is a diffusers SDXL pipeline (so diffusers loads it) plus `terminus.json`; both are in `model.record`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import CLIPVisionModelWithProjection

from terminus.errors import UserError
from terminus.model.codec import Codec, load_codec
from terminus.model.record import Record, load_record, save_record, write_json
from terminus.model.text import TextTowers
from terminus.model.towers import load_towers, load_vision, save_towers, save_vision
from terminus.model.unet import UNet
from terminus.model.weights import load_module, read_json, resolve, save_module

_CLASSES = {
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


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
        sample_size = cast(int, self.unet.config["sample_size"])
        return self.record.native_pixels or sample_size * self.codec.factor


def load_components(model: str | Path) -> Components:
    """Loads a folder, a shipped name or a hub id."""
    folder = resolve(model)
    _check_index(folder)
    unet = load_module(UNet, folder / "unet").eval().requires_grad_(False)
    codec, text = load_codec(folder), load_towers(folder)
    vision = load_vision(folder / "vision") if (folder / "vision").is_dir() else None
    check_widths(unet, text, str(folder))
    return Components(unet, codec, text, load_record(folder), vision)


def save_components(components: Components, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes a folder that `load_components` and diffusers' SDXL pipelines load."""
    folder.mkdir(parents=True, exist_ok=True)
    save_module(components.unet, folder / "unet", dtype)
    save_module(components.codec.vae, folder / "vae", dtype)
    save_towers(components.text, folder, dtype)
    if components.vision is not None:
        save_vision(components.vision, folder / "vision", dtype)
    save_record(components.record, folder)
    index: dict[str, object] = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.42.1"}
    # The unconditional input is the encoded empty caption, as in training; diffusers would use zeros.
    index |= {"force_zeros_for_empty_prompt": False, "add_watermarker": None}
    index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    index |= {name: list(pair) for name, pair in _CLASSES.items()}
    write_json(folder / "model_index.json", index)


def _check_index(folder: Path) -> None:
    index = read_json(folder / "model_index.json")
    for name, pair in _CLASSES.items():
        stored = index.get(name)
        if name != "scheduler" and stored not in (list(pair), [pair[0], pair[1] + "Fast"]):
            raise UserError(
                f"{name} is {stored!r}, not {list(pair)}",
                where=str(folder / "model_index.json"),
                rule="Terminus loads the components of SDXL; no class that a file names is imported",
            )


def check_widths(unet: UNet, text: TextTowers, where: str) -> None:
    """UserError unless the towers give what the UNet reads."""
    projection, sizes = text.tower_2.config.projection_dim, 6 * unet.config["addition_time_embed_dim"]
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
