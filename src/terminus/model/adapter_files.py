"""A trained adapter written for other programs: one file in kohya's layout, and what diffusers or peft reads.

Numbers are written as they were trained, in float32: a factor is small beside the weight that it changes, and half
precision would round away what is smallest in it. The other way round, `model.adapters` reads all of these files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from terminus.model.adapter_keys import Part, Target
from terminus.model.architecture import SDXL
from terminus.model.components import Components
from terminus.model.header import read_header
from terminus.model.keys import ldm_unet_name
from terminus.model.modelspec import predict_key, prediction_type
from terminus.model.record import write_json
from terminus.model.writing import HASH, write_safetensors

Algorithm = Literal["lora", "dora", "loha", "lokr"]
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FOLDERS: dict[Part, str] = {"unet": "unet", "text_encoder_1": "text_encoder", "text_encoder_2": "text_encoder_2"}
"""diffusers' names of the networks."""

_KOHYA = {"unet": "lora_unet_", "text_encoder_1": "lora_te1_", "text_encoder_2": "lora_te2_"}
_KOHYA_SLOTS = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale"}
_PEFT_SLOTS = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_EXACT = ("diff", "diff_b", "w_norm", "b_norm")
"""Whole differences beside the factors, which kohya's layout alone has names for."""
_SAID = ("alpha_pattern", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora")
"""peft's settings that change the numbers. diffusers' file has no others: an older peft raises on those it lacks."""


@dataclass(frozen=True)
class Trained:
    """A trained adapter: the factors of each module, named as in `model.adapter_deltas`."""

    algorithm: Algorithm
    rank: int
    alpha: float
    layers: Mapping[Target, Mapping[str, Tensor]]
    """A module with an `alpha` of its own (a number) has that in place of the adapter's."""
    configs: Mapping[Part, Mapping[str, Any]]
    """peft's settings of each network, as JSON."""
    told: Mapping[str, str] = field(default_factory=dict[str, str])
    """Metadata of kohya's file beside, or in place of, what follows from the rest."""


def write_adapter(trained: Trained, components: Components, folder: Path, name: str) -> None:
    """Writes `<name>.safetensors` (kohya), and beside it what else reads this algorithm.

    LoRA and DoRA: `pytorch_lora_weights.safetensors` (diffusers). LoHa and LoKr, which diffusers does not know: a
    folder of peft's for each network. `components` is the model with its own names, without the adapter's layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_kohya(trained, components, folder / f"{name}.safetensors", name)
    if trained.algorithm in ("lora", "dora"):
        # diffusers: one file, with the settings of each network in its header.
        configs: dict[str, object] = {}
        for part, config in trained.configs.items():
            configs |= {f"{FOLDERS[part]}.{key}": config[key] for key in _SAID if key in config}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(configs, sort_keys=True)}
        tensors = {f"{FOLDERS[target.part]}.{key}": value for target, key, value in _as_peft(trained, _lasting_name)}
        write_safetensors(folder / DIFFUSERS_FILE, tensors, metadata)
        return
    # peft: a folder for each network.
    for part, config in trained.configs.items():
        (folder / FOLDERS[part]).mkdir()
        found = _as_peft(trained, _present_name)
        tensors = {f"base_model.model.{key}": value for target, key, value in found if target.part == part}
        write_safetensors(folder / FOLDERS[part] / PEFT_FILE, tensors, {"format": "pt"})
        write_json(folder / FOLDERS[part] / PEFT_CONFIG, dict(config))


def kohya_tensors(trained: Trained, layers: int) -> dict[str, Tensor]:
    """Under LDM's names flattened with underscores, each module with its alpha; `layers` is the UNet's per block."""
    tensors: dict[str, Tensor] = {}
    for target, factors in trained.layers.items():
        stem = kohya_name(target, layers)
        # Readers scale a product of low rank alone. Whole factors of LoKr have none, so theirs is multiplied in.
        ranked = not factors.keys() <= {"lokr_w1", "lokr_w2", *_EXACT}
        if ranked:
            tensors[f"{stem}.alpha"] = factors.get("alpha", torch.tensor(float(trained.alpha)))
        for slot, value in factors.items():
            if slot == "alpha":
                continue
            if slot == "magnitude":  # per output, in the shape that LyCORIS broadcasts
                value = value.reshape(-1, *(1,) * (factors["down"].ndim - 1))
            if slot == "lokr_w1" and not ranked:
                value = value * (trained.alpha / trained.rank)
            tensors[f"{stem}.{_KOHYA_SLOTS.get(slot, slot)}"] = value
    return tensors


def kohya_name(target: Target, layers: int) -> str:
    """The module as kohya's files call it; `layers` is the UNet's per block."""
    name = ldm_unet_name(target.module, layers) if target.part == "unet" else _lasting_name(target)
    return _KOHYA[target.part] + name.replace(".", "_")


def _lasting_name(target: Target) -> str:
    """The module's name in files, whichever transformers is installed.

    transformers 5.6 took `text_model.` out of text encoder 1's own names, which all programs before it have and those
    after it still read.
    """
    if target.part == "unet" or target.module.startswith(("text_model.", "text_projection")):
        return target.module
    return f"text_model.{target.module}"


def _present_name(target: Target) -> str:
    """The module's name in transformers since 5.6: peft looks for the names of the network that it is given."""
    return target.module.removeprefix("text_model.") if target.part == "text_encoder_1" else target.module


def _as_peft(trained: Trained, name: Callable[[Target], str]) -> list[tuple[Target, str, Tensor]]:
    found: list[tuple[Target, str, Tensor]] = []
    for target, factors in trained.layers.items():
        for slot, value in factors.items():
            if slot == "alpha" or slot in _EXACT:
                continue
            key = f"{name(target)}.{_PEFT_SLOTS.get(slot, slot)}"
            # Of a text encoder, transformers finds the magnitude by its full name alone; peft finds it by both.
            full = slot == "magnitude" and target.part != "unet"
            found.append((target, f"{key}.weight" if full else key, value))
    return found


def _write_kohya(trained: Trained, components: Components, path: Path, title: str) -> None:
    """Twice: kohya's key for the hash is not the one that the writer fills in."""
    tensors = kohya_tensors(trained, cast(int, components.unet.config["layers_per_block"]))
    metadata = _metadata(trained, components, title)
    write_safetensors(path, tensors, metadata)
    digest = read_header(path).metadata[HASH]
    write_safetensors(path, tensors, metadata | {"sshs_model_hash": digest.removeprefix("0x")})


def _metadata(trained: Trained, components: Components, title: str) -> dict[str, str]:
    """kohya's and ModelSpec's keys, all text: which model it belongs to, and what that predicts on which schedule."""
    record = components.record
    schedule, pixels = record.schedule, components.native_pixels
    plain = trained.algorithm == "lora"
    found = {
        "format": "pt",
        HASH: "",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{pixels}x{pixels}",
        "modelspec.prediction_type": prediction_type(schedule),
        "modelspec.predict_key": predict_key(schedule),
        "ss_output_name": title,
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": str(trained.rank),
        "ss_network_alpha": str(trained.alpha),
        "ss_v2": "False",
    }
    if schedule.prediction != "flow":  # which kohya's keys have no word for
        found["ss_v_parameterization"] = str(schedule.prediction == "velocity")
        found["ss_zero_terminal_snr"] = str(schedule.zero_terminal)
    if not plain:
        algorithm = {"algo": "lora", "dora_wd": "True"} if trained.algorithm == "dora" else {"algo": trained.algorithm}
        found["ss_network_args"] = json.dumps(algorithm)
    if components.unet.config["cross_attention_dim"] == SDXL.context_width:  # no program knows a smaller one
        found["modelspec.architecture"] = "stable-diffusion-xl-v1-base/lora"
        found["ss_base_model_version"] = "sdxl_base_v1-0"
    if record.licence is not None:
        found["modelspec.license"] = record.licence
    if record.weighting.get("kind") == "min_snr" and "gamma" in record.weighting:
        found["ss_min_snr_gamma"] = str(record.weighting["gamma"])
    return found | dict(trained.told)
