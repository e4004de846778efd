"""A model's facts, from a diffusers folder or from a single file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from terminus.errors import UserError
from terminus.inspection.findings import Checkpoint, Hashes, NetworkFinding
from terminus.inspection.tensors import about_tensors, clipped, hashes, other_keys, part
from terminus.model.detect import Detection, read_evidence, weigh
from terminus.model.header import Header, TensorInfo, read_header
from terminus.model.keys import UNET_PREFIX
from terminus.model.kinds import CONTEXTS, EMA_PREFIX, has_only_ema
from terminus.model.record import Record, load_record, parse_record
from terminus.model.weights import parse_json, read_json, weight_files

UNET_IN_FILE, UNET_IN_FOLDER = "model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight"
_PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
    "cond_stage_model.": "text_encoder",
    "model_ema.": "unet_ema",
    "terminus_vision.": "vision",
}
_LABELS = ("v_pred", "ztsnr", "rectified_flow", "alphas_cumprod")
"""Tensors that say what the networks are: evidence, and part of none."""
_NEEDED = ("unet", "vae", "text_encoder", "text_encoder_2")
_NETWORKS = (*_NEEDED, "vision", "image_encoder", "unet_ema", "safety_checker")
_WITH_SIZES = {(320, 2048): "SDXL", (384, 1280): "SDXL refiner"}
"""Families whose UNet reads image sizes, by its first channels and the width of its context."""
_TASKS = {4: "text to image", 5: "depth to image, or an upscaler's", 8: "edits by instruction", 9: "inpainting"}


def file_finding(header: Header, console: Console) -> Checkpoint:
    """The facts of one file that holds a UNet in the layout of Stability's files."""
    # Which network each tensor belongs to, by the beginning of its name.
    groups: dict[str, list[TensorInfo]] = {}
    for name, info in header.tensors.items():
        if name.startswith(_LABELS):
            continue
        owner = next((owner for prefix, owner in _PREFIXES.items() if name.startswith(prefix)), "other")
        groups.setdefault(owner, []).append(info)
    components = {name: part(tensors) for name, tensors in sorted(groups.items())}
    # What it is, by all evidence, and what Terminus has recorded if it wrote the file.
    detection = weigh(*read_evidence(header))
    record = _record(header, detection)
    found = hashes([header], console)
    return _finding(
        "single file", header.path, unet_in_file(header), detection, record, components, found, header.metadata
    )


def unet_in_file(header: Header) -> dict[str, TensorInfo]:
    """The UNet's tensors under LDM names; of one that is a moving average alone, those that tell its architecture."""
    if not has_only_ema(header):
        return {name.removeprefix(UNET_PREFIX): info for name, info in header.tensors.items()}
    # Names of averages have lost their dots.
    dotted = {"input_blocks00weight": "input_blocks.0.0.weight", "label_emb00weight": "label_emb.0.0.weight"}
    own = {name.removeprefix(f"{EMA_PREFIX}diffusion_model"): info for name, info in header.tensors.items()}
    found = {dotted[name]: info for name, info in own.items() if name in dotted}
    context = next((info for name, info in own.items() if name.endswith("attn2to_kweight")), None)
    return found if context is None else found | {"attn2.to_k.weight": context}


def folder_finding(folder: Path, console: Console) -> Checkpoint:
    """The facts of a folder with `model_index.json`."""
    # Headers of every network that is there; without the UNet it is no model.
    headers: dict[str, list[Header]] = {}
    for name in _NETWORKS:
        if (folder / name).is_dir() and (files := network_headers(folder / name)):
            headers[name] = files
    if "unet" not in headers:
        raise UserError("This model has no UNet in safetensors files", where=str(folder / "unet"))
    tensors = {name: _tensors(files) for name, files in headers.items()}
    components = {name: part(found.values()) for name, found in tensors.items()}
    detection = weigh(*read_evidence(folder))
    found = hashes(headers["unet"], console)
    metadata = headers["unet"][0].metadata
    return _finding(
        "model folder", folder, tensors["unet"], detection, load_record(folder), components, found, metadata
    )


def _tensors(headers: Iterable[Header]) -> dict[str, TensorInfo]:
    """The tensors of one network, whole or in shards."""
    found: dict[str, TensorInfo] = {}
    for header in headers:
        found |= header.tensors
    return found


def network_headers(folder: Path) -> list[Header]:
    """Headers of the files that loading the network would read, without other variants beside them."""
    paths = weight_files(folder, "diffusion_pytorch_model") or weight_files(folder, "model")
    return [read_header(path) for path in paths or sorted(folder.glob("*.safetensors"))]


def _finding(
    kind: str,
    path: Path,
    unet: Mapping[str, TensorInfo],
    detection: Detection,
    record: Record,
    components: Mapping[str, NetworkFinding],
    found: Hashes,
    metadata: Mapping[str, str],
) -> Checkpoint:
    stated, averaged = about_tensors(metadata), "unet_ema" in components
    # A UNet that is there as its moving average alone is there.
    present = components.keys() | ({"unet"} if averaged else set[str]())
    return Checkpoint(
        kind="single file" if kind == "single file" else "model folder",
        path=str(path),
        architecture=architecture(unet),
        task=_task(unet),
        prediction=detection.schedule.prediction,
        zero_terminal=detection.schedule.zero_terminal,
        spacing=_spacing(path, metadata),
        evidence=detection.evidence,
        conflicts=_conflicts(detection, found),
        native_pixels=record.native_pixels,
        components=components,
        missing=tuple(name for name in _NEEDED if name not in present),
        ema=averaged and "unet" in components,
        hashes=found,
        licence=record.licence or stated.get("license"),
        parents=tuple(clipped(parent, 300) for parent in record.parents),
        merges=record.merges,
        weighting=record.weighting,
        images_seen=record.images_seen or None,
        caption_dropout=record.caption_dropout,
        about=stated,
        other_metadata=other_keys(metadata),
    )


def _conflicts(detection: Detection, found: Hashes) -> tuple[str, ...]:
    conflicts = list(detection.conflicts)
    if detection.schedule.prediction == "epsilon" and detection.schedule.zero_terminal:
        conflicts.append("epsilon prediction at zero terminal SNR: no such model exists, one label is wrong")
    if found.stated == "wrong":
        conflicts.append("modelspec.hash_sha256 is not the hash of these tensors")
    return tuple(conflicts)


def _record(header: Header, detection: Detection) -> Record:
    # Without a readable record the schedule is all that is known.
    stored = header.metadata.get("terminus")
    if stored is None:
        return Record(schedule=detection.schedule)
    try:
        described = parse_json(stored, str(header.path)).get("record")
        content = cast(dict[str, Any], described) if isinstance(described, dict) else {}
        return parse_record(content, detection.schedule, str(header.path))
    except UserError:
        return Record(schedule=detection.schedule)  # the evidence says that it is not readable


def _spacing(path: Path, metadata: Mapping[str, str]) -> str | None:
    # Where the scheduler's configuration lies: a file of the folder, or in the metadata of the file.
    try:
        if path.is_dir():
            config: object = read_json(path / "scheduler" / "scheduler_config.json")
        else:
            config = parse_json(metadata.get("terminus", "{}"), str(path)).get("scheduler")
    except UserError:
        return None
    spacing = config.get("timestep_spacing") if isinstance(config, dict) else None
    return clipped(spacing, 60) if isinstance(spacing, str) else None


def architecture(unet: Mapping[str, TensorInfo]) -> str:
    """The model family, by the shapes of the UNet under either naming."""
    # Three marks: channels of the first layer, width of the context, and whether it takes image sizes.
    first = _shape(unet, ("input_blocks.0.0.weight", UNET_IN_FOLDER))
    context = next((info.shape for name, info in unet.items() if name.endswith("attn2.to_k.weight")), ())
    sizes = any(name.startswith(("label_emb.", "add_embedding.")) for name in unet)
    if len(first) != 4 or len(context) != 2:
        return "not a UNet of Stable Diffusion"
    channels, width = first[0], context[1]
    found = f"{channels} channels, context of {width}"
    # It takes no sizes: the width of its context says which other family it is.
    if not sizes:
        known = CONTEXTS.get(width) if channels == 320 else None
        return known or f"not SDXL's: it takes no image sizes ({found})"
    return _WITH_SIZES.get((channels, width)) or f"SDXL's classes in other sizes ({found})"


def input_channels(unet: Mapping[str, TensorInfo]) -> int:
    """Channels that the UNet's first convolution reads; 0 where there is none."""
    first = _shape(unet, ("input_blocks.0.0.weight", UNET_IN_FOLDER))
    return first[1] if len(first) == 4 else 0


def _task(unet: Mapping[str, TensorInfo]) -> str:
    channels = input_channels(unet)
    return f"{_TASKS.get(channels, 'unknown')} ({channels} input channels)"


def _shape(tensors: Mapping[str, TensorInfo], names: Iterable[str]) -> tuple[int, ...]:
    return next((tensors[name].shape for name in names if name in tensors), ())
