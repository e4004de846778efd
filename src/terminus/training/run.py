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
from terminus.training.disk import whole_folder, write_whole, writing
from terminus.training.ema import Average
from terminus.training.facts import finished_images, write_facts
from terminus.training.journal import Journal, Row
from terminus.training.loop import Hooks, State, run_loop
from terminus.training.opening import weight_table
from terminus.training.optimizer import build_optimizer, optimizer_tensors, period_images, restore_optimizer
from terminus.training.preview import draw
from terminus.training.recipe import Recipe, Training
from terminus.training.step import DiffusionStep
from terminus.training.validation import Validation, build_validation

log = logging.getLogger("terminus")

# What may change between two starts of one run: none of it has an influence on the numbers, beyond the rounding of
# another device.
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
    seen = finished_images(folder)
    over = seen is not None and seen >= recipe.training.images
    same = _same_run(folder, recipe, over)
    if over and same:
        log.info("nothing to do: %s has seen %d images, and %d are asked for", folder, seen, recipe.training.images)
        return folder / "model"
    view = _pinned(folder, recipe)
    parts = assemble(recipe, view)
    with _locked(folder):
        with writing("The run's folder", folder):
            write_whole(folder / "recipe.yaml", dump(recipe))
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
    if begun.step == 0 and isinstance(parts.step, DiffusionStep):
        Console(stderr=True, highlight=False).print("\n".join(weight_table(parts.step.objective)), markup=False)
    with _signals() as asked:
        with Journal(folder, begun.step) as journal, _meter(training, begun) as meter:
            before = validation.measure(parts.step) if begun.step == 0 else None
            watch = _Watch(recipe, folder, parts, state, validation, journal, meter, before)
            hooks = Hooks(watch.validate, watch.record, watch.checkpoint, lambda: bool(asked))
            try:
                if asked:
                    raise Stopped
                run_loop(parts.step, state, loader, training, hooks)
            except Stopped:
                log.info("stopped at %d images; the same command continues", state.position.images)
                raise
        # A signal does not interrupt this: what is left is short, and then there is nothing to continue.
        with writing("The finished model", folder / "model"):
            with state.average.swapped_in(), whole_folder(folder / "model") as target:
                parts.export(target, state.position.images)
            write_facts(folder, recipe, parts, state.position)
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
    names = _names(module)
    checkpoint.copy_into({name: parameter for parameter, name in names.items()}, saved.tensors["weights"])
    checkpoint.copy_into(state.average.tensors, saved.tensors["average"])
    restore_optimizer(state.optimizer, names, saved.tensors["optimizer"])
    state.position = saved.position


def _names(module: torch.nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _same_run(folder: Path, recipe: Recipe, over: bool) -> bool:
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


def _pinned(folder: Path, recipe: Recipe) -> View:
    """The version of the data that this run was begun with, or the newest for a new run."""
    store, name = Store(recipe.data.store), table_of(recipe)
    table: Table = store.latents if name == "latents" else store.images  # pyright: ignore[reportMissingTypeArgument]
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


def _pin(folder: Path, table: str, view: View) -> None:
    content = {"table": table, "version": view.version, "rows": view.count}
    write_whole(folder / "data.json", json.dumps(content) + "\n")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Two processes may not train in one folder. The lock dies with its process, so it is never stale."""
    with writing("The run's folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "run.lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
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
