"""Which model is to be judged, and which recipe made it: a run knows its own, a model beside one is that run's.

Above training and evaluation, which know nothing of each other: recipes are training's, and what an evaluation needs
of one is `Trained`. Everything that needs no torch is said before it is imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from terminus.config.load import load, read_tree
from terminus.errors import UserError
from terminus.model.naming import at_home, find_local

if TYPE_CHECKING:
    from terminus.evaluation.trained import TrainedOn
    from terminus.training.recipe import Recipe

MODEL = "model"
"""The folder of a run that keeps its finished model."""


@dataclass(frozen=True)
class Judged:
    """A model, and what is known of its training."""

    model: str
    """Folder, file, shipped name or hub id."""
    run: Path | None
    """The folder of the run that made it; None where there is none."""
    recipe: str | None
    """File or shipped name of its recipe; None where nobody knows it."""

    def folder(self, out: Path | None) -> Path:
        """The folder for the report; UserError if that is not said and there is no run to put it in."""
        if out is not None:
            return out
        if self.run is not None:
            return self.run / "evaluation"
        raise UserError("Where the report goes is not said", rule="Only a run has a place of its own", fix="Add --out")


def find_judged(name: str, recipe: str | None = None) -> Judged:
    """The model or run that `name` stands for; `recipe` goes before the recipe that lies beside it.

    UserError for what cannot be a model, for a run that is not finished, and for a recipe that is no YAML.
    """
    run, model = _run_of(name), name
    # A run is judged by its finished model, whichever of the two was named.
    if run is not None and not (run / MODEL / "model_index.json").is_file():
        raise UserError(
            "This run is not finished: it has no model folder",
            where=str(run),
            rule="The model is written at the end of training",
            fix="Run the same `terminus train` command again; it continues",
        )
    if run is not None and (at_home(name) / "recipe.yaml").is_file():
        model = str(at_home(name) / MODEL)
    find_local(model)
    # The recipe that was named, else the run's own.
    if recipe is None and run is not None:
        recipe = str(run / "recipe.yaml")
    if recipe is not None:
        read_tree(recipe)
    return Judged(model, run, recipe)


def trained_by(found: Judged) -> TrainedOn | None:
    """The facts that an evaluation needs of the recipe; UserError for one that trains no whole model."""
    from terminus.evaluation.trained import TrainedOn
    from terminus.training.objectives import Diffusion
    from terminus.training.recipe import Recipe

    if found.recipe is None:
        return None
    recipe = load(found.recipe, Recipe).value
    if not isinstance(recipe.objective, Diffusion):
        raise UserError(
            f"This recipe trains a part of a model ({recipe.objective.kind})",
            where=found.recipe,
            rule="Images are drawn by whole models, the result of objective.kind diffusion",
        )
    version = None if found.run is None else _version(found.run, recipe)
    return TrainedOn(found.recipe, recipe.data, recipe.model.start, version)


def _run_of(name: str) -> Path | None:
    """The run's folder for itself and for its model."""
    path = at_home(name)
    try:
        if (path / "recipe.yaml").is_file():
            return path
        whole = path.absolute()
        beside = whole.name == MODEL and (whole.parent / "recipe.yaml").is_file()
    except OSError:
        return None  # a name too long for a path: whoever loads it says so
    return whole.parent if beside else None


def _version(run: Path, recipe: Recipe) -> int | None:
    """The version in `data.json`; None where this recipe names another store than the run's own."""
    from terminus.training.recipe import Recipe

    own, pin = run / "recipe.yaml", run / "data.json"
    if not pin.is_file() or not own.is_file() or load(own, Recipe).value.data.store != recipe.data.store:
        return None
    try:
        return int(json.loads(pin.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"This file is not readable ({error})",
            where=str(pin),
            rule="It says which version of the data the run was trained on, and so which images it has not learnt",
            fix="Restore it, or remove it to take the newest version",
        ) from error
