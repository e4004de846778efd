"""Weights on disk: safetensors files and JSON next to them, checked before they are believed.

Nothing here imports a class that a file names, and no pickle is ever opened: the caller says which class it wants,
the folder only supplies shapes and numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from terminus.errors import UserError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED = {"nano": ASSETS / "nano"}

_MODEL_FILES = ["*.json", "*/*.json", "*/*.safetensors", "*/merges.txt", "*.md"]

Module = TypeVar("Module", bound=nn.Module)


def resolve(model: str | Path) -> Path:
    """The folder of a model given as a path, the name of a shipped model, or a hub id "owner/name"."""
    name = str(model)
    if name in SHIPPED:
        return SHIPPED[name]
    folder = Path(name).expanduser()
    if folder.is_dir() and (folder / "model" / "model_index.json").is_file():
        raise UserError(
            "This is the folder of a run, not of a model", where=name, fix=f"Did you mean {folder / 'model'}?"
        )
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(
            "This is a file, not a model folder",
            where=name,
            rule="A model is a diffusers folder (with model_index.json), a hub id, or a shipped name (nano)",
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name)
    raise UserError(
        "No model is here",
        where=name,
        rule="A model is a diffusers folder (with model_index.json), a hub id, or a shipped name (nano)",
        fix="Check the path, or write `nano` for the model that comes with Terminus",
    )


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=_MODEL_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise UserError(
            "Neither a folder of this name nor a model on the hub could be reached",
            where=name,
            rule="Hub models need a network, or a copy in the local hub cache",
            fix=f"Check the name or the connection ({type(error).__name__})",
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder, or one clear error."""
    if not path.is_file():
        raise UserError("This file is missing", where=str(path), rule="A diffusers model folder must have it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"This is not readable JSON ({error})", where=str(path)) from error
    if not isinstance(content, dict):
        raise UserError("This JSON is not an object", where=str(path))
    return cast(dict[str, Any], content)


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of one component: a single file, its fp16 variant, or the shards an index names."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return read_safetensors(folder / name)
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError("This index has no weight_map", where=str(index))
        tensors: dict[str, Tensor] = {}
        for shard in sorted({str(name) for name in cast(dict[str, object], shards).values()}):
            # An index is data: it may name files of its own folder, never a path.
            if Path(shard).name != shard:
                raise UserError(f"This index names a path, {shard!r}", where=str(index))
            tensors.update(read_safetensors(folder / shard))
        return tensors
    raise UserError(
        "No weights are here",
        where=str(folder),
        rule=f"{stem}.safetensors is expected; .bin and .ckpt files are pickles and are never opened",
        fix="Save the model with safetensors",
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, on the CPU."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"This is not a readable safetensors file ({error})", where=str(path)) from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copies tensors into a module of exactly these keys and shapes; numbers must be finite."""
    expected = module.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{key} is {list(tensors[key].shape)}, the configuration says {list(expected[key].shape)}"
        for key in sorted(expected.keys() & tensors.keys())
        if tensors[key].shape != expected[key].shape
    ]
    problems = [f"{len(keys)} keys {word}, the first is {keys[0]}" for word, keys in
                (("are missing", missing), ("are unknown", unknown)) if keys] + shapes[:3]  # fmt: skip
    if not problems:
        problems = [f"{key} holds NaN or infinity" for key, value in tensors.items() if not torch.isfinite(value).all()]
    if problems:
        raise UserError(
            f"The weights do not fit their configuration: {'; '.join(problems)}",
            where=where,
            rule="Keys, shapes and finite numbers are checked before a model is used",
        )
    module.load_state_dict(dict(tensors))


def load_module(cls: type[Module], folder: Path, stem: str = "diffusion_pytorch_model") -> Module:
    """A diffusers network from `config.json` and safetensors, float32."""
    config = {key: value for key, value in read_json(folder / "config.json").items() if not key.startswith("_")}
    try:
        module = cast(Module, cast(Any, cls).from_config(config))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"This configuration does not describe a {cls.__name__} ({error})",
            where=str(folder / "config.json"),
        ) from error
    fill(module, read_tensors(folder, stem), str(folder))
    return module


def save_module(module: nn.Module, folder: Path, dtype: torch.dtype, stem: str = "diffusion_pytorch_model") -> None:
    """Writes `config.json` and one safetensors file in `dtype`; refuses numbers that `dtype` cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: in_precision(name, value, dtype) for name, value in module.state_dict().items()}
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    cast(Any, module).save_config(folder)


def in_precision(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous CPU copy in `dtype` (integers stay what they are)."""
    if not value.is_floating_point():
        return value.detach().cpu().contiguous()
    result = value.detach().to("cpu", dtype).contiguous()
    if not torch.isfinite(result).all():
        raise OverflowError(f"{name} does not fit {dtype}: largest magnitude {value.abs().max().item():.3g}")
    return result
