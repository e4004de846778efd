"""Claims of an adapter file about itself, in its header and by its keys, against the model that it is put on.

Trainers write the answers into the header (kohya's `ss_` keys, ModelSpec's `modelspec.` keys), peft into a
configuration. None of them is needed to add the adapter; a wrong one is how a good adapter draws grey fog.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from terminus.errors import UserError
from terminus.model.adapter_deltas import AdapterScaling
from terminus.model.adapter_keys import Target, changes_unet, is_embedding, split_key, unread_kind
from terminus.model.components import Components
from terminus.model.detect import metadata_evidence as stored_claims
from terminus.model.detect import weigh
from terminus.model.record import Prediction
from terminus.model.weights import read_json

log = logging.getLogger("terminus")

_FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "the SDXL refiner", 2048: "SDXL"}
"""By the width of the text that the UNet reads."""
_NAMES = ("sdxl", "stablediffusionxl")
"""Beginnings of SDXL's names in headers, without case and punctuation."""
_DIFFUSERS_KEY = "lora_adapter_metadata"
_ADAPTED_BASES = ("pissa", "olora", "loftq", "corda")
"""peft's ways to begin that take a part out of the model's own weights, which an adapter alone cannot repeat."""
READ = "Read are LoRA, DoRA, LoHa, LoKr and differences, in the names of kohya, LyCORIS, diffusers, peft and ComfyUI"


@dataclass(frozen=True)
class Claim:
    """The training as the header describes it; None where it says nothing."""

    prediction: Prediction | None = None
    zero_terminal: bool | None = None


@dataclass(frozen=True)
class Configuration:
    """peft's settings of one file, by network ("unet", "text_encoder", ...; "" for all); empty without any."""

    parts: Mapping[str, Mapping[str, Any]]

    def scaling(self, name: str) -> AdapterScaling:
        """Alpha and rank of the module that the file calls `name`."""
        # peft puts a wrapper's name in front; in diffusers' header each network has settings of its own.
        bare = name.removeprefix("base_model.model.")
        part = next((part for part in self.parts if part and bare.startswith(f"{part}.")), "")
        bare = bare.removeprefix(f"{part}.") if part else bare
        values = self.parts.get(part)
        if not values:
            return AdapterScaling()
        alpha = values.get("lora_alpha", values.get("alpha"))
        return AdapterScaling(
            alpha=_number(_by_pattern(values, "alpha_pattern", bare, alpha)),
            rank=int(_number(_by_pattern(values, "rank_pattern", bare, values.get("r"))) or 0) or None,
            by_root=values.get("use_rslora") is True,
        )


def claim(metadata: Mapping[str, str]) -> tuple[Claim, tuple[str, ...]]:
    """By the rules for checkpoints: the first key that answers counts; a later one that disagrees is a conflict."""
    evidence = stored_claims(metadata)
    said = weigh(evidence)
    return Claim(
        said.schedule.prediction if any(one.prediction for one in evidence) else None,
        said.schedule.zero_terminal if any(one.zero_terminal is not None for one in evidence) else None,
    ), said.conflicts


def check_schedule(metadata: Mapping[str, str], components: Components, name: str) -> Claim:
    """Warns where the adapter was trained on another target or schedule than the model samples with."""
    (said, conflicts), model = claim(metadata), components.record.schedule
    for conflict in conflicts:
        log.warning("%s: %s", name, conflict)
    if said.prediction is None:
        log.info("%s does not say what its network predicted in training; taken as %s", name, model.prediction)
    elif said.prediction != model.prediction:
        log.warning(
            "%s was trained on a network that predicts %s, this model predicts %s: expect washed-out or noisy "
            "images; a low weight does less harm",
            *(name, said.prediction, model.prediction),
        )
    if said.zero_terminal is not None and said.zero_terminal != model.zero_terminal:
        words = {True: "with", False: "without"}
        log.warning(
            "%s was trained %s zero terminal SNR, this model samples %s it: brightness may drift towards the middle",
            *(name, words[said.zero_terminal], words[model.zero_terminal]),
        )
    return said


def check_kind(keys: Iterable[str], where: str) -> None:
    """UserError for a file of a kind that is known and not read: a part of an adapter is not that adapter."""
    listed = list(keys)
    unread = unread_kind(listed)
    if unread is not None:
        raise UserError(
            f"This is {unread[1]} ({unread[0]})",
            where=where,
            rule=READ,
            fix="Merge it into a model with the program that made it, and load that model",
        )
    if listed and all(is_embedding(key) for key in listed):
        raise UserError(
            f"This file holds the vectors of new words ({listed[0]}), a textual inversion", where=where, rule=READ
        )


def check_placed(layers: Iterable[Target], unplaced: Sequence[str], where: str) -> None:
    """UserError when all that is for a UNet fits nowhere: the text encoders of other families have the same names."""
    foreign = [key for key in unplaced if changes_unet(key)]
    if foreign and not any(target.part == "unet" for target in layers):
        raise _other_family(f"none of its {len(foreign)} keys for a UNet has a place here, such as {foreign[0]}", where)


def check_architecture(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], components: Components, where: str
) -> None:
    """UserError for an adapter of another family of networks, said by its header or by the width of its context."""
    # What the header says.
    said = metadata.get("ss_base_model_version", "")
    spec = metadata.get("modelspec.architecture", "")
    for value in (said, spec):
        if value and not re.sub("[^a-z0-9]", "", value.lower()).startswith(_NAMES):
            raise _other_family(f"its header says {value!r}", where)
    # What the layers say: the keys and values of cross-attentions read the text, so their width is the context's.
    ours = cast(int, components.unet.config["cross_attention_dim"])
    for key, tensor in tensors.items():
        stem, slot = split_key(key)
        reads_text = stem.replace(".", "_").endswith(("attn2_to_k", "attn2_to_v"))
        # Of these factors the second dimension is the input's.
        if reads_text and tensor.ndim >= 2 and (slot in ("down", "hada_w1_b", "diff")) and tensor.shape[1] != ours:
            width = tensor.shape[1]
            family = f", as {_FAMILIES[width]} does" if width in _FAMILIES else ""
            raise _other_family(f"its network reads a context of {width}{family}; this model's is {ours} wide", where)


def _other_family(why: str, where: str) -> UserError:
    return UserError(
        f"This adapter was made for another architecture: {why}",
        where=where,
        rule="An adapter fits the architecture that it was trained on",
        fix="Use one that was trained on this model, or on one of its architecture",
    )


def read_configuration(path: Path, metadata: Mapping[str, str]) -> Configuration:
    """diffusers writes peft's settings into the header, peft into `adapter_config.json` beside its file."""
    beside = path.with_name("adapter_config.json")
    if _DIFFUSERS_KEY in metadata:
        try:
            stored = json.loads(metadata[_DIFFUSERS_KEY])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{_DIFFUSERS_KEY} of its header is not JSON ({error})", where=str(path)) from error
    elif path.name == "adapter_model.safetensors" and beside.is_file():
        stored = read_json(beside)
    else:
        return Configuration({})
    if not isinstance(stored, dict):
        raise UserError("The configuration of this adapter is not an object", where=str(path))
    # "unet.r" is a setting of the UNet, "r" one of all networks.
    parts: dict[str, dict[str, Any]] = {}
    for key, value in cast(dict[str, Any], stored).items():
        part, _, setting = key.rpartition(".")
        parts.setdefault(part, {})[setting] = value
    # An adapter that began by changing the model's own weights is nothing without that change.
    for values in parts.values():
        begun = values.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(_ADAPTED_BASES):
            raise UserError(
                f"This adapter began as {begun!a:.60}, which changes the model's own weights too",
                where=str(path),
                rule="Without them the adapter is another one than was trained",
                fix="Save it as an ordinary LoRA: peft's save_pretrained with path_initial_model_for_weight_conversion",
            )
    return Configuration(parts)


def _by_pattern(values: Mapping[str, Any], key: str, name: str, default: object) -> object:
    """The first entry whose name is the module's or ends it. peft allows regular expressions; they are not run."""
    patterns = values.get(key)
    if not isinstance(patterns, dict):
        return default
    for pattern, value in cast(dict[str, object], patterns).items():
        plain = pattern.removeprefix("^").removesuffix("$")
        if name == plain or (name.endswith(f".{plain}") and not pattern.startswith("^")):
            return value
        if any(char in plain for char in "*+?()[]|\\"):
            raise UserError(
                f"{key} of this adapter holds the regular expression {pattern!r}", rule="Plain names are read"
            )
    return default


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"The configuration of this adapter says {value!r} where a number belongs")
    return float(value)
