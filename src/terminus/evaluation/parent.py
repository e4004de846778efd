"""The model that training began from, asked for the same images: what the run changed is what differs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from terminus.errors import UserError
from terminus.evaluation.fingerprint import model_fingerprint
from terminus.evaluation.metrics import MeasuredModel
from terminus.evaluation.trained import TrainedOn
from terminus.model.components import Components
from terminus.model.weights import model_name, resolve


@dataclass(frozen=True)
class Parent:
    """The place of the parent model, or the reason why there is none."""

    name: str = ""
    folder: Path | None = None
    missing: str | None = None
    """A clause; None if there is one."""
    is_model: bool = False
    """Whether the model is the one that its recipe begins from."""


def parent_of(trained: TrainedOn | None, model: Path) -> Parent:
    """The parent that the recipe of `model` names; it is looked for, and not yet loaded."""
    if trained is None:
        return Parent(missing="no recipe says what training began from")
    if trained.parent is None:
        return Parent(missing="training began from random weights")
    try:
        # Looked for and not loaded: the model that is judged comes first into memory.
        folder = resolve(trained.parent)
    except UserError as error:
        return Parent(missing=f"the model that training began from is not here ({error.what})")
    if folder.resolve() == model.resolve():
        return Parent(missing="this is the model that the recipe begins from", is_model=True)
    return Parent(trained.parent, folder)


def subject(components: Components, folder: Path, name: str) -> MeasuredModel:
    """The identity of a measured model, for metrics.json."""
    record, last = components.record, Path(name).name
    if last == "model" or not last.strip("."):
        last = model_name(folder)
    return MeasuredModel(
        # A hub id names a model better than the folder of its snapshot does; "." and "model" name nothing.
        name=last,
        fingerprint=model_fingerprint(folder),
        images_seen=record.images_seen,
        prediction=record.schedule.prediction,
        zero_terminal=record.schedule.zero_terminal,
        native_pixels=components.native_pixels,
    )
