"""Whole differences: an adapter of any kind, written so that a reader only has to add."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from terminus import cli
from terminus.errors import UserError
from terminus.model.adapter_differences import write_differences
from terminus.model.adapter_keys import networks
from terminus.model.adapters import Adapters
from terminus.model.components import Components, load_components
from terminus.model.header import read_header

UNET, UNET_STEM = (
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "lora_unet_middle_block_1_transformer_blocks_0",
)
TEXT_ENCODER = "encoder.layers.0.self_attn.q_proj"
STEMS = {
    f"{UNET_STEM}_attn2_to_k": (32, 64),
    "lora_unet_input_blocks_1_0_in_layers_2": (16, 16, 3, 3),
    f"lora_te1_text_model_{TEXT_ENCODER.replace('.', '_')}": (32, 32),
}


@pytest.fixture(scope="module")
def base(random_nano: Path) -> Components:
    return load_components(random_nano)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def lora(stem: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        f"{stem}.lora_down.weight": random(3, *shape[1:]),
        f"{stem}.lora_up.weight": random(shape[0], 3, *(1,) * (len(shape) - 2), seed=1),
        f"{stem}.alpha": torch.tensor(1.5),
    }


def dora(stem: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return lora(stem, shape) | {f"{stem}.dora_scale": random(shape[0], *(1,) * (len(shape) - 1), seed=2).abs() + 0.5}


def loha(stem: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    sides = {"a": (shape[0], 3), "b": (3, torch.Size(shape[1:]).numel())}
    return {
        f"{stem}.hada_w{number}_{side}": random(*size, seed=number) for number in (1, 2) for side, size in sides.items()
    }


def biased(stem: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return lora(stem, shape) | ({f"{stem}.diff_b": random(shape[0])} if "attn2" not in stem else {})


KINDS = {"LoRA": lora, "DoRA": dora, "LoHa": loha, "with a bias": biased}


def written(folder: Path, kind: str, metadata: Mapping[str, str] | None = None) -> Path:
    tensors: dict[str, Tensor] = {}
    for stem, shape in STEMS.items():
        tensors |= KINDS[kind](stem, shape)
    save_file(tensors, folder / "look.safetensors", metadata=dict(metadata or {}))
    return folder / "look.safetensors"


def changed(base: Components, adapter: Path, weight: float) -> dict[str, Tensor]:
    text = replace(
        base.text_encoders,
        text_encoder_1=deepcopy(base.text_encoders.text_encoder_1),
        text_encoder_2=deepcopy(base.text_encoders.text_encoder_2),
    )
    model = replace(base, unet=deepcopy(base.unet), text_encoders=text)
    Adapters(model).attach(adapter, weight)
    return {f"{part}.{k}": v for part, network in networks(model).items() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_they_change_the_model_as_the_adapter_does(
    base: Components, random_nano: Path, tmp_path: Path, kind: str, weight: float
):
    source = written(tmp_path, kind)
    plain = write_differences(source, random_nano, tmp_path / "plain.safetensors").target
    expected, before = changed(base, source, weight), changed(base, source, 0.0)
    found = changed(base, plain, weight)
    moved = {name for name, value in expected.items() if not torch.equal(value, before[name])}
    assert len(moved) == len(STEMS) + (2 if kind == "with a bias" else 0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


def test_their_names_are_kohyas_and_their_shapes_the_weights(random_nano: Path, tmp_path: Path):
    told = {"ss_network_dim": "3", "ss_network_alpha": "1.5", "modelspec.prediction_type": "v-zsnr", "ss_tag": "x"}
    source = written(tmp_path, "DoRA", told | {"sshs_model_hash": "0", "modelspec.hash_sha256": "0x0"})
    done = write_differences(source, random_nano, tmp_path / "plain.safetensors", "fp16")
    tensors = load_file(done.target)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {f"{k}.diff": v for k, v in STEMS.items()}
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    metadata = read_header(done.target).metadata
    assert metadata["ss_network_args"] == '{"algo": "full"}'
    assert (metadata["modelspec.prediction_type"], metadata["ss_tag"]) == ("v-zsnr", "x")
    assert metadata.keys().isdisjoint({"ss_network_dim", "ss_network_alpha", "sshs_model_hash"})
    assert metadata["modelspec.hash_sha256"] not in ("0x0", "")


def test_what_cannot_be_written_is_said(random_nano: Path, tmp_path: Path):
    source = written(tmp_path, "DoRA")
    with pytest.raises(UserError, match=r"Its name ends in \.safetensors"):
        write_differences(source, random_nano, tmp_path / "folder")
    with pytest.raises(UserError, match="exists already"):
        write_differences(source, random_nano, source)
    large = load_file(source)
    large[f"{UNET_STEM}_attn2_to_k.dora_scale"] = torch.full((32, 1), 1e9)
    save_file(large, tmp_path / "large.safetensors")
    with pytest.raises(UserError, match=r"does not fit torch.float16.*bf16"):
        write_differences(tmp_path / "large.safetensors", random_nano, tmp_path / "x.safetensors", "fp16")
    assert not (tmp_path / "x.safetensors").exists()


def test_the_command(random_nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, target = written(tmp_path, "DoRA"), tmp_path / "plain.safetensors"
    cli.convert(str(source), target, onto=str(random_nano))
    assert capsys.readouterr().out.splitlines() == [str(target), "3 tensors, 0.0 MB, for this model alone"]
    with pytest.raises(UserError, match="--ema is for models"):
        cli.convert(str(source), tmp_path / "more.safetensors", ema=True, onto=str(random_nano))
