"""A model without numbers: its networks' layers and names, for adapters to be looked up in, at no cost in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from terminus.model.adapter_files import FOLDERS
from terminus.model.adapter_keys import Target, networks, weighted_modules
from terminus.model.components import Components, text_encoders_of
from terminus.model.parts import MODULES, TEXT_ENCODERS, CheckpointParts
from terminus.model.text_encoders import make_text_encoder, older_key
from terminus.model.unet import UNet
from terminus.model.vae import VAE
from terminus.model.weights import make_module


def blank_components(parts: CheckpointParts) -> Components:
    """The networks of a checkpoint on the meta device, with its record."""
    found: dict[str, nn.Module] = {}
    for name, config in parts.configs.items():
        where = f"{parts.where} ({name})"
        with torch.device("meta"):
            if name in TEXT_ENCODERS:
                found[name] = make_text_encoder(*TEXT_ENCODERS[name], config, None, where)
            else:
                found[name] = make_module(MODULES[name], config, where)
    return Components(
        cast(UNet, found["unet"]), VAE(cast(AutoencoderKL, found["vae"])), text_encoders_of(found, parts), parts.record
    )


def targets_of(components: Components) -> Iterator[tuple[Target, nn.Module]]:
    """Every module with a weight of UNet and text encoders."""
    for part, network in networks(components).items():
        for name in weighted_modules(network):
            yield Target(part, name), network.get_submodule(name)


def tensor_name(target: Target, which: str) -> tuple[str, str]:
    """The network and the name in it that a checkpoint has a module's `weight` or `bias` under."""
    name = f"{target.module}.{which}"
    return FOLDERS[target.part], name if target.part == "unet" else older_key(name)


def stored_tensor(parts: CheckpointParts, target: Target, which: str) -> Tensor | None:
    """A module's weight or bias in a checkpoint; None where it has none."""
    network, name = tensor_name(target, which)
    return parts.tensors[network].get(name)
