"""A whole model: networks, and the record of how it was trained, which is what decides how it must be sampled.

A folder is a diffusers SDXL pipeline (so diffusers loads it) plus `terminus.json`, which holds what diffusers has
no place for: weighting, lineage, counts. The schedule is read from `scheduler/scheduler_config.json` alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from transformers import CLIPVisionModelWithProjection

from terminus.errors import UserError
from terminus.model.codec import Codec, load_codec
from terminus.model.text import TextTowers
from terminus.model.towers import load_towers, load_vision, save_towers, save_vision
from terminus.model.unet import UNet
from terminus.model.weights import load_module, read_json, resolve, save_module

log = logging.getLogger("terminus")

Number = TypeVar("Number", int, float)
Prediction = Literal["velocity", "epsilon"]
_DIFFUSERS_NAME: dict[Prediction, str] = {"velocity": "v_prediction", "epsilon": "epsilon"}
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
class Schedule:
    """The noise schedule as plain numbers, and what the network predicts on it."""

    prediction: Prediction = "velocity"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000
    zero_terminal: bool = True


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of itself. Empty fields were not recorded."""

    schedule: Schedule = field(default_factory=Schedule)
    weighting: dict[str, str | float] = field(default_factory=dict[str, str | float])
    caption_dropout: float | None = None
    images_seen: int = 0
    parents: tuple[str, ...] = ()
    licence: str | None = None
    native_pixels: int | None = None


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
    _write_json(folder / "model_index.json", index)


def load_record(folder: Path) -> Record:
    """The record of a model folder; the scheduler's file wins over anything else about the schedule."""
    schedule = _read_schedule(folder / "scheduler" / "scheduler_config.json")
    path = folder / "terminus.json"
    if not path.is_file():
        return Record(schedule=schedule)
    stored = read_json(path)
    try:
        return Record(
            schedule=schedule,
            weighting={str(key): value for key, value in stored.get("weighting", {}).items()},
            caption_dropout=_number(stored.get("caption_dropout"), float),
            images_seen=int(stored.get("images_seen", 0)),
            parents=tuple(str(parent) for parent in stored.get("parents", [])),
            licence=None if stored.get("licence") is None else str(stored["licence"]),
            native_pixels=_number(stored.get("native_pixels"), int),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"This record is not readable ({error})", where=str(path)) from error


def _number(stored: object, kind: Callable[[Any], Number]) -> Number | None:
    if isinstance(stored, bool | str):
        raise ValueError(f"{stored!r} is not a number")
    return None if stored is None else kind(stored)


def save_record(record: Record, folder: Path) -> None:
    """Writes `terminus.json` and the scheduler configuration that makes diffusers sample as we do."""
    schedule = record.schedule
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": schedule.timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": _DIFFUSERS_NAME[schedule.prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal,
        "timestep_spacing": "trailing",
        # Euler ignores this; DDIM and DDPM made from this file would clip x0 to [-1, 1] without it.
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "use_karras_sigmas": False,
        "interpolation_type": "linear",
        "final_sigmas_type": "zero",
    }
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", config)
    _write_json(folder / "terminus.json", asdict(record))


def _read_schedule(path: Path) -> Schedule:
    config = read_json(path)
    names: dict[str, Prediction] = {name: key for key, name in _DIFFUSERS_NAME.items()}
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in names:
        raise UserError(
            f"prediction_type is {prediction!r}", where=str(path), rule=f"Known: {', '.join(sorted(names))}"
        )
    if config.get("trained_betas") is not None or config.get("beta_schedule", "scaled_linear") != "scaled_linear":
        raise UserError("Only the scaled_linear schedule of SDXL is known", where=str(path))
    try:
        return Schedule(
            prediction=names[prediction],
            beta_start=float(config.get("beta_start", 0.00085)),
            beta_end=float(config.get("beta_end", 0.012)),
            timesteps=int(config.get("num_train_timesteps", 1000)),
            zero_terminal=bool(config.get("rescale_betas_zero_snr", False)),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"This schedule is not readable ({error})", where=str(path)) from error


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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
