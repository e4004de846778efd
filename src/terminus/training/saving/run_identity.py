"""A run's identity, which it keeps from beginning to end: its recipe, and the version of its data.

`recipe.yaml` and `data.json` say it, and `sessions.jsonl` says it again, so that a lost one of them is found out, or
written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from terminus.config.load import load
from terminus.data.store import Store, Table, View
from terminus.errors import UserError
from terminus.training.assemble import table_of
from terminus.training.monitor.sessions import read_sessions
from terminus.training.optim.optimizer import period_images
from terminus.training.recipe import Recipe
from terminus.training.saving.atomic_files import reading_file, write_whole

log = logging.getLogger("terminus")

# What may change between two starts of one run: none of it has an influence on the numbers, beyond the rounding of
# another device.
_MAY_CHANGE = (
    "run.", "training.images", "training.loader_threads", "training.checkpoints.", "training.preview.",
    "training.activation_checkpointing", "training.compile", "training.parallel.",
)  # fmt: skip


def same_run(folder: Path, recipe: Recipe, over: bool) -> bool:
    """Checks the recipe against the one that the run was begun with; whether the `run` section is the same as well."""
    path = folder / "recipe.yaml"
    begun = _begun(path, recipe)
    if begun is None:
        return False
    old, new = _settings(begun), _settings(recipe)
    if over:  # how the rate would go on no longer matters
        new[_PERIOD] = old[_PERIOD]
    changed: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not key.startswith(_MAY_CHANGE):
            changed.append(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}")
    # A damaged file may still read as a recipe, though not as the one that was begun.
    if changed and _digest_of_begun(folder) == recipe_digest(recipe):
        log.warning("%s was damaged; sessions.jsonl says that this is the recipe, and it is written anew", path)
        return False
    if changed:
        raise UserError(
            f"This run was begun with another recipe: {'; '.join(changed)}",
            where=str(path),
            rule="The recipe of a run cannot change: its log would no longer describe it",
            fix="Undo the change, or give the new run another run.dir",
        )
    return begun.run == recipe.run


def _begun(path: Path, recipe: Recipe) -> Recipe | None:
    """The recipe that the run was begun with; None for a new run, and where it was lost and is known to be this one."""
    try:
        if path.is_file():
            return load(path, Recipe).value
        problem = "it is gone"
    except (UserError, OSError) as error:
        problem = str(error).splitlines()[0]
    # Lost or damaged: sessions say whether this is the recipe.
    said = _digest_of_begun(path.parent)
    if said == recipe_digest(recipe):
        log.warning("%s is not readable; sessions.jsonl says that this is the recipe, and it is written anew", path)
        return None
    # Neither a recipe nor a session: the run is new.
    if said is None and not path.exists():
        return None
    raise UserError(
        f"The recipe of this run is not readable ({problem.rstrip('.')})",
        where=str(path),
        rule="A run continues only with the recipe that it was begun with",
        fix="Restore it; or, if you know that this recipe is the same, remove it and sessions.jsonl",
    )


def _digest_of_begun(folder: Path) -> str | None:
    """Digest of the newest session's settings; None for runs of before it was recorded."""
    with reading_file("The run's folder", folder):
        said = [session.recipe for session in read_sessions(folder) if session.recipe is not None]
    return said[-1] if said else None


def recipe_digest(recipe: Recipe) -> str:
    """Digest of the settings that must not change while a run lasts."""
    kept = {key: value for key, value in _settings(recipe).items() if not key.startswith(_MAY_CHANGE)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]


_PERIOD = "training.learning_rate.period_images"


def _settings(recipe: Recipe) -> dict[str, object]:
    """Every setting, and the learning rate's period as it is in force: null follows training.images."""
    rate = recipe.training.learning_rate
    return _leaves(recipe.model_dump(mode="json")) | {_PERIOD: period_images(rate, recipe.training.images)}


def _leaves(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        items = [(f"{prefix}{key}.", value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(f"{prefix}{i}.", value) for i, value in enumerate(tree)]
    else:
        return {prefix.rstrip("."): tree}
    leaves: dict[str, object] = {}
    for start, child in items:
        leaves |= _leaves(child, start)
    return leaves


def at_version(recipe: Recipe, version: int) -> View:
    """A version of the table that this recipe reads."""
    return _table(recipe).at(version)


def _table(recipe: Recipe) -> Table:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
    store = Store(recipe.data.store)
    return store.latents if table_of(recipe) == "latents" else store.images


def pinned(folder: Path, recipe: Recipe) -> View:
    """The version of the data that this run was begun with, or the newest for a new run."""
    name, table = table_of(recipe), _table(recipe)
    found = _pin(folder)
    if found is None:
        return table.required()
    version, rows = found
    view = table.at(version)
    # A version never changes: another number of rows means another table.
    if view.count != rows:
        raise UserError(
            f"Version {version} of the {name} has {view.count} rows, and had {rows} when this run was begun",
            where=recipe.data.store,
            rule="A run continues on the version of the data that it recorded",
            fix="Restore the store, or give the new run another run.dir",
        )
    return view


def _pin(folder: Path) -> tuple[int, int] | None:
    """Version and rows as `data.json` has them or, where it cannot be read, the newest session; None for a new run."""
    file = folder / "data.json"
    try:
        return _numbers(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        problem = "it is gone"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = str(error)
    # The sessions say the same, the newest first.
    with reading_file("The run's folder", folder):
        sessions = read_sessions(folder)
    for session in reversed(sessions):
        if session.data is not None:
            log.warning("%s is not readable (%s); sessions.jsonl says the same, and it is repaired", file, problem)
            return _numbers(session.data)
    # Neither a pin nor a session: the run is new.
    if not file.exists():
        return None
    raise UserError(
        f"This file is not readable ({problem})",
        where=str(file),
        rule="A run continues on the version of the data that it recorded here",
        fix="Restore it, or give the new run another run.dir",
    )


def _numbers(pin: Mapping[str, object]) -> tuple[int, int]:
    return int(cast(int, pin["version"])), int(cast(int, pin["rows"]))


def pin(folder: Path, table: str, view: View) -> dict[str, object]:
    """Records the version of the data, and returns what it recorded."""
    content: dict[str, object] = {"table": table, "version": view.version, "rows": view.count}
    write_whole(folder / "data.json", json.dumps(content) + "\n")
    return content
