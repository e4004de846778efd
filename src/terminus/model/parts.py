"""A checkpoint taken apart: tensors under diffusers' names, and the JSON that belongs to them. No network is built.

Everything that reads or writes whole checkpoints meets here: folders (this file), single files (`single_file`) and
`convert` between them. Numbers keep their precision and bits.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PretrainedConfig,
)

from terminus.errors import UserError
from terminus.model import counts
from terminus.model.detect import detect
from terminus.model.keys import modern_vae_name
from terminus.model.record import (
    EULER,
    Record,
    Schedule,
    load_record,
    parse_schedule,
    record_json,
    scheduler_class,
    scheduler_config,
    write_json,
)
from terminus.model.text_encoders import (
    Vocabulary,
    make_text_encoder,
    older_keys,
    read_vocabulary,
    save_tokenizer,
    text_encoder_config,
    text_encoder_keys,
)
from terminus.model.unet import UNet
from terminus.model.weights import (
    build_module,
    check_fit,
    make_module,
    model_name,
    read_config,
    read_json,
    read_tensors,
)
from terminus.model.writing import write_safetensors

TEXT_ENCODERS: dict[str, tuple[type[nn.Module], type[PretrainedConfig]]] = {
    "text_encoder": (CLIPTextModel, CLIPTextConfig),
    "text_encoder_2": (CLIPTextModelWithProjection, CLIPTextConfig),
    "vision": (CLIPVisionModelWithProjection, CLIPVisionConfig),
}
MODULES: dict[str, type[nn.Module]] = {"unet": UNet, "vae": AutoencoderKL}
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
"""Those of every checkpoint; `vision` is ours and optional."""
TOKENIZERS = ("tokenizer", "tokenizer_2")
MARKERS = ("v_pred", "ztsnr", "rectified_flow")
"""Tensors whose names say how a network was trained (`model.detect` reads them); of any content, mostly none."""
CLASSES = {
    "scheduler": ("diffusers", EULER),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


@dataclass(frozen=True)
class CheckpointParts:
    """All parts of one checkpoint. JSON stays as it was read, so that it can be written again as it was."""

    where: str
    title: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    configs: Mapping[str, Mapping[str, Any]]
    """`config.json` of each network in `tensors`."""
    vocabularies: Mapping[str, Vocabulary]
    record: Record
    index: Mapping[str, Any]
    """`model_index.json`."""
    scheduler: Mapping[str, Any]
    """`scheduler_config.json`; always of the record's schedule."""
    special_tokens: Mapping[str, Mapping[str, Any]]
    """`special_tokens_map.json` of the tokenizers that have one."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """Metadata of a single file's header, as it was."""
    described: bool = True
    """Whether the checkpoint brought its record (`terminus.json`)."""


def read_folder(folder: Path) -> CheckpointParts:
    """All of a diffusers SDXL folder."""
    index = read_index(folder)
    names = [*NETWORKS, *(["vision"] if (folder / "vision").is_dir() else [])]
    record = read_record(folder)
    special = {name: folder / name / "special_tokens_map.json" for name in TOKENIZERS}
    configs = {name: read_network_config(folder, name) for name in names}  # before gigabytes are read
    return CheckpointParts(
        where=str(folder),
        title=model_name(folder),
        tensors={name: _tensors(folder / name, name) for name in names},
        configs=configs,
        vocabularies={name: read_vocabulary(folder / name) for name in TOKENIZERS},
        record=record,
        index=portable_index(index, record.schedule),
        scheduler=true_scheduler(read_json(folder / "scheduler" / "scheduler_config.json"), record.schedule),
        special_tokens={name: read_json(path) for name, path in special.items() if path.is_file()},
        described=(folder / "terminus.json").is_file(),
    )


def read_network_config(folder: Path, network: str) -> dict[str, Any]:
    """The `config.json` of one network of a diffusers folder, checked against its weights."""
    renamed = modern_vae_name if network == "vae" else str
    return read_config(class_of(network), folder / network, stem(network), renamed)


def read_record(folder: Path, schedule: Schedule | None = None) -> Record:
    """The record of a folder, with this schedule, or else the one that all its evidence gives."""
    return replace(load_record(folder), schedule=schedule or detect(folder).schedule)


def true_scheduler(config: Mapping[str, Any], schedule: Schedule) -> Mapping[str, Any]:
    """`config` if it is of our sampler's class and describes `schedule`, else one that is and does."""
    try:
        same = (
            parse_schedule(dict(config), "") == schedule and config.get("_class_name") == scheduler_class(schedule)[1]
        )
    except UserError:
        same = False
    # Sampled from the wrong timestep on, a ZTSNR model keeps the brightness of nothing; Karras's sigmas and their
    # kin spend its steps above the largest sigma that has anything to see.
    samples_right = (config.get("timestep_spacing") == "trailing" and not ramps(config)) or not schedule.zero_terminal
    return config if same and samples_right else scheduler_config(schedule)


def ramps(config: Mapping[str, Any]) -> list[str]:
    """The settings of a scheduler's configuration that replace the timesteps of the schedule by a ramp of sigmas."""
    return [name for name in (f"use_{ramp}_sigmas" for ramp in ("karras", "exponential", "beta")) if config.get(name)]


def read_index(folder: Path) -> dict[str, Any]:
    """The checked `model_index.json` of a folder."""
    path = folder / "model_index.json"
    single = next(iter(sorted(folder.glob("*.safetensors"))), None)
    if single is not None and not path.is_file():
        raise UserError(
            "This folder has no model_index.json, so it is no diffusers model", where=str(folder),
            fix=f"If the model is the single file in it, name that: {single}",
        )  # fmt: skip
    index = read_json(path)
    check_index(index, str(path))
    return index


def check_index(index: Mapping[str, Any], where: str) -> None:
    """UserError for a pipeline of other classes than SDXL's."""
    pipeline = index.get("_class_name", "StableDiffusionXLPipeline")
    for name, pair in {**CLASSES, "the pipeline": ()}.items():
        stored = index.get(name)
        # Folders of older programs name the fast tokenizer, which was a class of its own.
        known = [list(pair), [pair[0], pair[1] + "Fast"]] if pair else []
        # Any scheduler may stand there: its numbers are read, its class is never used.
        if name == "the pipeline" and not isinstance(pipeline, str):
            stored = pipeline
        elif not pair or name == "scheduler" or stored in known:
            continue
        raise UserError(
            f"{name} is {stored!r:.200}, not {list(pair) or 'a class of diffusers'}",
            where=where,
            rule="Terminus loads the components of SDXL; no class that a file names is imported",
        )


def portable_index(index: Mapping[str, Any], schedule: Schedule) -> dict[str, Any]:
    """Without the components that are not carried along: the scheduler is written anew, and only ours are named."""
    pairs = [name for name, value in index.items() if isinstance(value, list) and name not in CLASSES]
    return {**index, **{name: [None, None] for name in pairs}, **_classes(schedule)}


def new_index(schedule: Schedule) -> dict[str, Any]:
    """The `model_index.json` of what we write."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.42.1"}
    # The unconditional input is the encoded empty caption, as in training; diffusers would use zeros.
    index |= {"force_zeros_for_empty_prompt": False, "add_watermarker": None}
    index |= {"image_encoder": [None, None], "feature_extractor": [None, None]}
    return index | _classes(schedule)


def _classes(schedule: Schedule) -> dict[str, list[str]]:
    return {name: list(pair) for name, pair in (CLASSES | {"scheduler": scheduler_class(schedule)}).items()}


def stem(network: str) -> str:
    """Name without ending of the file that diffusers or transformers keeps a network's weights in."""
    return "diffusion_pytorch_model" if network in MODULES else "model"


def check_networks(parts: CheckpointParts) -> None:
    """UserError unless every network has exactly the tensors that its configuration asks for, all finite."""
    for name, config in parts.configs.items():
        _check_network(name, config, parts.tensors[name], f"{parts.where} ({name})")


def make_network(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """One network, checked before memory is taken for it, float32 and in evaluation mode."""
    where = f"{where} ({name})"
    _check_network(name, config, tensors, where)
    if name in TEXT_ENCODERS:
        return make_text_encoder(*TEXT_ENCODERS[name], config, tensors, where)
    return build_module(MODULES[name], config, tensors, where).eval().requires_grad_(False)


def _check_network(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> None:
    counts.check_counts(class_of(name), config, {key: value.shape for key, value in tensors.items()}, where)
    # Without numbers: names and shapes are compared before memory is taken.
    with torch.device("meta"):
        if name in TEXT_ENCODERS:
            text_encoder = make_text_encoder(*TEXT_ENCODERS[name], config, None, where)
            check_fit(text_encoder, text_encoder_keys(text_encoder, tensors), where)
        else:
            check_fit(make_module(MODULES[name], config, where), tensors, where)


def class_of(network: str) -> str:
    """The name of the class of diffusers or transformers that a network of a checkpoint is."""
    return (TEXT_ENCODERS[network][0] if network in TEXT_ENCODERS else MODULES[network]).__name__


def write_folder(
    parts: CheckpointParts, folder: Path, shard_size: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes a diffusers folder in `dtype`, or as it is.

    Networks larger than `shard_size` ("5GB") are written in several files, with an index.
    """
    folder.mkdir(parents=True)

    # The networks, each in a folder of its own with its configuration.
    for name, tensors in parts.tensors.items():
        (folder / name).mkdir()
        config = parts.configs[name]
        write_json(
            folder / name / "config.json", text_encoder_config(config) if name in TEXT_ENCODERS else dict(config)
        )
        try:
            _write_shards(dict(tensors), folder / name, stem(name), shard_size, dtype)
        except OverflowError as error:
            raise OverflowError(f"{name}: {error}") from error

    # The tokenizers, as transformers writes them now and as older programs read them.
    for name, vocabulary in parts.vocabularies.items():
        save_tokenizer(vocabulary.tokenizer(), folder / name)
        if vocabulary.settings:
            write_json(folder / name / "tokenizer_config.json", vocabulary.settings)
        if name in parts.special_tokens:
            write_json(folder / name / "special_tokens_map.json", dict(parts.special_tokens[name]))

    # The schedule, what the folder is, and the record of training.
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", dict(parts.scheduler))
    write_json(folder / "model_index.json", dict(parts.index))
    if parts.described:
        write_json(folder / "terminus.json", record_json(parts.record))


def _write_shards(
    tensors: dict[str, Tensor], folder: Path, name: str, shard_size: str | None, dtype: torch.dtype | None
) -> None:
    metadata = {"format": "pt"}
    if shard_size is None:
        write_safetensors(folder / f"{name}.safetensors", tensors, metadata, dtype)
        return
    # In order of their names: a file and a folder of one model hold its tensors in different orders.
    sizes: dict[str, Tensor] = {}
    for key, value in sorted(tensors.items()):
        written_as = dtype if dtype is not None and value.is_floating_point() else value.dtype
        sizes[key] = torch.empty(value.shape, dtype=written_as, device="meta")
    try:
        plan = split_torch_state_dict_into_shards(
            sizes, filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=shard_size
        )
    except ValueError as error:
        raise UserError(f"{shard_size!r} is not a size", rule='Sizes are written as "5GB" or "500MB"') from error
    for file, keys in plan.filename_to_tensors.items():
        write_safetensors(folder / file, {key: tensors[key] for key in keys}, metadata, dtype)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / f"{name}.safetensors.index.json", index)


def _tensors(folder: Path, network: str) -> dict[str, Tensor]:
    stored = read_tensors(folder, stem(network))
    if network in ("text_encoder", "text_encoder_2"):
        return older_keys(stored)
    if network == "vae":
        return {modern_vae_name(key): value for key, value in stored.items()}
    return without_markers(stored)


def without_markers(stored: Mapping[str, Tensor], ignored: Collection[str] = MARKERS) -> dict[str, Tensor]:
    """SimpleTuner writes the markers into a diffusers UNet, too."""
    return {key: value for key, value in stored.items() if key not in ignored}


def parse_object(value: object, what: str, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{what} is not a JSON object: {json.dumps(value, default=str)[:80]}", where=where)
    return cast(dict[str, Any], value)
