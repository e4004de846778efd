"""What a run keeps from its beginning to its end: its recipe, and the version of its data."""

from __future__ import annotations

import json
from pathlib import Path

from terminus.config.load import load
from terminus.data.store import Store, Table, View
from terminus.errors import UserError
from terminus.training.assemble import table_of
from terminus.training.disk import write_whole
from terminus.training.optimizer import period_images
from terminus.training.recipe import Recipe

# What may change between two starts of one run: none of it has an influence on the numbers, beyond the rounding of
# another device.
_MAY_CHANGE = (
    "run.", "training.images", "training.loader_threads", "training.checkpoints.", "training.preview.",
    "training.checkpointing", "training.compile", "training.parallel.",
)  # fmt: skip


def same_run(folder: Path, recipe: Recipe, over: bool) -> bool:
    """Checks the recipe against the one that the run was begun with; whether the `run` section is the same as well."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return True
    begun = load(path, Recipe).value
    old, new = _settings(begun), _settings(recipe)
    if over:  # how the rate would go on no longer matters
        new[_PERIOD] = old[_PERIOD]
    changed = [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"This run was begun with another recipe: {'; '.join(changed)}",
            where=str(path),
            rule="A run keeps its recipe, or its record would be untrue",
            fix="Undo the change, or give the new run another run.dir",
        )
    return begun.run == recipe.run


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
    return {key: value for start, child in items for key, value in _leaves(child, start).items()}


def at_version(recipe: Recipe, version: int) -> View:
    """A version of the table that this recipe reads."""
    return _table(recipe).at(version)


def _table(recipe: Recipe) -> Table:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
    store = Store(recipe.data.store)
    return store.latents if table_of(recipe) == "latents" else store.images


def pinned(folder: Path, recipe: Recipe) -> View:
    """The version of the data that this run was begun with, or the newest for a new run."""
    name, table = table_of(recipe), _table(recipe)
    pin = folder / "data.json"
    if not pin.is_file():
        return table.required()
    try:
        pinned = json.loads(pin.read_text(encoding="utf-8"))
        version, rows = int(pinned["version"]), int(pinned["rows"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"This file is not readable ({error})",
            where=str(pin),
            rule="A run continues on the version of the data that it recorded here",
            fix="Restore it, or give the new run another run.dir",
        ) from error
    view = table.at(version)
    if view.count != rows:
        raise UserError(
            f"Version {version} of the {name} has {view.count} rows, and had {rows} when this run was begun",
            where=recipe.data.store,
            rule="A run continues on the version of the data that it recorded",
            fix="Restore the store, or give the new run another run.dir",
        )
    return view


def pin(folder: Path, table: str, view: View) -> None:
    content = {"table": table, "version": view.version, "rows": view.count}
    write_whole(folder / "data.json", json.dumps(content) + "\n")
