"""The names in an adapter's files: those that other programs look for, whichever transformers made the networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from terminus.model.adapter_files import DIFFUSERS_FILE, PEFT_FILE, Algorithm, Trained, write_adapter
from terminus.model.adapter_keys import Part, Target
from terminus.model.components import Components, load_components
from terminus.model.header import read_header

UNET = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
LAYER = "encoder.layers.0.self_attn.q_proj"
SLOTS = {"lora": ("down", "up"), "dora": ("down", "up", "magnitude"), "loha": ("hada_w1_a", "hada_w1_b")}


@pytest.fixture(scope="module")
def components(random_nano: Path) -> Components:
    return load_components(random_nano)


def trained(algorithm: Algorithm, wrapped: bool) -> Trained:
    """One layer of each network; `wrapped` names those of the text encoders as transformers did before 5.6."""
    front = "text_model." if wrapped else ""
    modules: dict[Part, str] = {"unet": UNET, "text_encoder_1": front + LAYER, "text_encoder_2": f"text_model.{LAYER}"}
    shapes: dict[str, tuple[int, ...]] = {"magnitude": (32,)}
    layers: dict[Target, dict[str, Tensor]] = {
        Target(part, module): {slot: torch.ones(shapes.get(slot, (2, 2))) for slot in SLOTS[algorithm]}
        for part, module in modules.items()
    }
    configs: dict[Part, dict[str, Any]] = {
        part: {"r": 2, "target_modules": [module], "new_in_peft": 1} for part, module in modules.items()
    }
    return Trained(algorithm, 2, 2.0, layers, configs)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_diffusers_file_has_the_names_that_every_transformers_reads(
    components: Components, tmp_path: Path, algorithm: Algorithm, wrapped: bool
):
    write_adapter(trained(algorithm, wrapped), components, tmp_path, "x")
    modules = (f"unet.{UNET}", f"text_encoder.text_model.{LAYER}", f"text_encoder_2.text_model.{LAYER}")
    expected = {f"{module}.{factor}.weight" for module in modules for factor in ("lora_A", "lora_B")}
    if algorithm == "dora":
        expected.add(f"unet.{UNET}.lora_magnitude_vector")
        expected |= {f"{module}.lora_magnitude_vector.weight" for module in modules[1:]}
    assert read_header(tmp_path / DIFFUSERS_FILE).tensors.keys() == expected


def test_diffusers_file_has_no_settings_that_an_older_peft_raises_on(components: Components, tmp_path: Path):
    """diffusers hands all of them to `LoraConfig` (peft 0.17 lacks what 0.21 writes)."""
    write_adapter(trained("dora", False), components, tmp_path, "x")
    told = json.loads(read_header(tmp_path / DIFFUSERS_FILE).metadata["lora_adapter_metadata"])
    assert {key.rpartition(".")[2] for key in told} == {"r", "target_modules"}
    assert told["text_encoder.target_modules"] == [LAYER]  # an ending of either name


@pytest.mark.parametrize("wrapped", [False, True])
def test_kohyas_file_has_the_names_that_every_program_reads(components: Components, tmp_path: Path, wrapped: bool):
    write_adapter(trained("lora", wrapped), components, tmp_path, "x")
    flat = LAYER.replace(".", "_")
    unet = "middle_block.1.transformer_blocks.0.attn2.to_k".replace(".", "_")
    modules = (f"lora_unet_{unet}", f"lora_te1_text_model_{flat}", f"lora_te2_text_model_{flat}")
    factors = ("lora_down.weight", "lora_up.weight", "alpha")
    expected = {f"{module}.{factor}" for module in modules for factor in factors}
    assert read_header(tmp_path / "x.safetensors").tensors.keys() == expected


@pytest.mark.parametrize("wrapped", [False, True])
def test_pefts_folder_has_the_names_of_the_present_networks(components: Components, tmp_path: Path, wrapped: bool):
    write_adapter(trained("loha", wrapped), components, tmp_path, "x")
    for folder, module in (("text_encoder", LAYER), ("text_encoder_2", f"text_model.{LAYER}")):
        keys = read_header(tmp_path / folder / PEFT_FILE).tensors.keys()
        assert keys == {f"base_model.model.{module}.{slot}" for slot in SLOTS["loha"]}
