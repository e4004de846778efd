"""Which networks a recipe will bring to the device, read from configurations and headers; no weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from terminus.errors import UserError
from terminus.model.architecture import ARCHITECTURES, SDXL
from terminus.model.foreign import infer_configs
from terminus.model.header import Header, read_header
from terminus.model.single_file import OURS
from terminus.model.unet import build_unet
from terminus.model.weights import SHIPPED, at_home, parse_json, read_json
from terminus.training.counting import config_of
from terminus.training.objectives import Diffusion
from terminus.training.recipe import Recipe

SDXL_TEXT, SDXL_CODEC = 123_060_480 + 694_659_840, 83_653_863
"""Parameters of SDXL's text towers and codec, for a model that is not on this machine yet."""
_UNET_OF_FILE = "model.diffusion_model."


@dataclass(frozen=True)
class Networks:
    """What training has on the device beside its own state."""

    unet: str
    """The UNet's `config.json`."""
    tokens: int
    """Positions of the text."""
    factor: int
    """Pixels per latent."""
    frozen: int
    """Parameters that are used and not trained."""
    trained_text: int
    """Parameters of text towers that are trained with the UNet."""
    assumed: bool
    """The model is not on this machine, and SDXL's shapes stand in for it."""


def networks_of(recipe: Recipe) -> Networks:
    """Of a recipe with the objective `diffusion`; UserError for another, whose networks are small."""
    objective, model = recipe.objective, recipe.model
    if not isinstance(objective, Diffusion):
        raise UserError(
            f"A plan is made for the objective diffusion, and this is {objective.kind}",
            where="objective.kind",
            rule="The codec and the text towers are small beside the UNet",
        )
    return _networks(model.start, model.architecture, model.codec, model.text, objective.train_text == "both")


@lru_cache(maxsize=16)
def _networks(start: str | None, architecture: str, codec: str | None, text: str | None, trained: bool) -> Networks:
    if start is None:
        shapes = ARCHITECTURES[architecture]
        with torch.device("meta"):
            config = config_of(build_unet(shapes))
        towers, codecs = _folder(text), _folder(codec)
        in_text = _parameters(towers, ("text_encoder", "text_encoder_2")) if towers else SDXL_TEXT
        in_codec = _parameters(codecs, ("vae",)) if codecs else SDXL_CODEC
        return _made(config, shapes.positions, shapes.codec.factor, in_text, in_codec, trained, towers is None)
    folder = _folder(start)
    if folder is None:
        with torch.device("meta"):
            config = config_of(build_unet(SDXL))
        return _made(config, SDXL.positions, SDXL.codec.factor, SDXL_TEXT, SDXL_CODEC, trained, True)
    if folder.is_file():
        return _of_file(folder, trained)
    config = json.dumps(read_json(folder / "unet" / "config.json"), sort_keys=True)
    tokens = int(read_json(folder / "text_encoder" / "config.json").get("max_position_embeddings", SDXL.positions))
    factor = 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    in_text = _parameters(folder, ("text_encoder", "text_encoder_2"))
    others = _parameters(folder, ("vae", "vision"))
    return _made(config, tokens, factor, in_text, others, trained, False)


def _of_file(path: Path, trained: bool) -> Networks:
    header = read_header(path)
    ours = header.metadata.get(OURS)
    configs: dict[str, Any] = parse_json(ours, str(path))["configs"] if ours else infer_configs(header)
    towers = sum(info.count for name, info in header.tensors.items() if name.startswith("conditioner."))
    unet = sum(info.count for name, info in header.tensors.items() if name.startswith(_UNET_OF_FILE))
    others = _count(header) - towers - unet
    tokens = int(configs["text_encoder"].get("max_position_embeddings", SDXL.positions))
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return _made(json.dumps(configs["unet"], sort_keys=True), tokens, factor, towers, others, trained, False)


def _made(
    config: str, tokens: int, factor: int, in_text: int, others: int, trained: bool, assumed: bool
) -> Networks:  # fmt: skip
    frozen = others + (0 if trained else in_text)
    return Networks(config, tokens, factor, frozen, in_text if trained else 0, assumed)


def _folder(name: str | None) -> Path | None:
    """The folder or file of this name; None if it is not on this machine, in which case nothing is fetched."""
    if name is None:
        return None
    path = SHIPPED.get(name) or at_home(name)
    return path if path.exists() else None


def _parameters(folder: Path, networks: Iterable[str]) -> int:
    files = (file for network in networks for file in sorted((folder / network).glob("*.safetensors")))
    # a folder may hold the same weights in two precisions, of which diffusers names one `.fp16`
    return sum(_count(read_header(file)) for file in files if ".fp16." not in file.name)


def _count(header: Header) -> int:
    return sum(info.count for info in header.tensors.values())
