"""A run: one folder, one command, continued by the same command.

The folder holds `recipe.yaml`, `data.json` (the pinned version of the data), `log.jsonl`, `checkpoints/`, `previews/`
and, at the end, `model/`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor

from terminus.config.load import Loaded, dump, load
from terminus.data.loader import Loader
from terminus.data.order import Order
from terminus.data.store import Store, Table, View
from terminus.errors import Stopped, UserError
from terminus.progress import Meter
from terminus.training import checkpoint
from terminus.training.assemble import Parts, assemble, table_of
from terminus.training.checkpoint import Position
from terminus.training.ema import Average
from terminus.training.facts import write_facts
from terminus.training.journal import Journal, Row
from terminus.training.loop import Hooks, State, run_loop
from terminus.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from terminus.training.preview import draw
from terminus.training.recipe import Recipe, Training
from terminus.training.validation import Validation, build_validation

log = logging.getLogger("terminus")

# What may change between two starts of one run: none of it has an influence on the numbers.
_MAY_CHANGE = (
    "run.", "training.images", "training.loader_threads", "training.checkpoints.", "training.preview.",
)  # fmt: skip


def train(loaded: Loaded[Recipe]) -> Path:
    """Trains, or continues, the run in `run.dir`; returns the folder of the finished model.

    Raises `UserError` for what the user must change, and `Stopped` after a signal, with everything saved.
    """
    recipe = loaded.value
    folder = Path(recipe.run.dir)
    check(recipe)
    view = _pinned(folder, recipe)
    parts = assemble(recipe, view)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _keep_recipe(folder, recipe)
        _pin(folder, parts.table, view)
        return _train(recipe, folder, parts)


def check(recipe: Recipe) -> None:
    """Everything about the recipe that can be said before a model is loaded."""
    held_out = recipe.training.validation
    if held_out.every_images < recipe.training.global_batch:
        raise UserError(
            f"training.validation.every_images is {held_out.every_images}",
            rule=f"Measuring happens between steps, and a step is {recipe.training.global_batch} images",
            fix="Raise it",
        )


def _train(recipe: Recipe, folder: Path, parts: Parts) -> Path:
    training = recipe.training
    module = parts.step.trained
    optimizer = build_optimizer(module, training.optimizer)
    state = State(Position(0, 0, 0.0), Average(module, training.ema), optimizer)
    saved = checkpoint.latest(folder / "checkpoints")
    if saved is not None:
        _restore(state, module, saved)
        log.info("continuing at %d images", state.position.images)
    validation = build_validation(parts.held_out, training.validation.images, training.micro_batch)
    order = Order(training.seed, parts.train.sizes, training.micro_batch)
    loader = Loader(parts.train, order, training.accumulation, training.loader_threads)
    begun = state.position
    with Journal(folder, begun.step) as journal, _meter(training, begun) as meter, _signals() as asked:
        before = validation.measure(parts.step) if begun.step == 0 else None
        watch = _Watch(recipe, folder, parts, state, validation, journal, meter, before)
        hooks = Hooks(watch.validate, watch.record, watch.checkpoint, lambda: bool(asked))
        try:
            run_loop(parts.step, state, loader, training, hooks)
        except Stopped:
            log.info("stopped at %d images; the same command continues", state.position.images)
            raise
    with state.average.swapped_in():
        parts.export(folder / "model", state.position.images)
    write_facts(folder, recipe, parts, state.position, training.global_batch)
    return folder / "model"


@dataclass
class _Watch:
    """What happens beside the loop, every so many images."""

    recipe: Recipe
    folder: Path
    parts: Parts
    state: State
    validation: Validation
    journal: Journal
    meter: Meter
    before: dict[str, float] | None
    validated: str = ""
    """The last validation error, for the progress line."""

    def validate(self, position: Position) -> dict[str, float] | None:
        settings = self.recipe.training.validation
        if not (self._due(position, settings.every_images) or self._last(position)):
            return None
        with self.state.average.swapped_in():
            return self.validation.measure(self.parts.step)

    def record(self, row: Row) -> None:
        self.journal.write(row, self.before if row.step == 1 else None)
        if row.validation:
            self.validated = f"  validation {row.validation['all']:.4f}"
        status = f"loss {row.loss:.4f}  lr {row.learning_rate:.1e}{self.validated}"
        self.meter.advance(self.recipe.training.global_batch, status)

    def checkpoint(self, position: Position, now: bool) -> None:
        settings = self.recipe.training
        whole, preview = self.parts.components, settings.preview
        if whole and preview.prompts and (self._due(position, preview.every_images) or self._last(position)):
            with self.state.average.swapped_in():
                draw(self.folder, preview, whole, position, self.journal)
        if now or self._due(position, settings.checkpoints.every_images):
            self.journal.sync()
            names = _names(self.parts.step.trained)
            weights = {name: parameter for parameter, name in names.items()}
            tensors = {
                "weights": weights,
                "average": self.state.average.tensors,
                "optimizer": optimizer_tensors(self.state.optimizer, names),
            }
            checkpoint.save(self.folder / "checkpoints", position, tensors, settings.checkpoints.keep)

    def _due(self, position: Position, every: int) -> bool:
        """Whether this step crossed a multiple of `every` images."""
        before = position.images - self.recipe.training.global_batch
        return position.images // every > before // every

    def _last(self, position: Position) -> bool:
        return position.images >= self.recipe.training.images


def _meter(training: Training, begun: Position) -> Meter:
    total = -(-training.images // training.global_batch) * training.global_batch
    return Meter(Console(stderr=True, highlight=False), "train", total, begun.images, "images")


def _restore(state: State, module: torch.nn.Module, saved: checkpoint.Saved) -> None:
    checkpoint.copy_into(module, saved.tensors["weights"])
    for name, value in saved.tensors["average"].items():
        state.average.tensors[name].copy_(value)
    restore_optimizer(state.optimizer, _names(module), saved.tensors["optimizer"])
    state.position = saved.position


def _names(module: torch.nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _keep_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes the effective recipe, or checks it against the one that the run was begun with."""
    path = folder / "recipe.yaml"
    if path.is_file():
        begun = load(path, Recipe).value
        old, new = _leaves(begun.model_dump(mode="json")), _leaves(recipe.model_dump(mode="json"))
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
    temporary = path.with_suffix(".yaml.tmp")
    temporary.write_text(dump(recipe), encoding="utf-8")
    temporary.replace(path)


def _leaves(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        items = [(f"{prefix}{key}.", value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(f"{prefix}{i}.", value) for i, value in enumerate(tree)]
    else:
        return {prefix.rstrip("."): tree}
    return {key: value for start, child in items for key, value in _leaves(child, start).items()}


def _pinned(folder: Path, recipe: Recipe) -> View:
    """The version of the data that this run was begun with, or the newest for a new run."""
    store = Store(recipe.data.store)
    table: Table = store.latents if table_of(recipe) == "latents" else store.images  # pyright: ignore[reportMissingTypeArgument]
    pin = folder / "data.json"
    if pin.is_file():
        return table.at(int(json.loads(pin.read_text(encoding="utf-8"))["version"]))
    view = table.latest()
    return view if view is not None else store.training_view()


def _pin(folder: Path, table: str, view: View) -> None:
    content = {"table": table, "version": view.version, "rows": view.count}
    temporary = folder / "data.json.tmp"
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(folder / "data.json")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Two processes may not train in one folder. The lock dies with its process, so it is never stale."""
    with (folder / "run.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                "Another process is training in this folder",
                where=str(folder),
                fix="Wait for it or stop it, or give this run another run.dir",
            ) from error
        yield


@contextmanager
def _signals() -> Generator[list[int]]:
    """Collects the signals that ask for an end; nothing is done inside a handler. A second one ends at once."""
    asked: list[int] = []
    previous: dict[int, object] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.SIG_DFL)

    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    for kind in kinds:
        previous[kind] = signal.signal(kind, handle)
    try:
        yield asked
    finally:
        for kind in kinds:
            signal.signal(kind, previous[kind])  # pyright: ignore[reportArgumentType]
