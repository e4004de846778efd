"""Weights on disk: safetensors files and JSON next to them, checked before they are believed.

Nothing here imports a class that a file names, and no pickle is ever opened: the caller says which class it wants,
the folder only supplies shapes and numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from terminus.errors import UserError
from terminus.model import counts, hub, limits
from terminus.model.header import read_header
from terminus.model.naming import ASSETS as ASSETS
from terminus.model.naming import RULE, find_local, parse_hub_id
from terminus.model.naming import SHIPPED as SHIPPED
from terminus.model.naming import at_home as at_home
from terminus.model.naming import refuse_pickle as refuse_pickle
from terminus.model.writing import write_safetensors

BROKEN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError)
"""Exceptions that the classes of diffusers and transformers raise on configurations that make no sense."""
_CODE = ("auto_map", "custom_pipeline", "trust_remote_code")
"""Settings by which other loaders fetch and run Python that a model brings."""
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, *_FP8)

Module = TypeVar("Module", bound=nn.Module)


def resolve(model: str | Path) -> Path:
    """The folder or .safetensors file of a model: a path, the name of a shipped model, or a hub id (`hub`)."""
    path = find_local(model)
    if path is None:
        found = parse_hub_id(str(model))
        assert found is not None, "what is not here is a hub id"
        return hub.download(found)
    if path.is_dir() and path not in SHIPPED.values():
        try:
            _check_links(path)
        except OSError as error:
            raise UserError(f"This cannot be read ({error.strerror or error})", where=str(model), rule=RULE) from error
    return path


def model_name(folder: Path) -> str:
    """The name of a model's folder: of the run which keeps it in `model/`, or of the hub repository of a snapshot."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def _check_links(folder: Path) -> None:
    """A link in a model's folder may not lead out of it; the hub cache, which is made of links, is one whole."""
    root = folder.resolve()
    inside = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
            raise UserError(
                "This link leads out of the model's folder", where=str(path),
                rule="A model is read from its own folder alone", fix="Put a copy in place of the link",
            )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder, or one clear error."""
    try:
        if not path.is_file():
            raise UserError("This file is missing", where=str(path), rule="A diffusers model folder must have it")
        if path.stat().st_size > limits.JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, more than any model needs")
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except (ValueError, OSError) as error:
        raise UserError(f"This is not readable JSON ({error})", where=str(path)) from error


def parse_json(text: str, where: str) -> dict[str, Any]:
    """One JSON object of finite numbers without repeated keys, which names no code to run."""
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"This is not readable JSON ({error})", where=where) from error
    if not isinstance(content, dict):
        raise UserError("This JSON is not an object", where=where)
    result = cast(dict[str, Any], content)
    for key in _CODE:
        if result.get(key):
            raise UserError(
                f"It names code to run ({key}: {str(result[key])[:80]})", where=where,
                rule="No code, class or package that a model's files name is ever imported",
                fix=f"If the model is plain SDXL without that code, remove {key!r} from a copy",
            )  # fmt: skip
    return result


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that JSON knows")
    return number


def read_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of one component: of a single file or of shards, of a variant (`.fp16`) where only that is there."""
    files = weight_files(folder, stem)
    if not files:
        raise UserError(
            "No weights are here",
            where=str(folder),
            rule=f"{stem}.safetensors is expected; .bin and .ckpt files are pickles and are never opened",
            fix="Save the model with safetensors",
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_safetensors(file))
    return tensors


def read_config(network: str, folder: Path, stem: str, renamed: Callable[[str], str] = str) -> dict[str, Any]:
    """The `config.json` of a class of diffusers or transformers, within the limits, and that of the weights beside it.

    `renamed` gives the present name of each key. Without weights only the limits are checked.
    """
    config, where = read_json(folder / "config.json"), str(folder / "config.json")
    limits.check_limits(config, network, where)
    files = weight_files(folder, stem)
    if files:
        stored = (read_header(file).tensors for file in files)
        shapes = {renamed(name): info.shape for tensors in stored for name, info in tensors.items()}
        counts.check_counts(network, config, shapes, where)
    return config


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The file, or the shards, that hold one component; none if there is none."""
    try:
        for variant in hub.VARIANTS:
            whole, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
            if whole.is_file():
                return [whole]
            if index.is_file():
                return _shards(index)
    except OSError as error:
        raise UserError(f"This cannot be read ({error.strerror or error})", where=str(folder)) from error
    return []


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError("This index has no weight_map", where=str(index))
    names = sorted({str(name) for name in cast(dict[str, object], shards).values()})
    for name in names:
        # An index is data: it may name files of its own folder, never a path.
        if Path(name).name != name:
            raise UserError(f"This index names a path, {name!r:.200}", where=str(index))
    return [index.parent / name for name in names]


def read_safetensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Tensors of one file, or those of these names, on the CPU."""
    wanted = read_header(path).tensors.keys() if names is None else names
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise UserError(f"This is not a readable safetensors file ({error})", where=str(path)) from error


def assign(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Gives a module on the meta device its weights, of exactly its keys and shapes, as float32.

    Random numbers for weights that are replaced at once would cost half a minute at the size of SDXL, and memory for
    whatever a configuration claims.
    """
    check_fit(module, tensors, where)
    precise = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    module.load_state_dict(precise, assign=True)
    # Tables that no file holds are made here: on the meta device they have no numbers.
    for name, table in list(module.named_buffers()):
        if name.endswith("position_ids"):  # CLIP's only table, which it counts itself
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(table.shape[-1]).expand((1, -1)), persistent=False)
    if any(table.is_meta for table in module.buffers()):
        raise AssertionError(f"{type(module).__name__} has tables that its weights do not hold")


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError unless the tensors have exactly the module's keys and shapes, and finite numbers."""
    expected = module.state_dict()
    # One kind of problem at a time: the later ones follow from the earlier.
    problems = _misfits(expected, tensors) or _wrong_dtypes(expected, tensors)
    if not problems:
        problems = [f"{key} holds NaN or infinity" for key, value in tensors.items() if not _finite_numbers(value)]
    if problems:
        raise UserError(
            f"The weights do not fit their configuration: {'; '.join(problems[:5])}",
            where=where,
            rule="Keys, shapes and finite numbers are checked before a model is used",
        )


def _misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Keys that are missing or unknown, and the first few wrong shapes."""
    problems: list[str] = []
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    for word, keys in (("are missing", missing), ("are unknown", unknown)):
        if keys:
            problems.append(f"{len(keys)} keys {word}, the first is {keys[0]}")
    shapes = [
        f"{key} is {list(tensors[key].shape)}, the configuration says {list(expected[key].shape)}"
        for key in sorted(expected.keys() & tensors.keys())
        if tensors[key].shape != expected[key].shape
    ]
    return problems + shapes[:3]


def _wrong_dtypes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """The first few weights in a dtype that is no precision."""
    problems: list[str] = []
    for key, value in tensors.items():
        if expected[key].is_floating_point() and value.dtype not in _PRECISIONS:
            dtype = str(value.dtype).removeprefix("torch.")
            problems.append(f"{key} is {dtype}, which is a quantised format or no weight at all")
    return problems[:3]


def _finite_numbers(value: Tensor) -> bool:
    return bool(torch.isfinite(value.float() if value.dtype in _FP8 else value).all())


def load_module(
    cls: type[Module],
    folder: Path,
    stem: str = "diffusion_pytorch_model",
    ignored: Collection[str] = (),
    renamed: Callable[[str], str] = str,
) -> Module:
    """A diffusers network from `config.json` and safetensors, float32.

    `ignored` are keys that are no weights, `renamed` gives the present name of each key.
    """
    config = read_config(cls.__name__, folder, stem, renamed)
    with torch.device("meta"):  # for its own error, before gigabytes are read
        make_module(cls, config, str(folder / "config.json"))
    tensors = {renamed(key): value for key, value in read_tensors(folder, stem).items() if key not in ignored}
    return build_module(cls, config, tensors, str(folder))


def build_module(cls: type[Module], config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Module:
    """A diffusers network of this configuration with these weights, float32."""
    with torch.device("meta"):
        module = make_module(cls, config, where)
    assign(module, tensors, where)
    return module


def make_module(cls: type[Module], config: Mapping[str, Any], where: str) -> Module:
    """A diffusers network of this configuration, its weights random."""
    limits.check_limits(config, cls.__name__, where)
    # Keys with an underscore are diffusers' own notes, of class and version.
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return cast(Module, cast(Any, cls).from_config(settings))
    except BROKEN as error:
        raise misconfigured(cls.__name__, error, where) from error


def misconfigured(network: str, error: Exception, where: str) -> UserError:
    """The error to raise when a class does not take a configuration."""
    reason = " ".join(str(error).split())[:300]
    return UserError(f"This configuration does not describe a {network} ({reason})", where=where)


def save_module(module: nn.Module, folder: Path, dtype: torch.dtype, stem: str = "diffusion_pytorch_model") -> None:
    """Writes `config.json` and one safetensors file in `dtype`; refuses numbers that `dtype` cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / f"{stem}.safetensors", module.state_dict(), {"format": "pt"}, dtype)
    cast(Any, module).save_config(folder)
