"""The part of a model's recipe that an evaluation needs: its data, and what training began from."""

from __future__ import annotations

from dataclasses import dataclass

from terminus.data.settings import DataConfig
from terminus.errors import UserError
from terminus.model.record import Record


@dataclass(frozen=True)
class TrainedOn:
    """The training that the judged model comes from."""

    recipe: str
    """File of the recipe."""
    data: DataConfig
    parent: str | None
    """`model.start`: the model that training began from; None for random weights."""
    version: int | None = None
    """Version of the table of latents that the run was trained on; None is the newest."""


def check_trained_on(trained: TrainedOn, record: Record, is_parent: bool) -> None:
    """UserError if the model cannot have come from this recipe and is not its parent either."""
    parents = record.parents or (None,)
    # Models that others trained record no parent; there is nothing to compare then.
    recorded = bool(record.weighting)
    wrong: list[str] = []
    if recorded and not is_parent and parents[-1] != trained.parent:
        wrong.append(
            f"the model records that it began from {_named(parents[-1])}, the recipe from {_named(trained.parent)}"
        )
    pixels = record.native_pixels
    if pixels is not None and not is_parent and trained.data.resolution != pixels:
        wrong.append(f"the model draws {pixels} pixels, the recipe prepares {trained.data.resolution}")
    if wrong:
        raise UserError(
            f"This recipe is of another model: {'; '.join(wrong)}",
            where=trained.recipe,
            rule="A model is compared with the images that its own training held out, and with its own parent",
            fix="Name the recipe that trained it with --recipe, or what to draw with --prompts FILE",
        )


def _named(parent: str | None) -> str:
    return "random weights" if parent is None else parent
