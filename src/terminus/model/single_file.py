"""One .safetensors file in the layout that ComfyUI, A1111 and their kin share: SDXL's LDM keys.

That layout has no place for configurations, tokenizers, the record of training or a vision encoder. Ours go into the
file's metadata under `terminus`, and the vision encoder under a prefix of its own, so that a folder comes back as it
was. Files of others bring none of it: `model.foreign` infers it from their shapes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terminus.errors import UserError
from terminus.model import counts, foreign, kinds, limits, modelspec
from terminus.model.detect import detect
from terminus.model.header import Header, read_header
from terminus.model.keys import KeyMap, clip_map, open_clip_map, unet_map, vae_map
from terminus.model.parts import (
    NETWORKS,
    TOKENIZERS,
    CheckpointParts,
    check_index,
    class_of,
    make_network,
    new_index,
    parse_object,
    true_scheduler,
)
from terminus.model.record import Record, Schedule, parse_record, record_json, scheduler_class, scheduler_config
from terminus.model.text_encoders import Vocabulary, make_vocabulary
from terminus.model.vocabulary import END, START, clip_merges, clip_vocabulary
from terminus.model.weights import parse_json, read_safetensors
from terminus.model.writing import in_precision, write_safetensors

log = logging.getLogger("terminus")

OURS = "terminus"
"""Metadata key of what the LDM layout has no place for."""
VISION_PREFIX = "terminus_vision."
_FORMAT = 1
_BUFFERS = (
    "v_pred", "ztsnr", "rectified_flow", "alphas_cumprod", "betas", "logvar", "denoiser.", "sqrt_", "log_one_minus",
    "posterior_",
    "conditioner.embedders.0.logit_scale", "conditioner.embedders.0.transformer.logit_scale",
)  # fmt: skip
"""Beginnings of keys that are tables, marks or constants, not weights."""


def write_single_file(parts: CheckpointParts, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes one file in `dtype`, or as it is (see `model.writing` for what is promised of its bytes)."""
    _check_configs(parts.configs, parts.where)

    # The networks under LDM names, and the vision encoder under a prefix of ours.
    tensors: dict[str, Tensor] = {}
    for name, layout in _layouts(parts.configs).items():
        own = parts.tensors[name]
        if layout.fused and dtype is not None:  # what becomes one matrix may have had several precisions
            own = {key: in_precision(layout.prefix + key, value, dtype) for key, value in own.items()}
        tensors |= layout.to_ldm(own, parts.where)
    tensors |= {VISION_PREFIX + name: value for name, value in parts.tensors.get("vision", {}).items()}

    # What the networks are, in all the places where other programs look, and in our own metadata.
    markers = modelspec.marker_tensors(parts.record.schedule)
    metadata = modelspec.modelspec_metadata(parts) | {OURS: json.dumps(_our_metadata(parts), sort_keys=True)}
    write_safetensors(path, tensors | markers, metadata, dtype, exact=markers)


def read_single_file(
    path: Path, networks: Iterable[str] | None = None, ema: bool = False, schedule: Schedule | None = None
) -> CheckpointParts:
    """All of a checkpoint, or some of its networks.

    `ema` asks for the UNet's moving average where there is one, `schedule` stands for what `model.detect` says.
    """
    # The header tells everything but the numbers: the schedule, and the configurations, ours or inferred.
    header = read_header(path)
    kinds.refuse_scaled(header)
    schedule = schedule or detect(header).schedule
    parts = _described(header, schedule)

    # Find each network's tensors under their LDM names.
    layouts = _layouts(parts.configs)
    sources = {name: _names(header, layout, ema and name == "unet") for name, layout in layouts.items()}
    _tell_of_the_rest(header, sources.values())

    # Compare the configurations with the shapes in the header, before gigabytes are read.
    wanted = set(parts.configs if networks is None else networks)
    configs = {name: config for name, config in parts.configs.items() if name in wanted}
    for name, config in configs.items():
        counts.check_counts(class_of(name), config, _shapes(header, layouts, sources, name), f"{parts.where} ({name})")

    # Read the tensors network by network, and give them diffusers' names.
    tensors: dict[str, Mapping[str, Tensor]] = {}
    for name, layout in layouts.items():
        if name in configs:
            tensors[name] = _read_network(path, layout, sources[name], parts.where)
    if "vision" in configs:
        tensors["vision"] = _read_vision(header)
    return replace(parts, tensors=tensors, configs=configs)


def _read_network(path: Path, layout: KeyMap, names: Mapping[str, str], where: str) -> dict[str, Tensor]:
    stored = read_safetensors(path, names)
    return layout.from_ldm({ldm: stored[key] for key, ldm in names.items()}, where)


def _read_vision(header: Header) -> dict[str, Tensor]:
    stored = read_safetensors(header.path, [name for name in header.tensors if name.startswith(VISION_PREFIX)])
    return {name.removeprefix(VISION_PREFIX): value for name, value in stored.items()}


def read_configs(header: Header) -> Mapping[str, Mapping[str, Any]]:
    """The `config.json` of each network of a file, checked against its tensors, none of which is read."""
    parts = _described(header, Schedule())
    layouts = _layouts(parts.configs)
    sources = {name: _names(header, layout, False) for name, layout in layouts.items()}
    for name, config in parts.configs.items():
        counts.check_counts(class_of(name), config, _shapes(header, layouts, sources, name), f"{parts.where} ({name})")
    return parts.configs


def _shapes(
    header: Header, layouts: Mapping[str, KeyMap], sources: Mapping[str, Mapping[str, str]], network: str
) -> dict[str, tuple[int, ...]]:
    """Shapes of one network's tensors under diffusers' names, from the header."""
    if network not in layouts:
        return {name.removeprefix(VISION_PREFIX): info.shape for name, info in header.tensors.items()
                if name.startswith(VISION_PREFIX)}  # fmt: skip
    try:
        # The mapping that renames tensors also gives their shapes; without storage it costs nothing.
        stored = {ldm: torch.empty(header.tensors[name].shape, device="meta") for name, ldm in sources[network].items()}
    except RuntimeError as error:
        raise UserError(f"The shapes of the {network} are impossible", where=str(header.path)) from error
    found = layouts[network].from_ldm(stored, str(header.path))
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


def read_networks(
    path: Path, networks: Iterable[str] | None = None, ema: bool = False, schedule: Schedule | None = None
) -> tuple[dict[str, nn.Module], CheckpointParts]:
    """Some networks of a file, checked, float32 and in evaluation mode, and the rest of what the file says."""
    parts = read_single_file(path, networks, ema, schedule)
    built = {
        name: make_network(name, config, parts.tensors[name], parts.where) for name, config in parts.configs.items()
    }
    return built, parts


def _layouts(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, KeyMap]:
    """The key map of each network, from its configuration, which is within the limits."""
    layers = configs["text_encoder_2"].get("num_hidden_layers", 12)
    return {
        "unet": unet_map(*_levels(configs["unet"])),
        "vae": vae_map(*_levels(configs["vae"])),
        "text_encoder": clip_map(),
        "text_encoder_2": open_clip_map(layers),
    }


def _levels(config: Mapping[str, Any]) -> tuple[int, int]:
    return len(config["block_out_channels"]), config.get("layers_per_block", 2)


def _check_configs(configs: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """UserError for what is beyond the limits, or what single files have no names for."""
    for name, config in configs.items():
        limits.check_limits(config, class_of(name), f"{where} ({name})")
        if name in ("unet", "vae") and not isinstance(config.get("block_out_channels"), list | tuple):
            raise UserError("block_out_channels is no list", where=f"{where} ({name})", rule="It has one entry a level")
        if name in ("unet", "vae") and not isinstance(config.get("layers_per_block", 2), int):
            raise UserError(
                f"layers_per_block is {limits.show_value(config['layers_per_block'])}",
                where=f"{where} ({name})",
                rule="In single files all levels have equally many layers",
                fix="Keep this model as a folder",
            )


def _names(header: Header, layout: KeyMap, ema: bool) -> dict[str, str]:
    """Stored name -> LDM name of one network's tensors."""
    own = (name for name in header.tensors if name.startswith(layout.prefix))
    plain = {name: name for name in own if not layout.unused.search(name)}
    # The UNet's averages, if they are asked for or if there is nothing else.
    if layout.component != unet_map().component or not (ema or not plain):
        return plain
    averages = foreign.ema_names(header)
    if not averages:
        raise UserError("This file holds no moving average (EMA) of the UNet", where=str(header.path))
    log.info("%s: the UNet is read from its moving average (EMA)", header.path.name)
    return averages


def _tell_of_the_rest(header: Header, used: Iterable[Mapping[str, str]]) -> None:
    """Logs what is left in the file: a moving average, and tensors that nothing here knows."""
    known: set[str] = set()
    for names in used:
        known |= names.keys()
    averages: list[str] = []
    others: list[str] = []
    for name in sorted(header.tensors.keys() - known):
        if name.startswith(kinds.EMA_PREFIX):
            averages.append(name)
        elif not name.startswith((*_BUFFERS, VISION_PREFIX)):
            others.append(name)
    if averages:
        log.info("%s: %d tensors of a moving average (EMA) are not used", header.path.name, len(averages))
    if others:
        log.warning("%s: Ignored %d tensors that belong to no SDXL network, the first is %s",
                    header.path.name, len(others), ascii(others[0])[:120])  # fmt: skip


def _our_metadata(parts: CheckpointParts) -> dict[str, Any]:
    tokenizers: dict[str, dict[str, Any]] = {}
    for name, vocabulary in parts.vocabularies.items():
        tokenizers[name] = {"settings": vocabulary.settings}
        if name in parts.special_tokens:
            tokenizers[name]["special_tokens"] = parts.special_tokens[name]
        # CLIP's own vocabulary comes with us and is not stored.
        if vocabulary.ids != clip_vocabulary() or vocabulary.merges != clip_merges():
            entries = sorted(vocabulary.ids, key=lambda entry: vocabulary.ids[entry])
            tokenizers[name] |= {"vocabulary": entries, "merges": [" ".join(pair) for pair in vocabulary.merges]}
    return {
        "format": _FORMAT,
        "configs": parts.configs,
        "index": parts.index,
        "scheduler": parts.scheduler,
        "record": record_json(parts.record) if parts.described else None,
        "tokenizers": tokenizers,
    }


def _described(header: Header, schedule: Schedule) -> CheckpointParts:
    """Everything but the tensors: from our own metadata, or inferred."""
    return _ours(header, schedule) if OURS in header.metadata else _foreign(header, schedule)


def _ours(header: Header, schedule: Schedule) -> CheckpointParts:
    """Everything but the tensors of a file that Terminus wrote; UserError for metadata that are not ours."""
    where = f"{header.path} (metadata {OURS})"
    stored = parse_json(header.metadata[OURS], where)
    if stored.get("format") != _FORMAT:
        raise UserError(
            f"Its format is {stored.get('format')!r:.40}, known is {_FORMAT}", where=where,
            fix="Update Terminus, if a newer one wrote it",
        )  # fmt: skip
    # The configurations, the record and what the folder said of itself.
    configs = _our_configs(stored.get("configs"), where)
    described = stored.get("record") is not None
    record = Record(schedule=schedule)
    if described:
        record = parse_record(parse_object(stored["record"], "record", where), schedule, where)
    index = parse_object(stored.get("index", new_index(schedule)), "index", where)
    check_index(index, where)
    index = index | {"scheduler": list(scheduler_class(schedule))}  # a relabelled file's index may name another
    # Tokenizers, and their special tokens where the folder had some.
    tokenizers = parse_object(stored.get("tokenizers"), "tokenizers", where)
    kept = {name: parse_object(tokenizers.get(name), name, where) for name in TOKENIZERS}
    special: dict[str, dict[str, Any]] = {}
    for name, entry in kept.items():
        if "special_tokens" in entry:
            special[name] = parse_object(entry["special_tokens"], "special_tokens", where)
    return CheckpointParts(
        where=str(header.path),
        title=header.metadata.get("modelspec.title") or header.path.stem,
        tensors={},
        configs=configs,
        vocabularies={name: _vocabulary(entry, where) for name, entry in kept.items()},
        record=record,
        index=index,
        scheduler=true_scheduler(parse_object(stored.get("scheduler", {}), "scheduler", where), schedule),
        special_tokens=special,
        metadata=header.metadata,
        described=described,
    )


def _our_configs(stored: object, where: str) -> dict[str, dict[str, Any]]:
    configs = parse_object(stored, "configs", where)
    if not set(NETWORKS) <= configs.keys() <= {*NETWORKS, "vision"}:
        raise UserError(f"It has configurations of {', '.join(sorted(configs))[:200]}", where=where)
    checked = {name: parse_object(config, name, where) for name, config in configs.items()}
    _check_configs(checked, where)
    return checked


def _vocabulary(entry: dict[str, Any], where: str) -> Vocabulary:
    settings = parse_object(entry.get("settings"), "settings", where)
    if "vocabulary" not in entry:
        return Vocabulary(settings, clip_vocabulary(), clip_merges())
    try:
        ids = {entry: number for number, entry in enumerate(entry["vocabulary"])}
        return make_vocabulary(settings, ids, entry.get("merges"))
    except (ValueError, TypeError) as error:
        raise UserError(f"This tokenizer is not readable ({error})", where=where) from error


def _foreign(header: Header, schedule: Schedule) -> CheckpointParts:
    """Everything but the tensors of a file that others wrote: SDXL's, with CLIP's vocabulary of 77 tokens."""
    pads = {"tokenizer": END, "tokenizer_2": "!"}
    marks = {"bos_token": START, "eos_token": END, "unk_token": END}
    settings = marks | {"backend": "tokenizers", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    licence = header.metadata.get("modelspec.license")
    return CheckpointParts(
        where=str(header.path),
        title=header.metadata.get("modelspec.title") or header.path.stem,
        tensors={},
        configs=foreign.infer_configs(header),
        vocabularies={
            name: Vocabulary(settings | {"pad_token": pad}, clip_vocabulary(), clip_merges())
            for name, pad in pads.items()
        },
        record=Record(schedule=schedule, licence=licence),
        index=new_index(schedule),
        scheduler=scheduler_config(schedule),
        special_tokens={},
        metadata=header.metadata,
        described=licence is not None,
    )
