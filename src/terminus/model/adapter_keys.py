"""Which module of our networks a key of an adapter file means, and which of its factors the tensor is.

Trainers flatten module paths with underscores, under diffusers' or LDM's names, or keep the dots. Underscores are never
guessed back: every path of the loaded networks is flattened in both namings, and keys are looked up in that table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.keys import ldm_unet_name

Part = Literal["unet", "text_encoder_1", "text_encoder_2"]

_PREFIXES: dict[str, Part] = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder_1",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder_1",
    "lycoris_": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder_1",
    "text_encoders.clip_l.transformer.": "text_encoder_1",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "unet.": "unet",
}
_PEFT = "base_model.model."
_SLOTS = [
    (re.compile(pattern + "$"), slot)
    for pattern, slot in {
        r"[._](?:lora_down|lora\.down|lora_linear_layer\.down|lora_A)(?:\.\w+)?\.weight": "down",
        r"[._](?:lora_up|lora\.up|lora_linear_layer\.up|lora_B)(?:\.\w+)?\.weight": "up",
        r"\.(?:lora_up|lora_B)(?:\.\w+)?\.bias": "up_bias",
        r"\.lora_mid(?:\.\w+)?\.weight": "mid",
        r"(?:[._]lora|\.lora_linear_layer)?\.alpha": "alpha",
        r"\.lora_magnitude_vector(?:\.\w+){0,2}": "magnitude",
        r"\.(dora_scale|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?)(?:\.\w+){0,2}": "",
        r"\.(diff|diff_b|w_norm|b_norm|scalar)": "",
    }.items()
]
"""Ends of keys; an empty slot is named by the group. `lora.down` and `to_q_lora.down` are diffusers' older forms."""

_UNREAD = {
    "an OFT or BOFT adapter": r"\.(?:oft_blocks|oft_diag|oft_R|boft_[RS])(?:\.\w+)*$",
    "a GLoRA adapter": r"\.(?:[ab][12]|bm)\.weight$",
    "an IA³ adapter": r"\.(?:on_input|ia3_l(?:\.\w+)*)$",
    "a T-LoRA adapter": r"\.lambda_layer$",
    "a VeRA adapter": r"\.vera_lambda_[bd](?:\.\w+)*$",
    "a ControlNet-LLLite": r"^lllite_",
}
"""Kinds that change a network in ways that are not computed here, by one key that only they have."""
_EMBEDDING = re.compile(r"^(?:bundle_emb\..+|clip_[lg]|text_encoders_[01]|emb_params|string_to_param\..+)$")
"""Vectors of new words (textual inversion), which pivotal tuning puts into the same file."""

# diffusers' oldest files name the attention processor, whose layers are those of the attention module.
_OLD_LAYERS = {"_processor_to_": "_to_"}
_OLD_TEXT_ENCODER_LAYERS = {"_to_q": "_q_proj", "_to_k": "_k_proj", "_to_v": "_v_proj", "_to_out": "_out_proj"}


@dataclass(frozen=True)
class Target:
    """A module of one of the networks."""

    part: Part
    module: str

    def __str__(self) -> str:
        return f"{self.part}.{self.module}"


@dataclass(frozen=True)
class Placed:
    """A file sorted by module. What is in none of the networks is told, never dropped without a word."""

    layers: Mapping[Target, Mapping[str, Tensor]]
    names: Mapping[Target, str]
    """How the file names each module, for error messages and for patterns of peft's configuration."""
    unplaced: tuple[str, ...]


def networks(components: Components) -> dict[Part, nn.Module]:
    """A module that an adapter can change."""
    return {
        "unet": components.unet,
        "text_encoder_1": components.text_encoders.text_encoder_1,
        "text_encoder_2": components.text_encoders.text_encoder_2,
    }


def place(tensors: Mapping[str, Tensor], components: Components, where: str) -> Placed:
    """Sorts the tensors of an adapter by module and factor; UserError when two of them claim one place."""
    # All names that a module may have in a file, by network.
    tables = {part: _table(part, network, components) for part, network in networks(components).items()}
    layers: dict[Target, dict[str, Tensor]] = {}
    names: dict[Target, str] = {}
    unplaced: list[str] = []
    for key, value in tensors.items():
        # The key's module and factor; what has no place here is kept, to be told.
        stem, slot = split_key(key)
        part, name = _part(stem)
        module = _find(name, tables[part], part) if slot else None
        if module is None:
            unplaced.append(key)
            continue
        target = Target(part, module)
        if slot in layers.setdefault(target, {}):
            raise UserError(
                f"{key} and another key both give the {slot} of {target}", where=where, rule="One factor, one key"
            )
        layers[target][slot] = value
        names[target] = stem
    return Placed(layers, names, tuple(unplaced))


def split_key(key: str) -> tuple[str, str]:
    """A key as (module, factor); the factor is empty for a key of no known kind."""
    for pattern, slot in _SLOTS:
        found = pattern.search(key)
        if found:
            return key[: found.start()], slot or found.group(1)
    return key, ""


def unread_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """The first key of a kind that is known and not read, and the kind; None without any."""
    for key in keys:
        for kind, pattern in _UNREAD.items():
            if re.search(pattern, key):
                return key, kind
    return None


def is_embedding(key: str) -> bool:
    """Whether it holds vectors of new words, as textual inversion trains them."""
    return bool(_EMBEDDING.match(key))


def changes_unet(key: str) -> bool:
    """Whether it is a factor for the UNet, of this model or of another."""
    stem, slot = split_key(key)
    return bool(slot) and _part(stem)[0] == "unet"


def weighted_modules(network: nn.Module) -> Iterator[str]:
    """Paths of the modules that have a weight of their own."""
    for name, module in network.named_modules():
        if isinstance(getattr(module, "weight", None), Tensor):
            yield name


def _part(stem: str) -> tuple[Part, str]:
    part: Part = "unet"
    # peft's wrapper may stand before the network's name, or after it.
    rest = stem.removeprefix(_PEFT)
    for prefix, owner in _PREFIXES.items():
        if rest.startswith(prefix):
            part, rest = owner, rest.removeprefix(prefix)
            break
    return part, rest.removeprefix(_PEFT)


def _table(part: Part, network: nn.Module, components: Components) -> dict[str, str]:
    """{flattened name: module path}, in both namings."""
    names = list(weighted_modules(network))
    if part != "unet":
        # transformers has dropped `text_model.` from its paths, files have not.
        return _flattened((name.removeprefix("text_model."), name) for name in names)
    layers = cast(int, components.unet.config["layers_per_block"])
    # diffusers' names, and where there are some LDM's.
    pairs = [(name, name) for name in names]
    for name in names:
        try:
            pairs.append((ldm_unet_name(name, layers), name))
        except KeyError:
            continue  # a layer that SDXL does not have, such as those of an IP-Adapter
    return _flattened(pairs)


def _flattened(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    table: dict[str, str] = {}
    for name, module in pairs:
        if table.setdefault(_flat(name), module) != module:
            raise ValueError(f"{module} and {table[_flat(name)]} have one flattened name")
    return table


def _find(name: str, table: Mapping[str, str], part: Part) -> str | None:
    flat = _flat(name)
    if part != "unet":
        flat = flat.removeprefix("text_model_")
    # Words of older files, where the present ones find nothing.
    replacements = _OLD_LAYERS if part == "unet" else _OLD_TEXT_ENCODER_LAYERS
    for old, new in replacements.items():
        if flat not in table and old in flat:
            flat = flat.replace(old, new)
    # `to_out` is a list with one layer, which files may name without its number.
    return table.get(flat) or table.get(f"{flat}_0" if flat.endswith("_to_out") else flat)


def _flat(name: str) -> str:
    return name.replace(".", "_")
