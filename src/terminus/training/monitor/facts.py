"""`facts.json`: what the run knows about itself, written once it is finished, for the model card.

Counted and recorded numbers only; whoever reads a missing field writes "not measured".
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from terminus import runtime
from terminus.data.mixing import Mixed, epochs, order_of
from terminus.model.weights import SHIPPED
from terminus.training.assemble import TrainingSetup
from terminus.training.monitor.energy import MeasuredEnergy, measured_energy
from terminus.training.monitor.journal import read_journal
from terminus.training.monitor.sessions import Goodput, goodput
from terminus.training.networks.adapter import is_adapter_parameter
from terminus.training.objectives import Diffusion
from terminus.training.plan.memory import flop_per_image
from terminus.training.recipe import Recipe
from terminus.training.saving import checkpoint
from terminus.training.saving.atomic_files import write_whole
from terminus.training.saving.checkpoint import RunPosition

Begun = Literal["random weights", "shipped", "folder", "hub"]


@dataclass(frozen=True)
class RunFacts:
    """Everything the card takes from a run beside its recipe and log."""

    steps: int
    images_seen: int
    epochs: float
    """Passes over the images, as the log counts them: with a mix those of what has the largest share."""
    epochs_of: dict[str, float]
    """By source: images drawn, divided by the images there."""
    skipped_steps: int
    """Steps that did not change the weights, or whose change was undone; counted in `steps`."""
    undone_steps: int
    """Of these, the ones that were undone by going back to a checkpoint."""
    damaged_rows: int
    """Rows of the store that were not what had been written; others took their places."""
    train_rows: int
    validation_rows: int
    data_version: int
    train_seconds: float
    """In steps that are part of the model."""
    processes: int
    """The most that shared a step."""
    device_seconds: float
    """Seconds in steps that are part of the model, each times the processes that shared it."""
    images_per_second_median: float
    parameters: dict[str, int]
    """Count per network of the finished model."""
    model_bytes: int
    checkpoint_bytes: int
    validation_before: dict[str, float] | None
    validation_after: dict[str, float] | None
    environment: dict[str, object]
    goodput: Goodput | None
    """Of all sessions: how many, steps lost to kills, seconds, and the share of them spent in steps of the model."""
    energy: MeasuredEnergy
    """Of all sessions, as far as the hardware counts it."""
    flop_per_image: float
    """Of the UNet, forward and backward, what is computed a second time included; the largest bucket's."""
    begun_from: Begun
    """What `model.start` was when the run was made: only a hub id may be named as base model."""
    finished: str
    """UTC, ISO 8601, to the second."""


def finished_images(folder: Path) -> int | None:
    """The number of images that the finished model of this run has seen; None if there is none yet."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return int(facts["images_seen"]) if (folder / "model").is_dir() else None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def write_facts(folder: Path, recipe: Recipe, parts: TrainingSetup, position: RunPosition) -> None:
    """Collects and writes the facts of a finished run; those of a run that had finished there already stay."""
    if finished_images(folder) == position.images:
        return
    # From the log and the order of the data, which cover all sessions of the run.
    rows = list(read_journal(folder / "log.jsonl"))
    before, after = _validation(rows)
    order = order_of(parts.train, recipe.data, recipe.training.seed, recipe.training.micro_batch)
    train_rows = sum(parts.train.sizes)
    facts = RunFacts(
        steps=position.step,
        images_seen=position.images,
        epochs=order.epochs(position.images) if isinstance(order, Mixed) else position.images / train_rows,
        epochs_of=epochs(order, parts.train, recipe.data, position.images),
        skipped_steps=position.skipped,
        undone_steps=position.health.undone,
        damaged_rows=len(_damaged(rows)),
        train_rows=train_rows,
        validation_rows=sum(parts.held_out.sizes),
        data_version=int(json.loads((folder / "data.json").read_text(encoding="utf-8"))["version"]),
        train_seconds=position.seconds,
        processes=max(map(_processes, rows), default=1),
        device_seconds=_device_seconds(rows),
        images_per_second_median=_median_rate(rows),
        parameters=_parameters(parts),
        model_bytes=_size(folder / "model"),
        checkpoint_bytes=_newest_checkpoint_size(folder / "checkpoints"),
        validation_before=before,
        validation_after=after,
        environment=asdict(runtime.environment(runtime.pick_device(recipe.run.device))),
        goodput=goodput(folder, position.seconds),
        energy=measured_energy(folder),
        flop_per_image=flop_per_image(recipe) if isinstance(recipe.objective, Diffusion) else 0.0,
        begun_from=_begun_from(recipe.model.start),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_whole(folder / "facts.json", json.dumps(asdict(facts), indent=1) + "\n")


_Rows = Sequence[Mapping[str, object]]
"""Rows of the log, as `read_journal` gives them."""


def _validation(rows: _Rows) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """Held-out loss before the first step, and the last one measured; None where there is none."""
    before = rows[0].get("validation_before") if rows else None
    measured = [row["validation"] for row in rows if "validation" in row]
    last = measured[-1] if measured else None
    return cast("dict[str, float] | None", before), cast("dict[str, float] | None", last)


def _damaged(rows: _Rows) -> set[str]:
    found: set[str] = set()
    for row in rows:
        found.update(cast("list[str]", row.get("damaged", ())))
    return found


def _processes(row: Mapping[str, object]) -> int:
    return cast(int, row.get("processes", 1))


def _device_seconds(rows: _Rows) -> float:
    return sum(cast(float, row["seconds"]) * _processes(row) for row in rows if "undone" not in row)


def _median_rate(rows: _Rows) -> float:
    rates = [cast(float, row["images_per_second"]) for row in rows]
    return statistics.median(rates) if rates else 0.0


def _newest_checkpoint_size(folder: Path) -> int:
    saves = checkpoint.whole_checkpoints(folder)
    return _size(saves[-1]) if saves else 0


def _begun_from(start: str | None) -> Begun:
    if start is None:
        return "random weights"
    if start in SHIPPED:
        return "shipped"
    return "folder" if Path(start).expanduser().is_dir() else "hub"


def _parameters(parts: TrainingSetup) -> dict[str, int]:
    components = parts.components
    # A run of the VAE or of the text encoders alone has no whole model.
    if components is None:
        return {"trained": _count(parts.step.trained.parameters())}
    text_encoders = components.text_encoders
    networks = {
        "unet": components.unet, "vae": components.vae.autoencoder,
        "text_encoder": text_encoders.text_encoder_1, "text_encoder_2": text_encoders.text_encoder_2,
    }  # fmt: skip
    # The finished model has the adapter merged into its weights, so the factors do not count.
    return {
        name: _count(parameter for key, parameter in network.named_parameters() if not is_adapter_parameter(key))
        for name, network in networks.items()
    }


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
