"""Which networks a recipe will bring to the device, read from configurations and headers; no weights are loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch

from terminus.errors import UserError
from terminus.model.adapter_keys import Part
from terminus.model.architecture import ARCHITECTURES, SDXL
from terminus.model.foreign import sdxl_configs
from terminus.model.header import Header, TensorInfo, read_header
from terminus.model.parts import TEXT_ENCODERS, read_network_config
from terminus.model.single_file import read_configs
from terminus.model.text_encoders import make_text_encoder
from terminus.model.unet import build_unet
from terminus.model.weights import SHIPPED, at_home
from terminus.training.networks.adapter import AdapterConfig, inject
from terminus.training.objectives import Diffusion
from terminus.training.plan.cost import config_of
from terminus.training.recipe import Recipe

SDXL_TEXT, SDXL_VAE = 123_060_480 + 694_659_840, 83_653_863
"""Parameters of SDXL's text encoders and VAE, for a model that is not on this machine yet."""
SDXL_TEXT_BLOCKS = 84_934_656 + 629_145_600
"""Of the text encoders' parameters those that are multiplied within blocks."""
_IN_BLOCKS = re.compile(r"\.(layers|resblocks)\.\d+\.")
_UNET_OF_FILE = "model.diffusion_model."
_TEXT = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Networks:
    """Sizes of the networks on the device: the UNet, and those that are frozen."""

    unet: str
    """The UNet's `config.json`."""
    tokens: int
    """Positions of the text."""
    factor: int
    """Pixels per latent."""
    frozen: int
    """Parameters that are used and not trained."""
    trained_text: int
    """Parameters of text encoders that are trained with the UNet."""
    text_blocks: int
    """Parameters of text encoders that are stored in the format of the arithmetic where they are frozen."""
    text_encoders: tuple[str, str] | None
    """The text encoders' `config.json`; None where they are not read from `model.start`."""
    assumed: bool
    """The model is not on this machine, and SDXL's shapes stand in for it."""


def networks_of(recipe: Recipe) -> Networks:
    """The networks of a recipe with the objective `diffusion`; UserError for another, whose networks are small."""
    objective, model = recipe.objective, recipe.model
    if not isinstance(objective, Diffusion):
        raise UserError(
            f"--plan needs the objective diffusion, and this recipe has {objective.kind}",
            where="objective.kind",
            rule="The VAE and the text encoders are small beside the UNet",
        )
    return _networks(
        model.start, model.architecture, model.vae, model.text_encoders, objective.train_text_encoders == "both"
    )


def in_text_encoders(networks: Networks, adapter: AdapterConfig) -> int:
    """Parameters of this adapter in both text encoders; nothing is loaded."""
    configs = networks.text_encoders
    if configs is None:
        whole = sdxl_configs()
        configs = json.dumps(whole["text_encoder"]), json.dumps(whole["text_encoder_2"])
    return _in_text_encoders(configs, adapter.model_dump_json())


@lru_cache(maxsize=16)
def _in_text_encoders(configs: tuple[str, str], adapter: str) -> int:
    settings, parts = AdapterConfig.model_validate_json(adapter), ("text_encoder_1", "text_encoder_2")
    total = 0
    for name, part, config in zip(_TEXT, parts, configs, strict=True):
        with torch.device("meta"):
            text_encoder = make_text_encoder(
                *TEXT_ENCODERS[name], json.loads(config), None, "the text encoder to be counted"
            )
            inject(text_encoder, cast(Part, part), settings)
        total += sum(parameter.numel() for parameter in text_encoder.parameters() if parameter.requires_grad)
    return total


@dataclass(frozen=True)
class _TextEncoders:
    parameters: int
    blocks: int
    configs: tuple[str, str] | None = None


_SDXLS = _TextEncoders(SDXL_TEXT, SDXL_TEXT_BLOCKS)


@lru_cache(maxsize=16)
def _networks(start: str | None, architecture: str, vae: str | None, text: str | None, trained: bool) -> Networks:
    if start is None:
        # From random weights: a UNet of the architecture, the other networks from where the recipe has them.
        shapes = ARCHITECTURES[architecture]
        with torch.device("meta"):
            config = config_of(build_unet(shapes))
        text_encoders, autoencoder = _folder(text), _folder(vae)
        in_vae = _parameters(autoencoder, ("vae",)) if autoencoder else SDXL_VAE
        in_text = _text_encoders(text_encoders) if text_encoders else _SDXLS
        return _made(config, shapes.positions, shapes.vae.factor, in_text, in_vae, trained, text_encoders is None)
    folder = _folder(start)
    if folder is None:
        # A model that is not here yet: SDXL's shapes stand in for it.
        with torch.device("meta"):
            config = config_of(build_unet(SDXL))
        return _made(config, SDXL.positions, SDXL.vae.factor, _SDXLS, SDXL_VAE, trained, True)
    if folder.is_file():
        return _of_file(folder, trained)
    # A folder: shapes from its configurations, counts from its files' headers.
    config = json.dumps(read_network_config(folder, "unet"), sort_keys=True)
    tokens = int(read_network_config(folder, "text_encoder").get("max_position_embeddings", SDXL.positions))
    factor = 2 ** (len(read_network_config(folder, "vae").get("block_out_channels", SDXL.vae.channels)) - 1)
    return _made(config, tokens, factor, _text_encoders(folder), _parameters(folder, ("vae", "vision")), trained, False)


def _of_file(path: Path, trained: bool) -> Networks:
    header = read_header(path)
    configs = read_configs(header)
    first, second = (json.dumps(configs[name], sort_keys=True) for name in _TEXT)
    text_encoders = _text_encoders_of_file(header, (first, second))
    unet = sum(info.count for name, info in header.tensors.items() if name.startswith(_UNET_OF_FILE))
    # What is neither is the VAE.
    others = _count(header) - text_encoders.parameters - unet
    tokens = int(configs["text_encoder"].get("max_position_embeddings", SDXL.positions))
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return _made(json.dumps(configs["unet"], sort_keys=True), tokens, factor, text_encoders, others, trained, False)


def _made(
    config: str, tokens: int, factor: int, text: _TextEncoders, others: int, trained: bool, assumed: bool
) -> Networks:  # fmt: skip
    frozen = others + (0 if trained else text.parameters)
    in_text = text.parameters if trained else 0
    return Networks(config, tokens, factor, frozen, in_text, text.blocks, text.configs, assumed)


def _text_encoders(folder: Path) -> _TextEncoders:
    """The text encoders of a model folder, or of a single file."""
    if folder.is_file():
        return _text_encoders_of_file(read_header(folder), None)
    headers = [read_header(file) for file in _files(folder, _TEXT)]
    first, second = (json.dumps(read_network_config(folder, name), sort_keys=True) for name in _TEXT)
    return _TextEncoders(
        sum(map(_count, headers)), sum(_in_blocks(header.tensors) for header in headers), (first, second)
    )


def _text_encoders_of_file(header: Header, configs: tuple[str, str] | None) -> _TextEncoders:
    tensors = {name: info for name, info in header.tensors.items() if name.startswith("conditioner.")}
    return _TextEncoders(sum(info.count for info in tensors.values()), _in_blocks(tensors), configs)


def _in_blocks(tensors: Mapping[str, TensorInfo]) -> int:
    # Norms and biases of the same layers have one dimension.
    return sum(info.count for name, info in tensors.items() if _IN_BLOCKS.search(name) and len(info.shape) == 2)


def _folder(name: str | None) -> Path | None:
    """The folder or file of this name; None if it is not on this machine, in which case nothing is fetched."""
    if name is None:
        return None
    path = SHIPPED.get(name) or at_home(name)
    return path if path.exists() else None


def _parameters(folder: Path, networks: Iterable[str]) -> int:
    return sum(_count(read_header(file)) for file in _files(folder, networks))


def _files(folder: Path, networks: Iterable[str]) -> Iterator[Path]:
    # a folder may hold the same weights in two precisions, of which diffusers names one `.fp16`
    found = (file for network in networks for file in sorted((folder / network).glob("*.safetensors")))
    return (file for file in found if ".fp16." not in file.name)


def _count(header: Header) -> int:
    return sum(info.count for info in header.tensors.values())
