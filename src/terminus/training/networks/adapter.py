"""Adapters in training: peft's layers inside the networks, which stay what they are.

Only the adapter's parameters have gradients, so optimizer, average and checkpoints hold nothing else. For the end
of a run the change is worked into the weights for a while, and the networks have their own names and layers again.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from terminus import runtime
from terminus.config.base import Config
from terminus.errors import UserError
from terminus.model.adapter_files import Algorithm, Trained, write_adapter
from terminus.model.adapter_keys import Part, Target, networks
from terminus.model.components import Components

_NAME = "default"
"""peft's name of the one adapter there is, part of the name of each of its parameters."""
_ATTENTION = re.compile(r"\.(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$")
_FEED_FORWARD = re.compile(r"\.(ff\.net\.0\.proj|ff\.net\.2|mlp\.fc[12])$")
_SLOTS = {"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude"}
_OURS = re.compile(r"\.(lora_|hada_|lokr_)[^.]+\." + _NAME + r"(\.weight)?$")


class AdapterConfig(Config):
    """A small change that is trained in place of the whole network."""

    algorithm: Algorithm = "lora"
    """LoRA 2106.09685, DoRA 2402.09353, LoHa 2108.06098 or LoKr 2309.14859."""
    rank: int = Field(default=16, ge=1)
    """Rank of the change; parameters grow in proportion (LoKr's less)."""
    alpha: float | None = Field(default=None, gt=0)
    """The change is multiplied by alpha / rank; null: the rank."""
    targets: Literal["attention", "attention_and_feed_forward", "all"] = "attention"
    """Layers that change; `all` are every linear layer and convolution of the UNet. In text encoders never more than
    attention and feed-forward."""


@dataclass(frozen=True)
class TrainedAdapter:
    """The adapter inside the networks of a model."""

    settings: AdapterConfig
    components: Components
    parts: tuple[Part, ...]

    def freeze(self) -> None:
        """Leaves gradients to the adapter's own parameters."""
        for network in self._networks.values():
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(is_adapter_parameter(name))

    @contextmanager
    def merged(self) -> Generator[None]:
        """Within the context the networks are plain: the change is in their weights, the layers have their own names.

        It is worked in in float32, whatever format a weight was in, and each weight stays on its device. Afterwards
        everything is as before, bit for bit. Costs a copy on the CPU of every weight that is changed.
        """
        undo: list[tuple[nn.Module, str, Any, Tensor]] = []
        try:
            with torch.no_grad():
                for network in self._networks.values():
                    # A list, for layers are taken out of the tree while it is walked.
                    for path, layer in list(_layers(network)):
                        base = cast(nn.Module, layer.get_base_layer())
                        weight = cast(Tensor, base.weight)
                        parent_path, _, name = path.rpartition(".")
                        parent = network.get_submodule(parent_path)
                        home = weight.device
                        factor = next(p for key, p in layer.named_parameters() if is_adapter_parameter(key))
                        # The weight as it was: what peft subtracts again would not be the same bits.
                        undo.append((parent, name, layer, weight.detach().to("cpu", copy=True)))
                        # Worked in where the factors are, in float32; a weight that is not trained may be bfloat16.
                        weight.data = weight.data.to(factor.device, torch.float32)
                        layer.merge()
                        weight.data = weight.data.to(home)
                        setattr(parent, name, base)
            yield
        finally:
            for parent, name, layer, original in undo:
                weight = cast(Tensor, layer.get_base_layer().weight)
                weight.data = original.to(weight.device)
                # peft is told as well that nothing is merged any more.
                layer.merged_adapters.clear()
                setattr(parent, name, layer)

    def trained(self) -> Trained:
        """The factors as they are now, copied to the CPU."""
        alpha = _alpha(self.settings)
        found: dict[Target, Mapping[str, Tensor]] = {}
        configs: dict[Part, Mapping[str, Any]] = {}
        for part, network in self._networks.items():
            for path, layer in _layers(network):
                found[Target(part, path)] = _factors(layer)
            configs[part] = _plain(cast(Any, network).peft_config[_NAME].to_dict())
        return Trained(self.settings.algorithm, self.settings.rank, alpha, found, configs)

    def write(self, components: Components, folder: Path, name: str) -> None:
        """Writes the files for other programs; `components` carries the record that they tell of."""
        write_adapter(self.trained(), components, folder, _file_name(name))

    @property
    def _networks(self) -> dict[Part, nn.Module]:
        return {part: network for part, network in networks(self.components).items() if part in self.parts}


def attach_adapter(components: Components, settings: AdapterConfig, text: bool, seed: int) -> TrainedAdapter:
    """Puts a new adapter, which changes nothing yet, into the UNet, and into both text encoders if `text`.

    Its random numbers follow from the seed alone, if the networks are on the CPU.
    """
    parts: tuple[Part, ...] = ("unet", "text_encoder_1", "text_encoder_2") if text else ("unet",)
    found = networks(components)
    torch.manual_seed(runtime.key(seed, 0, "adapter"))
    for part in parts:
        inject(found[part], part, settings)
    return TrainedAdapter(settings, components, parts)


def inject(network: nn.Module, part: Part, settings: AdapterConfig) -> None:
    """Puts a new adapter into one network; its random numbers are torch's. Gradients are left to the adapter alone."""
    peft = _peft()
    names = sorted(_targets(network, part, settings))
    peft.inject_adapter_in_model(_config(peft, settings, names), network, _NAME)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_adapter_parameter(name))


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return _OURS.search(f".{name}") is not None


def _targets(network: nn.Module, part: Part, settings: AdapterConfig) -> Iterator[str]:
    # The context is the state before the last layer of text encoder 1: a change there would never have a gradient.
    unread = f"encoder.layers.{len(cast(Any, network).encoder.layers) - 1}." if part == "text_encoder_1" else None
    for name, module in network.named_modules():
        is_read = unread is None or unread not in name
        if isinstance(module, nn.Linear | nn.Conv2d) and is_read and _is_target(name, part, settings):
            yield name


def _is_target(name: str, part: Part, settings: AdapterConfig) -> bool:
    if settings.targets == "all" and part == "unet":
        return True
    if settings.targets != "attention" and _FEED_FORWARD.search(name):
        return True
    return _ATTENTION.search(name) is not None


def _config(peft: Any, settings: AdapterConfig, names: list[str]) -> Any:
    rank, alpha = settings.rank, _alpha(settings)
    if settings.algorithm in ("lora", "dora"):
        return peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, use_dora=settings.algorithm == "dora")
    build = peft.LoHaConfig if settings.algorithm == "loha" else peft.LoKrConfig
    return build(r=rank, alpha=alpha, target_modules=names)


def _alpha(settings: AdapterConfig) -> float:
    return float(settings.rank) if settings.alpha is None else settings.alpha


def _layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's layers by the path of the layer that each has taken in."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module


def _factors(layer: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in layer.named_parameters():
        slot = name.partition(".")[0]
        if is_adapter_parameter(name):
            found[_SLOTS.get(slot, slot)] = parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
    return found


def _plain(value: Any) -> Any:
    """peft's settings as JSON that does not depend on the order of a set."""
    if isinstance(value, dict):
        items = cast(dict[Any, Any], value).items()
        return {str(key): _plain(one) for key, one in sorted(items, key=lambda item: str(item[0]))}
    if isinstance(value, set | frozenset):
        return sorted(cast(set[str], value))
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast(list[Any], value)]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "adapter"


def _peft() -> Any:
    """Imported where it is needed: it takes seconds, and most runs train no adapter."""
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "Adapters are trained with peft, which is not installed",
            where="model.adapter",
            fix="pip install peft, or set model.adapter: null to train the whole network",
        ) from error
    return peft
