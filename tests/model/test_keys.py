"""Both layouts name the same numbers: every key of SDXL and of nano there and back, and as diffusers reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from diffusers.loaders import single_file_utils as reference
from torch import Tensor, nn

from terminus.errors import UserError
from terminus.model.architecture import NANO, SDXL, Architecture
from terminus.model.keys import (
    KeyMap,
    clip_map,
    ldm_unet_name,
    modern_vae_name,
    open_clip_map,
    unet_map,
    vae_map,
)
from terminus.model.text import build_text_encoders
from terminus.model.text_encoders import older_keys
from terminus.model.unet import build_unet
from terminus.model.vae import build_vae
from terminus.model.vocabulary import clip_tokenizers

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def shapes(architecture: Architecture) -> dict[str, dict[str, Tensor]]:
    """Every key of each network, as old files have it, with a small tensor of distinct numbers and as many axes."""
    with torch.device("meta"):
        text_encoders = build_text_encoders(architecture, clip_tokenizers())
        modules: dict[str, nn.Module] = {"unet": build_unet(architecture), "vae": build_vae(architecture).autoencoder}
    stored: dict[str, Mapping[str, Tensor]] = {name: module.state_dict() for name, module in modules.items()}
    stored |= {"text_encoder": older_keys(text_encoders.text_encoder_1.state_dict())}
    stored |= {"text_encoder_2": older_keys(text_encoders.text_encoder_2.state_dict())}
    count = 0
    result: dict[str, dict[str, Tensor]] = {}
    for name, tensors in stored.items():
        result[name] = {}
        for key, value in tensors.items():
            shape = [min(side, 2) for side in value.shape]
            result[name][key] = torch.arange(count, count + torch.Size(shape).numel(), dtype=torch.float64).view(shape)
            count += result[name][key].numel()
    return result


@pytest.fixture(scope="module")
def sdxl() -> dict[str, dict[str, Tensor]]:
    return shapes(SDXL)


def maps(architecture: Architecture) -> dict[str, KeyMap]:
    unet, vae = architecture.unet, architecture.vae
    return {
        "unet": unet_map(len(unet.channels), unet.layers_per_level),
        "vae": vae_map(len(vae.channels), vae.layers_per_level),
        "text_encoder": clip_map(),
        "text_encoder_2": open_clip_map(architecture.text_encoder_2.layers),
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("architecture", [SDXL, NANO], ids=["sdxl", "nano"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_key_there_and_back(architecture: Architecture, network: str, sdxl: dict[str, dict[str, Tensor]]):
    tensors = (sdxl if architecture is SDXL else shapes(architecture))[network]
    layout = maps(architecture)[network]
    there = layout.to_ldm(tensors)
    assert all(key.startswith(layout.prefix) for key in there)
    assert sum(value.numel() for value in there.values()) == sum(value.numel() for value in tensors.values())
    assert same(layout.from_ldm(there), tensors)


def test_the_numbers_of_keys_are_those_of_sdxl(sdxl: dict[str, dict[str, Tensor]]):
    """The published file has 2515 keys, two of them constants (position ids, logit scale) that no network here has."""
    counts = {name: len(layout.to_ldm(sdxl[name])) for name, layout in maps(SDXL).items()}
    assert counts == {"unet": 1680, "vae": 248, "text_encoder": 196, "text_encoder_2": 389}
    assert sum(counts.values()) == 2515 - 2


def test_diffusers_reads_our_unet_and_vae(sdxl: dict[str, dict[str, Tensor]]):
    config = {"layers_per_block": 2, "addition_embed_type": "text_time", "class_embed_type": None}
    read = reference.convert_ldm_unet_checkpoint(unet_map().to_ldm(sdxl["unet"]), config)
    assert same(read, sdxl["unet"])
    read = reference.convert_ldm_vae_checkpoint(
        vae_map().to_ldm(sdxl["vae"]), {"down_block_types": range(4), "up_block_types": range(4)}
    )
    assert same(read, sdxl["vae"])


def test_diffusers_reads_our_first_text_encoder(sdxl: dict[str, dict[str, Tensor]]):
    read = reference.convert_ldm_clip_checkpoint(clip_map().to_ldm(sdxl["text_encoder"]))
    assert same(older_keys(read), sdxl["text_encoder"])


def test_diffusers_reads_our_second_text_encoder(sdxl: dict[str, dict[str, Tensor]]):
    """The projection is transposed: with numbers that are not symmetric, a missing transposition shows."""
    there = open_clip_map().to_ldm(sdxl["text_encoder_2"])
    projection = there["conditioner.embedders.1.model.text_projection"]
    assert torch.equal(projection, sdxl["text_encoder_2"]["text_projection.weight"].T)
    assert not torch.equal(projection, projection.T)
    with torch.device("meta"):
        text_encoder = build_text_encoders(SDXL, clip_tokenizers()).text_encoder_2
    read = reference.convert_open_clip_checkpoint(text_encoder, there, prefix="conditioner.embedders.1.model.")
    assert same(older_keys(read), sdxl["text_encoder_2"])


def test_query_key_and_value_stand_in_this_order():
    names = [f"text_model.encoder.layers.0.self_attn.{part}_proj.bias" for part in "qkv"]
    there = open_clip_map(1).to_ldm({name: torch.tensor([float(n)]) for n, name in enumerate(names)})
    assert {key.split("resblocks.")[1]: value.tolist() for key, value in there.items()} == {
        "0.attn.in_proj_bias": [0.0, 1.0, 2.0]
    }


def test_the_decoder_counts_its_levels_from_the_other_end():
    assert vae_map(4, 2).ldm_name("decoder.up_blocks.0.resnets.2.conv1.weight") == "decoder.up.3.block.2.conv1.weight"
    assert vae_map(3, 1).ldm_name("decoder.up_blocks.0.upsamplers.0.conv.bias") == "decoder.up.2.upsample.conv.bias"


@pytest.mark.parametrize("channels", [(4, 4, 1, 1), (4, 4)])
def test_attention_of_the_vae_is_read_as_convolutions_and_as_matrices(channels: tuple[int, ...]):
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    assert vae_map().from_ldm({name: torch.zeros(channels)})["encoder.mid_block.attentions.0.to_q.weight"].shape == (
        4,
        4,
    )


@pytest.mark.parametrize(
    ("here", "there", "layers"),
    [
        ("conv_in", "input_blocks.0.0", 2),
        ("time_embedding.linear_2.weight", "time_embed.2.weight", 2),
        ("add_embedding.linear_1", "label_emb.0.0", 2),
        ("down_blocks.1.attentions.1.transformer_blocks.1.attn2.to_out.0", None, 2),
        ("down_blocks.2.resnets.0.conv_shortcut.bias", "input_blocks.7.0.skip_connection.bias", 2),
        ("down_blocks.2.resnets.0.time_emb_proj", "input_blocks.5.0.emb_layers.1", 1),
        ("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op", 2),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3", 2),
        ("mid_block.attentions.0", "middle_block.1", 2),
        ("up_blocks.0.attentions.2.proj_in", "output_blocks.2.1.proj_in", 2),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv", 2),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.3.2.conv", 1),
        ("up_blocks.2.resnets.2", "output_blocks.8.0", 2),
        ("conv_norm_out.weight", "out.0.weight", 2),
    ],
)
def test_names_of_modules(here: str, there: str | None, layers: int):
    found = ldm_unet_name(here, layers)
    assert there in (None, found)
    assert unet_map(3, layers).diffusers_name(found) == here


@pytest.mark.parametrize(
    "name",
    [
        *("", "down_blocks", "down_blocks.0", "conv_in.lora", "time_embedding.linear_3.weight"),
        *(
            "down_blocks.0.attentions.0.proj_in",
            "up_blocks.2.attentions.0.proj_in",
            "down_blocks.2.downsamplers.0.conv",
        ),
        *("down_blocks.1.attentions.0.transformer_blocks.0.attn3.to_q", "down_blocks.1.resnets.2.conv1", "mid_block"),
        *("up_blocks.0.resnets.0.weight", "../../etc/passwd", "conv_in.weight\n"),
    ],
)
def test_other_names_are_no_names(name: str):
    with pytest.raises(KeyError):
        ldm_unet_name(name)


@pytest.mark.parametrize(
    "name", ["input_blocks.1.1.proj_in", "output_blocks.9.0.in_layers.0", "input_blocks.0.0.op", "x"]
)
def test_other_ldm_names_are_no_names(name: str):
    with pytest.raises(KeyError):
        unet_map().diffusers_name(name)


@pytest.mark.parametrize("layout", [unet_map(), vae_map(), clip_map(), open_clip_map()], ids=lambda m: m.component)
def test_what_is_left_over_is_an_error_that_lists_it(layout: KeyMap):
    tensor = torch.zeros(1)
    with pytest.raises(
        UserError, match=re.escape(f"1 keys of the {layout.component} have no name in the LDM layout: odd")
    ):
        layout.to_ldm({"odd.weight": tensor})
    with pytest.raises(UserError, match=rf"^a: 1 keys of the {layout.component} have no name in diffusers: .*odd"):
        layout.from_ldm({f"{layout.prefix}odd.weight": tensor, "others.odd": tensor}, "a")


def test_constants_of_old_files_are_no_left_overs():
    ids, scale = torch.arange(77)[None], torch.tensor(4.6)
    assert clip_map().from_ldm({f"{clip_map().prefix}text_model.embeddings.position_ids": ids}) == {}
    assert open_clip_map().from_ldm({f"{open_clip_map().prefix}logit_scale": scale}) == {}
    assert open_clip_map().to_ldm({"text_model.embeddings.position_ids": ids}) == {}


def test_one_matrix_is_not_made_of_several_precisions():
    names = [f"text_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    tensors = {name: torch.zeros(1, 1) for name in names}
    tensors[names[0]] = tensors[names[0]].half()
    with pytest.raises(UserError, match="several precisions"):
        open_clip_map(1).to_ldm(tensors)


VAE_NAMES = {
    "diffusers": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"},
    "early diffusers": {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
}


@pytest.mark.parametrize("program", VAE_NAMES)
def test_names_that_converters_left_in_single_files(program: str, sdxl: dict[str, dict[str, Tensor]]):
    right = vae_map().to_ldm(sdxl["vae"])
    stored = dict(right)
    for name in right:
        head, attention, tail = name.partition(".mid.attn_1.")
        module, _, parameter = tail.rpartition(".")
        if attention and module in VAE_NAMES[program]:
            stored[f"{head}{attention}{VAE_NAMES[program][module]}.{parameter}"] = stored.pop(name)
    assert len(stored.keys() - right.keys()) == 4 * len(VAE_NAMES[program])
    assert same(vae_map().from_ldm(stored), sdxl["vae"])


def test_a_first_text_encoder_that_has_lost_its_prefix(sdxl: dict[str, dict[str, Tensor]]):
    right = clip_map().to_ldm(sdxl["text_encoder"])
    stored = {name.replace(".transformer.text_model.", ".transformer."): value for name, value in right.items()}
    assert not stored.keys() & right.keys()
    assert same(clip_map().from_ldm(stored), sdxl["text_encoder"])
    twice = {f"{clip_map().prefix}{form}final_layer_norm.bias": torch.zeros(1) for form in ("", "text_model.")}
    name = "text_model.final_layer_norm.bias of the first text encoder is there under two names"
    with pytest.raises(UserError, match=re.escape(f"x.safetensors: {name}")):
        clip_map().from_ldm(twice, "x.safetensors")


def test_a_projection_that_is_a_linear_layer_is_transposed_already():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for name, expected in (("text_projection", weight.T), ("text_projection.weight", weight)):
        read = open_clip_map().from_ldm({f"{open_clip_map().prefix}{name}": weight})
        assert same(read, {"text_projection.weight": expected})
    assert open_clip_map().to_ldm(read).keys() == {f"{open_clip_map().prefix}text_projection"}


def test_early_names_of_the_vae():
    assert modern_vae_name("decoder.mid_block.attentions.0.proj_attn.weight").endswith("attentions.0.to_out.0.weight")
    assert modern_vae_name("encoder.mid_block.attentions.0.query.bias").endswith("attentions.0.to_q.bias")
    for name in ("encoder.mid_block.attentions.0.to_out.0.bias", "encoder.conv_in.weight"):
        assert modern_vae_name(name) == name
