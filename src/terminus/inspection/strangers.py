"""Errors for what cannot be inspected: named for what it is, with the command or the path that was meant.

People give `inspect` a recipe, a store, the folder above a run. Each answer is one paragraph; only the first bytes of a
file and the names in a folder are looked at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

from terminus.config.errors import Origin
from terminus.config.recipes import MAX_BYTES
from terminus.config.source import MappingTree, parse_yaml
from terminus.errors import UserError
from terminus.model.header import kind_of

RULE = (
    "A model folder, a .safetensors file, the folder of a run, a PNG, JPEG or WebP image, a hub id or `nano` "
    "can be inspected"
)
_RECIPE = {"run", "model", "data", "objective", "training", "extends"}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_MOST_NAMES = 10_000
"""Entries of a folder that are looked at."""
_SHOWN = 5
_FIXES = {
    "a GGUF file": "Use the safetensors file of the same model",
    "a Git LFS pointer, not the file that it stands for": "Fetch the file itself, as `git lfs pull` does",
    "an HTML page, perhaps a failed download": "Download the file again",
}
"""By what `model.header.kind_of` calls a file."""


class Stranger(NamedTuple):
    """A name for what cannot be inspected, and what to do instead."""

    what: str
    fix: str = ""


def refuse_file(path: Path) -> None:
    """UserError that names a file which is no safetensors file and no image that can be read; OSError as it comes."""
    with path.open("rb") as file:
        first = file.read(4096)
    found = _file(path, first)
    if found is not None:
        raise UserError(f"This is {found.what}", where=str(path), rule=RULE, fix=found.fix)


def refuse_folder(folder: Path) -> UserError:
    """The error for a folder that is no model, no run and no adapter."""
    found = _folder(folder)
    return UserError(f"This is {found.what}", where=str(folder), rule=RULE, fix=found.fix)


def _file(path: Path, first: bytes) -> Stranger | None:
    # By the first bytes: an ending may say anything.
    kind = kind_of(first)
    if kind == "a text file":
        return _text(path, first)
    if kind is None or kind == "a safetensors file":
        return None  # opening it says what is wrong with it
    if path.parent.suffix == ".lance" or path.suffix == ".lance":
        return Stranger("a part of a data store", _of_store(_store_above(path)))
    if "zip archive" in kind or kind == "a pickle":
        return Stranger(kind, "Convert a pickle to safetensors where nothing is in reach that matters")
    return Stranger(kind, _FIXES.get(kind, ""))


def _text(path: Path, first: bytes) -> Stranger:
    """By its content: endings are only names."""
    # A byte order mark and blank lines are no content.
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] in (b"{", b"["):
        return _json(path)
    # YAML: a recipe by its sections, else what it lies beside.
    keys = _yaml_keys(path)
    if keys & _RECIPE:
        return Stranger("a recipe", f"`terminus config show {path}` says what it sets")
    if (path.parent / "recipe.yaml").is_file():
        return Stranger("a text file in the folder of a run", f"Did you mean the run, {path.parent}?")
    if keys >= {"model"}:
        return Stranger("a configuration in YAML, perhaps the side-car of a model", _beside(path))
    return Stranger("a text file", _beside(path))


def _json(path: Path) -> Stranger:
    """By its place first, then by its keys."""
    folder = path.parent
    rows = path.suffix == ".jsonl"
    if (folder / "recipe.yaml").is_file():
        what = "the log of a run" if rows else "a JSON file in the folder of a run"
        return Stranger(what, f"Did you mean the run, {folder}?")
    if path.name == "model_index.json" or (folder / "model_index.json").is_file():
        return Stranger("a JSON file in the folder of a model", f"Did you mean the model, {folder}?")
    if (folder.parent / "model_index.json").is_file():
        return Stranger("the configuration of one part of a model", f"Did you mean the model, {folder.parent}?")
    if rows:
        return Stranger("a table of JSON rows", _beside(path))
    keys = _json_keys(path)
    if "weight_map" in keys:
        return Stranger("the index of a network in several files", f"Did you mean its folder, {folder}?")
    if keys & {"_class_name", "architectures", "model_type"}:
        return Stranger("the configuration of a network, without weights", f"Did you mean its folder, {folder}?")
    if {"nodes", "links"} <= keys:
        return Stranger("a workflow of ComfyUI", "Open it there; of its images `inspect` shows prompt and settings")
    return Stranger("a JSON file", _beside(path))


def _yaml_keys(path: Path) -> set[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            return set()
        tree = parse_yaml(path.read_text(encoding="utf-8-sig"), lambda row, column: Origin(f"{row}:{column}", "", 0))
    except (UserError, ValueError):
        return set()
    return set(tree.entries) if isinstance(tree, MappingTree) else set()


def _json_keys(path: Path) -> set[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            return set()
        content: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return set()
    return set(cast("dict[str, object]", content)) if isinstance(content, dict) else set()


def _beside(path: Path) -> str:
    """The weights that a text may belong to."""
    weights = path.with_suffix(".safetensors")
    return f"Did you mean {weights}?" if weights.is_file() else ""


def _folder(folder: Path) -> Stranger:
    names = _names(folder)
    if not names:
        return Stranger("an empty folder")
    # The most certain first: a store, a run, a model, then files of any kind.
    for look in (_of_data, _of_run, _of_model, _of_files):
        found = look(folder, names)
        if found is not None:
            return found
    inside = [folder / name for name in names if _is_something(folder / name)]
    if inside:
        return Stranger("neither a model nor a run, but holds some", f"Did you mean {_listed(inside)}?")
    return Stranger(f"a folder of {_counted(len(names), 'entry', 'entries')} and neither a model nor a run")


def _of_data(folder: Path, names: Sequence[str]) -> Stranger | None:
    if folder.suffix == ".lance" or "_versions" in names:
        return Stranger("one table of a data store", _of_store(folder.parent))
    tables = [name for name in names if name.endswith(".lance")]
    if tables:
        return Stranger(f"a data store ({_listed(tables)})", _of_store(folder))
    return None


def _of_run(folder: Path, names: Sequence[str]) -> Stranger | None:
    # Inside a run: the folder that was meant lies above.
    if "manifest.json" in names and folder.name.startswith("images-"):
        return Stranger("one checkpoint of a run, from which training goes on", _did_you_mean(_run_above(folder)))
    saves = sum(name.startswith("images-") for name in names)
    if saves:
        what = f"the checkpoints of a run, {_counted(saves, 'checkpoint', 'checkpoints')}"
        return Stranger(what, _did_you_mean(_run_above(folder)))
    if "metrics.json" in names and "report.html" in names:
        return Stranger("the report of an evaluation", f"Open {folder / 'report.html'}")
    return None


def _run_above(folder: Path) -> Path | None:
    for place in (folder.parent, folder.parent.parent):
        if (place / "recipe.yaml").is_file():
            return place
    return None


def _of_model(folder: Path, names: Sequence[str]) -> Stranger | None:
    if "snapshots" in names:
        copies = [folder / "snapshots" / name for name in _names(folder / "snapshots")]
        return Stranger("a repository in the cache of the hub", f"Did you mean {_listed(copies)}?" if copies else "")
    # Parts of a model folder, whose own folder lies above.
    model = folder.parent if (folder.parent / "model_index.json").is_file() else None
    if "tokenizer_config.json" in names or "merges.txt" in names:
        return Stranger("a tokenizer, one part of a model", _did_you_mean(model))
    if "scheduler_config.json" in names:
        return Stranger("the configuration of a scheduler, one part of a model", _did_you_mean(model))
    return _of_network(model, names)


def _of_network(model: Path | None, names: Sequence[str]) -> Stranger | None:
    if any(name.endswith(".safetensors") for name in names):
        return None
    pickles = [name for name in names if Path(name).suffix in (".bin", ".ckpt", ".pt", ".pth")]
    if pickles:
        rule = "Weights in safetensors are read; .bin, .ckpt and .pt files are pickles and are never opened"
        return Stranger(f"a folder of pickled weights ({_listed(pickles)})", rule)
    if "config.json" in names:
        return Stranger("the configuration of a network, without weights", _did_you_mean(model))
    return None


def _of_files(folder: Path, names: Sequence[str]) -> Stranger | None:
    files = [folder / name for name in names if name.endswith(".safetensors")]
    if files:
        what = "a folder with one .safetensors file" if len(files) == 1 else f"a folder of {len(files)} model files"
        return Stranger(what, f"Inspect a file of it by its name: {_listed(files)}")
    images = [folder / name for name in names if name.lower().endswith(_IMAGES)]
    # Captions may lie beside them, so that images need not be most of the names.
    if len(images) > len(names) / 3:
        return Stranger(
            f"a folder of {_counted(len(images), 'image', 'images')}", f"Inspect one: {_listed(images[:1])}"
        )
    return None


def _names(folder: Path) -> list[str]:
    """Names of a folder's first entries, sorted, without hidden ones; OSError as it comes."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in islice(entries, _MOST_NAMES) if not entry.name.startswith("."))


def _is_something(path: Path) -> bool:
    return any((path / name).is_file() for name in ("recipe.yaml", "model_index.json"))


def _store_above(path: Path) -> Path:
    table = next((place for place in path.parents if place.suffix == ".lance"), path.parent)
    return table.parent


def _of_store(store: Path) -> str:
    return f"`terminus data nano data.store={store}` lists what the store holds"


def _did_you_mean(place: Path | None) -> str:
    return "" if place is None else f"Did you mean {place}?"


def _listed(names: Iterable[object]) -> str:
    shown = [str(name)[:200] for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"{', '.join(shown[:_SHOWN])}{more}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
