"""Adapters: every layout and algorithm gives the change that its paper (or peft) gives, and leaves without a trace."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from terminus.errors import UserError
from terminus.model.adapter_keys import networks, place, split_key, weighted_modules
from terminus.model.adapters import Adapters, read_adapter
from terminus.model.architecture import SDXL
from terminus.model.components import Components, load_components
from terminus.model.header import read_header
from terminus.model.keys import ldm_unet_name
from terminus.model.record import Record, Schedule
from terminus.model.unet import UNet, build_unet

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "up_blocks.0.resnets.1.conv2"
POINTWISE = "up_blocks.0.resnets.1.conv_shortcut"
TEXT_ENCODER = "encoder.layers.1.self_attn.q_proj"
RANK, ALPHA = 3, 1.5


@pytest.fixture(scope="module")
def loaded(random_nano: Path) -> Components:
    return load_components(random_nano)


@pytest.fixture
def components(loaded: Components) -> Components:
    """A model to change."""
    text = replace(
        loaded.text_encoders,
        text_encoder_1=deepcopy(loaded.text_encoders.text_encoder_1),
        text_encoder_2=deepcopy(loaded.text_encoders.text_encoder_2),
    )
    return replace(loaded, unet=deepcopy(loaded.unet), text_encoders=text)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weight(components: Components, module: str) -> Tensor:
    return components.unet.get_submodule(module).weight


def text_encoder_weight(components: Components) -> Tensor:
    text_encoder = components.text_encoders.text_encoder_2
    name = next(name for name in weighted_modules(text_encoder) if name.endswith(TEXT_ENCODER))
    return text_encoder.get_submodule(name).weight


def state(components: Components) -> dict[str, Tensor]:
    parts = networks(components)
    return {f"{part}.{k}": v.clone() for part, network in parts.items() for k, v in network.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())


def written(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata=metadata or None)
    return path


def factors(shape: torch.Size, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """LoRA's down and up for a weight of this shape, and their product."""
    down, up = random(RANK, *shape[1:], seed=seed), random(shape[0], RANK, seed=seed + 1)
    product = (up @ down.flatten(1)).reshape(shape)
    return down, up.reshape(shape[0], RANK, *(1,) * (len(shape) - 2)), product


def kohya(components: Components, name: Callable[[str], str], modules: list[str], seed: int = 0) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in modules:
        down, up, _ = factors(weight(components, module).shape, seed)
        stem = "lora_unet_" + name(module).replace(".", "_")
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(ALPHA),
        }
    return tensors


def ldm(module: str) -> str:
    return ldm_unet_name(module, 1)


def plain(module: str) -> str:
    return module


# Layouts


@pytest.mark.parametrize("naming", [ldm, plain])
@pytest.mark.parametrize("module", [ATTENTION, LINEAR, CONV, POINTWISE, "time_embedding.linear_1", "conv_in"])
def test_kohya_names(components: Components, tmp_path: Path, naming: Callable[[str], str], module: str):
    before = weight(components, module).clone()
    path = written(tmp_path / "a.safetensors", kohya(components, naming, [module]))
    Adapters(components).attach(path, 0.5)
    expected = before + 0.5 * ALPHA / RANK * factors(before.shape)[2]
    torch.testing.assert_close(weight(components, module), expected, rtol=1e-6, atol=1e-6)


def test_every_layer_of_sdxl_has_one_flattened_name_in_both_namings(components: Components, tmp_path: Path):
    """Put everywhere at once, an adapter of either naming is the same adapter."""
    modules = [name for name in weighted_modules(components.unet) if weight(components, name).ndim in (2, 4)]
    assert len(modules) > 60
    read = [
        read_adapter(written(tmp_path / "all.safetensors", kohya(components, naming, modules)), components)
        for naming in (ldm, plain)
    ]
    assert read[0].layers.keys() == read[1].layers.keys()
    assert {target.module for target in read[0].layers} == set(modules)


PEFT_LAYOUTS = {
    "diffusers": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
    "diffusers with adapter name": ("unet.{}.lora_A.default_0.weight", "unet.{}.lora_B.default_0.weight"),
    "diffusers, older": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
    "UNet alone": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "ComfyUI": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
    "LyCORIS": ("lycoris_{}.lora_down.weight", "lycoris_{}.lora_up.weight"),
}


@pytest.mark.parametrize("layout", PEFT_LAYOUTS)
def test_dotted_names(components: Components, tmp_path: Path, layout: str):
    before = weight(components, LINEAR).clone()
    down, up, product = factors(before.shape)
    name = {"ComfyUI": ldm(LINEAR), "LyCORIS": LINEAR.replace(".", "_")}.get(layout, LINEAR)
    keys = [pattern.format(name) for pattern in PEFT_LAYOUTS[layout]]
    Adapters(components).attach(written(tmp_path / "a.safetensors", dict(zip(keys, (down, up), strict=True))))
    torch.testing.assert_close(weight(components, LINEAR), before + product)


def test_the_oldest_names_of_diffusers(components: Components, tmp_path: Path):
    """They name the attention processor; `to_out_lora` is the layer `to_out.0`."""
    before, text_encoder = weight(components, LINEAR).clone(), text_encoder_weight(components).clone()
    down, up, product = factors(before.shape)
    text_encoder_down, text_encoder_up, text_encoder_product = factors(text_encoder.shape)
    processor = f"unet.{LINEAR.removesuffix('.to_out.0')}.processor.to_out_lora"
    layer = f"text_encoder_2.text_model.{TEXT_ENCODER.removesuffix('.q_proj')}.to_q_lora"
    tensors = {f"{processor}.down.weight": down, f"{processor}.up.weight": up}
    tensors |= {f"{layer}.down.weight": text_encoder_down, f"{layer}.up.weight": text_encoder_up}
    Adapters(components).attach(written(tmp_path / "a.safetensors", tensors))
    torch.testing.assert_close(weight(components, LINEAR), before + product)
    torch.testing.assert_close(text_encoder_weight(components), text_encoder + text_encoder_product)


@pytest.mark.parametrize(
    "stem",
    [
        "lora_te2_text_model_" + TEXT_ENCODER.replace(".", "_"),
        "text_encoder_2.text_model." + TEXT_ENCODER,
        "text_encoder_2." + TEXT_ENCODER,
        "text_encoder_2.base_model.model.text_model." + TEXT_ENCODER,
        "text_encoders.clip_g.transformer.text_model." + TEXT_ENCODER,
    ],
)
def test_text_encoders_have_a_weight_of_their_own(components: Components, tmp_path: Path, stem: str):
    before = text_encoder_weight(components).clone()
    down, up, product = factors(before.shape)
    unet = kohya(components, plain, [LINEAR])
    path = written(tmp_path / "a.safetensors", unet | {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up})
    linear = weight(components, LINEAR).clone()
    adapters = Adapters(components)
    adapters.attach(path, 0.0, text=0.25)
    torch.testing.assert_close(text_encoder_weight(components), before + 0.25 * product)
    assert torch.equal(weight(components, LINEAR), linear)
    adapters.weigh("a", 1.0, text=0.0)
    assert torch.equal(text_encoder_weight(components), before)
    assert not torch.equal(weight(components, LINEAR), linear)


KOHYA = {
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_8_1_transformer_blocks_9_ff_net_2": "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2",
    "middle_block_1_transformer_blocks_3_attn2_to_out_0": "mid_block.attentions.0.transformer_blocks.3.attn2.to_out.0",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_transformer_blocks_1_ff_net_2": "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.2",
    "label_emb_0_0": "add_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "out_2": "conv_out",
}


def test_names_of_kohya_in_the_unet_of_sdxl(components: Components):
    """Of its real size, without storage: nano has one layer per level, SDXL two."""
    with torch.device("meta"):
        sdxl = replace(components, unet=build_unet(SDXL))
    found = place({f"lora_unet_{name}.lora_down.weight": torch.zeros(1) for name in KOHYA}, sdxl, "here")
    assert found.unplaced == ()
    assert [target.module for target in found.layers] == list(KOHYA.values())


# Against other implementations


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_kohya_file_in_diffusers_own_pipeline(random_nano: Path, tmp_path: Path, components: Components):
    """UNet and both text encoders at once: the same contexts, and the same prediction from them."""
    modules = [
        name for name in weighted_modules(components.unet) if name.endswith(("to_q", "to_k", "to_out.0", "proj_in"))
    ]
    tensors = kohya(components, ldm, modules)
    for number, text_encoder in (
        (1, components.text_encoders.text_encoder_1),
        (2, components.text_encoders.text_encoder_2),
    ):
        for name in (name for name in weighted_modules(text_encoder) if name.endswith(("q_proj", "out_proj", "fc1"))):
            down, up, _ = factors(text_encoder.get_submodule(name).weight.shape, seed=number)
            stem = f"lora_te{number}_text_model_{name.removeprefix('text_model.').replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    tensors = {key: 0.3 * value if "lora_up" in key else value for key, value in tensors.items()}
    path = written(tmp_path / "kohya.safetensors", tensors)
    pipe = StableDiffusionXLPipeline.from_pretrained(random_nano, local_files_only=True, dtype=torch.float32)
    pipe.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    Adapters(components).attach(path)
    context, _, pooled, _ = pipe.encode_prompt("a red apple", device="cpu", do_classifier_free_guidance=False)
    ours = components.text_encoders.encode(["a red apple"])
    torch.testing.assert_close(ours.context, context, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = pipe.unet(**inputs(components)).sample
        torch.testing.assert_close(components.unet(**inputs(components)).sample, expected, rtol=1e-5, atol=1e-5)


def inputs(components: Components) -> dict[str, object]:
    width = components.unet.config.cross_attention_dim
    added = {"text_embeds": random(2, 32), "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]).repeat(2, 1)}
    return {
        "sample": random(2, 4, 8, 8),
        "timestep": torch.tensor([999, 250]),
        "encoder_hidden_states": random(2, 32, width),
        "added_cond_kwargs": added,
    }


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "patterns"])
def test_unet_output_is_diffusers_own_with_peft(random_nano: Path, components: Components, tmp_path: Path, kind: str):
    """The same file through `save_lora_adapter` / `load_lora_adapter`, and through us."""
    theirs = UNet2DConditionModel.from_pretrained(random_nano / "unet", local_files_only=True).eval()
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
        target_modules=["to_q", "to_k", "to_out.0", "conv1", "conv_shortcut", "proj_in"],
        init_lora_weights=False,
        alpha_pattern={"to_q": 2, "mid_block.resnets.0.conv1": 8} if kind == "patterns" else {},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs.add_adapter(config)
        for name, value in theirs.named_parameters():
            if "lora" in name:
                value.data += 0.05 * torch.randn_like(value)
    theirs.save_lora_adapter(tmp_path, safe_serialization=True)
    fresh = UNet2DConditionModel.from_pretrained(random_nano / "unet", local_files_only=True).eval()
    fresh.load_lora_adapter(tmp_path, prefix=None, local_files_only=True, use_safetensors=True)
    with torch.no_grad():
        base = components.unet(**inputs(components)).sample
        adapters = Adapters(components)
        attached = read_adapter(tmp_path, components)
        adapters.attach(attached)
        ours, expected = components.unet(**inputs(components)).sample, fresh(**inputs(components)).sample
    assert attached.unplaced == ()
    assert (ours - base).abs().max() > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


class Pair(nn.Module):
    """Two layers with the names of two layers of the UNet."""

    def __init__(self, source: UNet) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32, bias=False)
        self.conv = nn.Conv2d(64, 32, 3, padding=1)
        self.linear.weight.data = source.get_submodule(LINEAR).weight.detach().clone()
        conv = source.get_submodule("up_blocks.0.resnets.0.conv1").weight.detach()
        assert conv.shape == self.conv.weight.shape
        self.conv.weight.data = conv.clone()


NAMES = {"linear": LINEAR, "conv": "up_blocks.0.resnets.0.conv1"}
ON_BOTH = {"target_modules": ["linear", "conv"]}
PEFT_CONFIGS = {
    "LoRA": LoraConfig(r=4, lora_alpha=3, init_lora_weights=False, **ON_BOTH),
    "DoRA": LoraConfig(r=4, lora_alpha=3, init_lora_weights=False, use_dora=True, **ON_BOTH),
    "LoHa": LoHaConfig(r=4, alpha=3, init_weights=False, **ON_BOTH),
    "LoHa Tucker": LoHaConfig(r=4, alpha=3, init_weights=False, use_effective_conv2d=True, **ON_BOTH),
    "LoKr": LoKrConfig(r=2, alpha=3, init_weights=False, **ON_BOTH),
    "LoKr halves": LoKrConfig(r=2, alpha=3, init_weights=False, decompose_both=True, decompose_factor=4, **ON_BOTH),
    "LoKr Tucker": LoKrConfig(r=2, alpha=3, init_weights=False, use_effective_conv2d=True, **ON_BOTH),
    "LoKr whole": LoKrConfig(r=64, alpha=3, init_weights=False, **ON_BOTH),
}


@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_merged_weights_are_pefts(components: Components, tmp_path: Path, kind: str):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(Pair(components.unet), PEFT_CONFIGS[kind])
        for name, value in model.named_parameters():
            if "magnitude" in name:
                value.data *= 1 + 0.2 * torch.rand_like(value)
    tensors = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    for short, name in NAMES.items():
        tensors = {key.replace(f".{short}.", f".{name}."): value for key, value in tensors.items()}
    path = written(tmp_path / kind / "adapter_model.safetensors", tensors)
    config = PEFT_CONFIGS[kind].to_dict()
    (path.parent / "adapter_config.json").write_text(
        json.dumps({k: config[k] for k in config if "alpha" in k or k == "r"})
    )
    merged = model.merge_and_unload()
    Adapters(components).attach(path.parent)
    for short, name in NAMES.items():
        moved = (weight(components, name) - Pair(components.unet).get_submodule(short).weight).abs().max()
        assert moved == 0  # the pair reads from the changed UNet: it is what was compared below
        expected = merged.get_submodule(short).weight
        torch.testing.assert_close(weight(components, name), expected, rtol=1e-5, atol=1e-5)


# Formulas


def attach(components: Components, tmp_path: Path, module: str, tensors: dict[str, Tensor], strength: float = 1.0):
    stem = "lora_unet_" + module.replace(".", "_")
    path = written(tmp_path / "a.safetensors", {f"{stem}.{key}": value for key, value in tensors.items()})
    Adapters(components).attach(path, strength)


def test_tucker_convolution_is_three_convolutions(components: Components, tmp_path: Path):
    before = weight(components, CONV).clone()
    out, into = before.shape[:2]
    down, mid, up = random(RANK, into, 1, 1), random(RANK, RANK, 3, 3), random(out, RANK, 1, 1)
    attach(components, tmp_path, CONV, {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up})
    x = random(1, into, 6, 6)
    chain = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), mid), up)
    expected = nn.functional.conv2d(x, before) + chain
    torch.testing.assert_close(nn.functional.conv2d(x, weight(components, CONV)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [ATTENTION, CONV])
@pytest.mark.parametrize("per", ["input", "output"])
def test_dora_in_the_orientations_of_lycoris(components: Components, tmp_path: Path, module: str, per: str):
    before = weight(components, module).clone()
    down, up, product = factors(before.shape)
    axis = {"output": 0, "input": 1}[per]
    shape = [1] * before.ndim
    shape[axis] = before.shape[axis]
    scale = random(*shape).abs() + 0.5
    attach(components, tmp_path, module, {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale}, 0.5)
    changed = before + product
    norms = changed.movedim(axis, 0).flatten(1).norm(dim=1).reshape(shape)
    expected = before + 0.5 * (changed * scale / norms - before)
    torch.testing.assert_close(weight(components, module), expected, rtol=1e-5, atol=1e-5)


def test_magnitudes_are_the_norms_after_dora(components: Components, tmp_path: Path):
    shape = weight(components, CONV).shape
    down, up, _ = factors(shape)
    scale = random(shape[0], 1, 1, 1).abs() + 0.5
    attach(components, tmp_path, CONV, {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale})
    torch.testing.assert_close(weight(components, CONV).flatten(1).norm(dim=1), scale.flatten())


def test_full_differences_and_biases(components: Components, tmp_path: Path):
    layer = components.unet.get_submodule(CONV)
    before, bias = layer.weight.clone(), layer.bias.clone()
    change, shift = random(*before.shape), random(*bias.shape)
    attach(components, tmp_path, CONV, {"diff": change, "diff_b": shift}, 2.0)
    torch.testing.assert_close(layer.weight, before + 2 * change)
    torch.testing.assert_close(layer.bias, bias + 2 * shift)


def test_norms(components: Components, tmp_path: Path):
    layer = components.unet.get_submodule("up_blocks.0.resnets.1.norm1")
    before, bias = layer.weight.clone(), layer.bias.clone()
    tensors = {"w_norm": random(*before.shape), "b_norm": random(*bias.shape)}
    attach(components, tmp_path, "up_blocks.0.resnets.1.norm1", tensors)
    torch.testing.assert_close(layer.weight, before + tensors["w_norm"])
    torch.testing.assert_close(layer.bias, bias + tensors["b_norm"])


@pytest.mark.parametrize(("whole", "scale"), [(True, 1.0), (False, ALPHA / 2)])
def test_lokr_of_lycoris_has_no_alpha_when_nothing_is_of_low_rank(
    components, tmp_path: Path, whole: bool, scale: float
):
    before = weight(components, LINEAR).clone()
    first, a, b = random(4, 8), random(8, 2), random(2, 4)
    second = {"lokr_w2": a @ b} if whole else {"lokr_w2_a": a, "lokr_w2_b": b}
    attach(components, tmp_path, LINEAR, {"lokr_w1": first, "alpha": torch.tensor(ALPHA), **second})
    torch.testing.assert_close(weight(components, LINEAR), before + scale * torch.kron(first, a @ b))


def test_a_bias_beside_factors_is_not_scaled_by_alpha(components: Components, tmp_path: Path):
    """As ComfyUI's extraction writes it: `diff_b` is a whole difference."""
    layer = components.unet.get_submodule(CONV)
    before, bias = layer.weight.clone(), layer.bias.clone()
    down, up, product = factors(before.shape)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA), "diff_b": random(32)}
    attach(components, tmp_path, CONV, tensors, 0.5)
    torch.testing.assert_close(layer.bias, bias + 0.5 * tensors["diff_b"])
    torch.testing.assert_close(layer.weight, before + 0.5 * ALPHA / RANK * product, rtol=1e-5, atol=1e-5)


OUT, IN, SPREAD = 32, 32, 0.3


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("i j k l, i o, j c -> o c k l", core, a, b)


def kron(first: Tensor, second: Tensor) -> Tensor:
    """Block (i, j) is first[i, j] times second."""
    rows = [torch.cat([value * second for value in row], dim=1) for row in first]
    return torch.cat(rows, dim=0)


# Factors of a 3 × 3 convolution, the change without alpha, and the rank that divides alpha (LyCORIS, 2309.14859).
Factors = dict[str, Tensor]
FORMULAS: dict[str, tuple[dict[str, tuple[int, ...]], Callable[[Factors], Tensor], int]] = {
    "LoCon": (
        {"lora_down.weight": (2, IN, 3, 3), "lora_up.weight": (OUT, 2, 1, 1)},
        lambda f: torch.einsum("r c k l, o r -> o c k l", f["lora_down.weight"], f["lora_up.weight"][..., 0, 0]),
        2,
    ),
    "LoCon, Tucker": (
        {"lora_down.weight": (2, IN, 1, 1), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (OUT, 2, 1, 1)},
        lambda f: tucker(
            f["lora_mid.weight"], f["lora_up.weight"][..., 0, 0].T, f["lora_down.weight"][..., 0, 0]
        ),
        2,
    ),
    "LoHa": (
        {"hada_w1_a": (OUT, 3), "hada_w1_b": (3, IN * 9), "hada_w2_a": (OUT, 3), "hada_w2_b": (3, IN * 9)},
        lambda f: ((f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])).reshape(OUT, IN, 3, 3),
        3,
    ),
    "LoHa, Tucker": (
        {f"hada_t{n}": (3, 3, 3, 3) for n in "12"}
        | {f"hada_w{n}_{side}": (3, size) for n in "12" for side, size in (("a", OUT), ("b", IN))},
        lambda f: (
            tucker(f["hada_t1"], f["hada_w1_a"], f["hada_w1_b"]) * tucker(f["hada_t2"], f["hada_w2_a"], f["hada_w2_b"])
        ),
        3,
    ),
    "LoKr, halves": (
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 4 * 9)},
        lambda f: kron(
            f["lokr_w1_a"] @ f["lokr_w1_b"], (f["lokr_w2_a"] @ f["lokr_w2_b"]).reshape(8, 4, 3, 3)
        ),
        2,
    ),
    "LoKr, Tucker": (
        {"lokr_w1": (4, 8), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 8), "lokr_w2_b": (2, 4)},
        lambda f: kron(f["lokr_w1"], tucker(f["lokr_t2"], f["lokr_w2_a"], f["lokr_w2_b"])),
        2,
    ),
    "LoKr, half": (
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 8), "lokr_w2": (8, 4, 3, 3)},
        lambda f: kron(f["lokr_w1_a"] @ f["lokr_w1_b"], f["lokr_w2"]),
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("alpha", [ALPHA, 0.0, None])
@pytest.mark.parametrize("kind", FORMULAS)
def test_the_formulas_in_float64(components: Components, tmp_path: Path, kind: str, alpha: float | None):
    """Without an alpha it is the rank. A negative weight takes away what a positive one adds."""
    shapes, change, rank = FORMULAS[kind]
    before = weight(components, CONV).clone()
    assert before.shape == (OUT, IN, 3, 3)
    tensors = {key: SPREAD * random(*shape, seed=index) for index, (key, shape) in enumerate(shapes.items())}
    stored = tensors if alpha is None else tensors | {"alpha": torch.tensor(alpha)}
    attach(components, tmp_path, CONV, stored, -0.7)
    scale = 1.0 if alpha is None else alpha / rank
    expected = before.double() - 0.7 * scale * change({key: value.double() for key, value in tensors.items()})
    torch.testing.assert_close(weight(components, CONV).double(), expected, rtol=1e-5, atol=1e-6)


def test_each_layer_has_its_own_rank(components: Components, tmp_path: Path):
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for module, rank in ((LINEAR, 1), (ATTENTION, 7)):
        before = weight(components, module).clone()
        down, up, stem = random(rank, before.shape[1]), random(before.shape[0], rank), module.replace(".", "_")
        tensors |= {f"lora_unet_{stem}.lora_down.weight": down, f"lora_unet_{stem}.lora_up.weight": up}
        tensors[f"lora_unet_{stem}.alpha"] = torch.tensor(ALPHA)
        expected[module] = before + ALPHA / rank * (up @ down)
    Adapters(components).attach(written(tmp_path / "a.safetensors", tensors))
    for module, value in expected.items():
        torch.testing.assert_close(weight(components, module), value, rtol=1e-5, atol=1e-5)


# Coming and going


def files(components: Components, folder: Path) -> list[Path]:
    """Three that overlap: LoRA, another LoRA, and one with DoRA."""
    modules = [ATTENTION, LINEAR, CONV, POINTWISE]
    first = written(folder / "first.safetensors", kohya(components, ldm, modules))
    second = written(folder / "second.safetensors", kohya(components, plain, modules[:3], seed=7))
    third = kohya(components, ldm, [CONV, LINEAR], seed=11)
    stem = "lora_unet_" + ldm(CONV).replace(".", "_")
    third[f"{stem}.dora_scale"] = random(weight(components, CONV).shape[0], 1, 1, 1).abs()
    return [first, second, written(folder / "third.safetensors", third)]


def test_a_hundred_comings_and_goings_leave_no_trace(components: Components, tmp_path: Path):
    before = state(components)
    read = [read_adapter(path, components) for path in files(components, tmp_path)]
    adapters = Adapters(components)
    for cycle in range(100):
        order = [(cycle + k) % 3 for k in range(3)]
        for index in order[: 1 + cycle % 3]:
            adapters.attach(read[index], 0.1 * (cycle % 13) - 0.55)
        if cycle % 4 == 0:
            adapters.weigh(adapters.attached[0].name, 3.0)
        assert not same(before, state(components))
        adapters.detach(adapters.attached[cycle % len(adapters.attached)].name)
        adapters.clear()
    assert same(before, state(components))


def test_what_is_left_does_not_depend_on_who_came_or_left_first(components: Components, tmp_path: Path):
    paths = files(components, tmp_path)
    states: list[dict[str, Tensor]] = []
    for coming, going in (((0, 1, 2), "first"), ((2, 1, 0), "first"), ((1, 2), None), ((2, 1), None)):
        adapters = Adapters(components)
        for index in coming:
            adapters.attach(paths[index], 0.5 + index)
        if going:
            adapters.detach(going)
        states.append(state(components))
        adapters.clear()
    assert all(same(states[0], other) for other in states[1:])


def test_the_context_manager_takes_everything_off(components: Components, tmp_path: Path):
    before = state(components)
    with Adapters(components) as adapters:
        adapters.attach(files(components, tmp_path)[0])
        assert not same(before, state(components))
    assert adapters.attached == ()
    assert same(before, state(components))


def test_a_half_precision_model_is_restored_too(components: Components, tmp_path: Path):
    paths = files(components, tmp_path)
    components.unet.to(torch.bfloat16)
    before = state(components)
    with Adapters(components) as adapters:
        adapters.attach(paths[0])
        adapters.attach(paths[2], -0.3)
        assert weight(components, CONV).dtype == torch.bfloat16
        assert not same(before, state(components))
    assert same(before, state(components))


def test_what_stays_is_the_sum_rounded_once(components: Components, tmp_path: Path):
    """Two in half precision on a model in another: float32 between the stored weight and the result."""
    components.unet.to(torch.bfloat16)
    layer = weight(components, ATTENTION)
    layer.data[0, 0] = -0.0
    before, parts = layer.clone(), []
    adapters = Adapters(components)
    for seed, strength in ((0, 0.9), (5, -0.4)):
        tensors = {key: value.half() for key, value in kohya(components, plain, [ATTENTION], seed).items()}
        adapters.attach(written(tmp_path / f"{seed}.safetensors", tensors), strength)
        down, up, alpha = tensors.values()
        parts.append(strength * alpha.double() / RANK * (up.double() @ down.double()))
    total = before.double() + parts[0] + parts[1]
    assert ((layer.double() - total).abs() <= 2**-8 * total.abs() + 1e-6).all()  # half a unit of bfloat16
    adapters.clear()
    assert torch.equal(layer.view(torch.int16), before.view(torch.int16))


def test_names_and_hashes_are_there_for_the_image(components: Components, tmp_path: Path):
    import hashlib

    (path, *_) = files(components, tmp_path)
    adapters = Adapters(components)
    state = adapters.attach(path, 0.8, text=0.4)
    assert (state.name, state.unet, state.text) == ("first", 0.8, 0.4)
    assert state.sha256 == hashlib.sha256(path.read_bytes()[read_header(path).start :]).hexdigest()
    assert adapters.attached == (state,)


# What is wrong


def test_the_same_name_twice(components: Components, tmp_path: Path):
    adapters = Adapters(components)
    (path, *_) = files(components, tmp_path)
    adapters.attach(path)
    with pytest.raises(UserError, match="'first' is already in use"):
        adapters.attach(path)
    adapters.attach(path, name="again")
    with pytest.raises(UserError, match=r"No adapter named 'other'.*In use: first, again"):
        adapters.detach("other")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_are_finite(components: Components, tmp_path: Path, bad: float):
    with pytest.raises(UserError, match="An adapter's weight is"):
        Adapters(components).attach(tmp_path / "never read", 1.0, text=bad)


def test_keys_without_a_place_are_told(components: Components, tmp_path: Path, caplog):
    extra = {"lora_unet_nowhere.lora_down.weight": random(1, 1), "bundle_emb.x.string_to_param.*": random(1, 8)}
    path = written(tmp_path / "a.safetensors", kohya(components, ldm, [LINEAR]) | extra)
    with caplog.at_level(logging.WARNING, "terminus"):
        assert set(read_adapter(path, components).unplaced) == set(extra)
    assert "2 of 5 keys have no place in this model and are not used: bundle_emb" in caplog.text


def test_a_file_of_which_nothing_fits(components: Components, tmp_path: Path):
    path = written(tmp_path / "a.safetensors", {"transformer.single_blocks.0.lora_A.weight": random(2, 2)})
    with pytest.raises(UserError, match="None of its 1 keys belongs to this model"):
        read_adapter(path, components)


UNREAD = {
    "OFT": {"oft_blocks": (4, 8, 8), "alpha": ()},
    "GLoRA": {"a1.weight": (2, 32), "a2.weight": (32, 2), "b1.weight": (2, 32), "b2.weight": (32, 2), "alpha": ()},
    "IA³": {"weight": (32,), "on_input": ()},
    "T-LoRA": {"q_layer.weight": (2, 32), "p_layer.weight": (32, 2), "lambda_layer": (1, 2), "alpha": ()},
}


@pytest.mark.parametrize("kind", UNREAD)
def test_kinds_that_are_not_read_are_named(components: Components, tmp_path: Path, kind: str):
    """Also where most of the file could be read."""
    tensors = {f"lora_unet_{plain(CONV).replace('.', '_')}.{key}": torch.ones(s) for key, s in UNREAD[kind].items()}
    path = written(tmp_path / "a.safetensors", kohya(components, plain, [LINEAR]) | tensors)
    with pytest.raises(UserError, match=rf"This is an? {kind}.* adapter \(lora_unet_up_blocks.*Merge it into a model"):
        read_adapter(path, components)


def test_text_encoders_of_another_family_are_not_taken(components: Components, tmp_path: Path):
    """Flux and SD3 have SDXL's first text encoder, under the names of SDXL's."""
    down, up, _ = factors(text_encoder_weight(components).shape)
    stem, flux = "lora_te2_text_model_" + TEXT_ENCODER.replace(".", "_"), "lora_unet_double_blocks_0_img_attn_proj"
    ours = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    theirs = {f"{flux}.lora_down.weight": random(2, 8), f"{flux}.lora_up.weight": random(8, 2)}
    with pytest.raises(UserError, match="none of its 2 keys for a UNet has a place here, such as lora_unet_double"):
        read_adapter(written(tmp_path / "a.safetensors", ours | theirs), components)
    assert len(read_adapter(written(tmp_path / "b.safetensors", ours), components).layers) == 1


def test_new_words_in_an_adapter_are_told(components: Components, tmp_path: Path, caplog):
    words = {"clip_l": random(2, 32), "clip_g": random(2, 32)}
    path = written(tmp_path / "a.safetensors", kohya(components, plain, [LINEAR]) | words)
    assert read_adapter(path, components).unplaced == ("clip_g", "clip_l")
    assert "a: it was trained with new words for prompts (clip_g, clip_l), which are not read" in caplog.text
    with pytest.raises(UserError, match=r"vectors of new words .*a textual inversion"):
        read_adapter(written(tmp_path / "b.safetensors", words), components)


def test_a_terminal_does_not_obey_the_names_in_a_file(components: Components, tmp_path: Path, caplog):
    tensors = kohya(components, plain, [LINEAR]) | {"\x1b[2J.lora_down.weight": random(1, 1)}
    read_adapter(written(tmp_path / "a.safetensors", tensors), components)
    assert "\x1b" not in caplog.text
    assert "\\x1b[2J.lora_down.weight" in caplog.text


def test_a_file_without_tensors(components: Components, tmp_path: Path):
    with pytest.raises(UserError, match="No tensor is in this file"):
        read_adapter(written(tmp_path / "a.safetensors", {}), components)


def test_a_rank_of_zero(components: Components, tmp_path: Path):
    stem = "lora_unet_" + LINEAR.replace(".", "_")
    tensors = {f"{stem}.lora_down.weight": torch.zeros(0, 32), f"{stem}.lora_up.weight": torch.zeros(32, 0)}
    with pytest.raises(UserError, match=r"The down of lora_unet_down.* has the shape \[0, 32\]: no numbers"):
        read_adapter(written(tmp_path / "a.safetensors", tensors), components)


@pytest.mark.parametrize("lost", ["lora_up.weight", "lora_down.weight"])
def test_half_a_layer_is_no_layer(components: Components, tmp_path: Path, lost: str):
    tensors = kohya(components, ldm, [LINEAR])
    kept = {key: value for key, value in tensors.items() if not key.endswith(lost)}
    with pytest.raises(UserError, match=r"lora_unet_input_blocks_3_1_.*not the factors of one adapter"):
        read_adapter(written(tmp_path / "a.safetensors", kept), components)


def test_two_keys_for_one_place(components: Components, tmp_path: Path):
    tensors = kohya(components, ldm, [LINEAR]) | kohya(components, plain, [LINEAR])
    with pytest.raises(UserError, match="and another key both give the"):
        read_adapter(written(tmp_path / "a.safetensors", tensors), components)


@pytest.mark.parametrize("change", ["lora_down.weight", "lora_up.weight", "rank"])
def test_a_shape_that_does_not_fit_names_the_layer(components: Components, tmp_path: Path, change: str):
    before = state(components)
    shape = weight(components, CONV).shape
    down, up, _ = factors(shape)
    down = random(RANK, shape[1] + 1, 3, 3) if change == "lora_down.weight" else down
    up = {"lora_up.weight": random(shape[0] + 1, RANK, 1, 1), "rank": random(shape[0], RANK + 1, 1, 1)}.get(change, up)
    with pytest.raises(UserError, match=r"lora_unet_up_blocks_0_resnets_1_conv2 .*does not fit unet\.up_blocks\.0"):
        attach(components, tmp_path, CONV, {"lora_down.weight": down, "lora_up.weight": up})
    assert same(before, state(components))


def test_a_magnitude_that_does_not_fit(components: Components, tmp_path: Path):
    down, up, _ = factors(weight(components, CONV).shape)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": random(7, 1, 1, 1)}
    with pytest.raises(UserError, match=r"a magnitude of \[7, 1, 1, 1\]"):
        attach(components, tmp_path, CONV, tensors)


def test_a_bias_where_there_is_none(components: Components, tmp_path: Path):
    with pytest.raises(UserError, match="changes a bias that unet"):
        attach(components, tmp_path, ATTENTION, {"diff_b": random(32)})


def test_numbers_that_are_none(components: Components, tmp_path: Path):
    tensors = kohya(components, ldm, [LINEAR])
    next(iter(tensors.values())).view(-1)[0] = torch.inf
    with pytest.raises(UserError, match="holds NaN or infinity"):
        read_adapter(written(tmp_path / "a.safetensors", tensors), components)


def test_pickles_are_never_opened(components: Components, tmp_path: Path):
    torch.save(kohya(components, ldm, [LINEAR]), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="pickle"):
        read_adapter(tmp_path / "a.safetensors", components)


# What the header says


@pytest.mark.parametrize("width", [768, 1024, 1280, 77])
def test_another_architecture_by_its_context(components: Components, tmp_path: Path, width: int):
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.lora_down.weight": random(4, width), f"{stem}.lora_up.weight": random(320, 4)}
    with pytest.raises(UserError, match=f"another architecture: its network reads a context of {width}") as caught:
        read_adapter(written(tmp_path / "a.safetensors", tensors), components)
    assert ("Stable Diffusion 1.x" in str(caught.value)) == (width == 768)


@pytest.mark.parametrize(
    "metadata",
    [{"ss_base_model_version": "sd_v1"}, {"modelspec.architecture": "stable-diffusion-v1/lora"},
     {"modelspec.architecture": "flux-1-dev/lora"}],
)  # fmt: skip
def test_another_architecture_by_its_header(components: Components, tmp_path: Path, metadata: dict[str, str]):
    path = written(tmp_path / "a.safetensors", kohya(components, ldm, [LINEAR]), **metadata)
    with pytest.raises(UserError, match="another architecture: its header says"):
        read_adapter(path, components)


SDXL_LORA = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "ss_base_model_version": "sdxl_base_v1-0"}


@pytest.mark.parametrize(
    ("metadata", "warning"),
    [
        ({"ss_v_parameterization": "False"}, "predicts epsilon, this model predicts velocity"),
        ({"modelspec.prediction_type": "epsilon"}, "predicts epsilon, this model predicts velocity"),
        ({"ss_zero_terminal_snr": "False"}, "trained without zero terminal SNR, this model samples with it"),
        ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ""),
        ({"modelspec.prediction_type": "v-zsnr"}, ""),
        ({}, ""),
    ],
)
def test_another_target_is_a_warning(components, tmp_path: Path, caplog, metadata: dict[str, str], warning: str):
    path = written(tmp_path / "a.safetensors", kohya(components, ldm, [LINEAR]), **SDXL_LORA, **metadata)
    with caplog.at_level(logging.INFO, "terminus"):
        read_adapter(path, components)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == bool(warning)
    assert all(warning in text for text in warnings)
    silent = "ss_v_parameterization" not in metadata and "modelspec.prediction_type" not in metadata
    assert ("does not say what" in caplog.text) == silent


@pytest.mark.parametrize("value", ["sdxl_base_v1-0", "SDXL 1.0", "sd_xl_base_0.9", "Stable-Diffusion-XL-v1-base/lora"])
def test_the_family_is_known_by_any_spelling(components: Components, tmp_path: Path, value: str):
    path = written(tmp_path / "a.safetensors", kohya(components, ldm, [LINEAR]), ss_base_model_version=value)
    assert len(read_adapter(path, components).layers) == 1


def test_headers_that_contradict_themselves(components: Components, tmp_path: Path, caplog):
    said = {"modelspec.prediction_type": "v", "ss_v_parameterization": "False"}
    adapter = read_adapter(written(tmp_path / "a.safetensors", kohya(components, ldm, [LINEAR]), **said), components)
    assert adapter.claim.prediction == "velocity"
    assert "modelspec.prediction_type says v, metadata ss_v_parameterization says False; the first" in caplog.text


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_16", "OLoRA"])
def test_adapters_that_begin_by_changing_the_model(components: Components, tmp_path: Path, begun: str):
    configuration = json.dumps({"unet.r": 4, "unet.lora_alpha": 4, "unet.init_lora_weights": begun})
    tensors = {f"unet.{LINEAR}.lora_A.weight": random(4, 32), f"unet.{LINEAR}.lora_B.weight": random(32, 4)}
    path = written(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=configuration)
    with pytest.raises(UserError, match="which changes the model's own weights too"):
        read_adapter(path, components)


def test_a_velocity_adapter_on_an_epsilon_model(components: Components, tmp_path: Path, caplog):
    epsilon = replace(components, record=Record(Schedule("epsilon", zero_terminal=False)))
    path = written(tmp_path / "a.safetensors", kohya(components, ldm, [LINEAR]), ss_v_parameterization="True")
    read_adapter(path, epsilon)
    assert "predicts velocity, this model predicts epsilon" in caplog.text


def test_regular_expressions_of_a_file_are_not_run(components: Components, tmp_path: Path):
    configuration = json.dumps({"unet.r": 4, "unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 2}})
    tensors = {f"unet.{LINEAR}.lora_A.weight": random(4, 32), f"unet.{LINEAR}.lora_B.weight": random(32, 4)}
    path = written(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=configuration)
    with pytest.raises(UserError, match="holds the regular expression"):
        read_adapter(path, components)


@pytest.mark.parametrize("configuration", ["not JSON", "[]", '{"unet.r": "four", "unet.lora_alpha": "x"}'])
def test_a_broken_configuration(components: Components, tmp_path: Path, configuration: str):
    tensors = {f"unet.{LINEAR}.lora_A.weight": random(4, 32), f"unet.{LINEAR}.lora_B.weight": random(32, 4)}
    path = written(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=configuration)
    with pytest.raises(UserError, match="adapter"):
        read_adapter(path, components)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_x.lora_down.weight", ("lora_unet_x", "down")),
        ("unet.x.to_q_lora.up.weight", ("unet.x.to_q", "up")),
        ("unet.x.lora_magnitude_vector.default.weight", ("unet.x", "magnitude")),
        ("base_model.model.x.hada_w1_a", ("base_model.model.x", "hada_w1_a")),
        ("lora_unet_x.oft_blocks", ("lora_unet_x.oft_blocks", "")),
    ],
)
def test_a_key_is_a_module_and_a_factor(key: str, expected: tuple[str, str]):
    assert split_key(key) == expected
