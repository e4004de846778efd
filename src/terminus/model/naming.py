"""The names of models: a path, a hub id, or a shipped one. What can be said of a name before torch is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from terminus.errors import UserError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED = {"nano": ASSETS / "nano"}
RULE = "A model is a diffusers folder (with model_index.json), a .safetensors file, a hub id, or a shipped name (nano)"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")


class HubId(NamedTuple):
    """A model on the hub."""

    repository: str
    file: str | None
    """A single file of it; None for the model that the repository is."""
    revision: str | None


def parse_hub_id(name: str) -> HubId | None:
    """The id that a text is; None for what can only be a path."""
    where, _, revision = name.partition("@")
    found = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(/.+\.safetensors)?", where)
    # "folder/file.safetensors" is a path: no repository is called like a file.
    if found is None or (found[2] is None and where.endswith(".safetensors")):
        return None
    return HubId(found[1], found[2] and found[2][1:], revision or None)


def find_local(model: str | Path) -> Path | None:
    """The folder or .safetensors file on this machine that a name stands for; None for a hub id.

    Nothing is read and nothing is downloaded. UserError for a name that cannot be a model's.
    """
    name = str(model)
    if name in SHIPPED:
        return SHIPPED[name]
    try:
        return _find(at_home(name), name)
    except OSError as error:
        raise UserError(f"This cannot be read ({error.strerror or error})", where=name, rule=RULE) from error


def find_whole(model: str | Path) -> Path | None:
    """The same, for a model that is to draw: UserError also for a folder without the file that makes it one."""
    path = find_local(model)
    if path is not None and path.is_dir() and not (path / "model_index.json").is_file():
        raise UserError(
            "This file is missing",
            where=str(path / "model_index.json"),
            rule="A diffusers model folder must have it",
        )
    return path


def _find(path: Path, name: str) -> Path | None:
    if path.is_dir() and (path / "model" / "model_index.json").is_file():
        raise UserError(
            "This is the folder of a run, not of a model", where=name, fix=f"Did you mean {path / 'model'}?"
        )
    if path.is_dir():
        return path
    refuse_pickle(path)
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.exists():
        raise UserError("This is a file, but not a .safetensors file", where=name, rule=RULE)
    if parse_hub_id(name) is not None:
        return None
    raise UserError("No model is here", where=name, rule=RULE, fix=_suggestion(name))


def _suggestion(name: str) -> str:
    # Imported here: it is needed where a name is wrong, and every start would wait for it.
    from difflib import get_close_matches

    if near := get_close_matches(name.lower(), SHIPPED, n=1):
        return f"Did you mean `{near[0]}`?"
    return "Check the path, or write `nano` for the model that comes with Terminus"


def at_home(path: str | Path) -> Path:
    """A path whose `~` is the user's home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError("The user whose home this names is not known", where=str(path)) from error


def refuse_pickle(path: Path) -> None:
    """UserError for the names that PyTorch's pickled files have; the file is not looked at."""
    if path.suffix.lower() in _PICKLES:
        raise UserError(
            f"{path.suffix} files are pickles and are never opened",
            where=str(path),
            rule="Opening a pickle runs whatever code it holds",
            fix="Convert it to safetensors in a process of its own, with nothing in reach that matters: "
            "torch.load(file, weights_only=True), then safetensors.torch.save_file",
        )
