"""A run: one folder, one command, continued by the same command.

The folder holds `recipe.yaml`, `data.json` (the pinned version of the data), `log.jsonl`, `checkpoints/`, `previews/`
and, at the end, `model/`.
"""

from __future__ import annotations

import fcntl
import logging
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor

from terminus import runtime
from terminus.config.load import Loaded, dump
from terminus.data.loader import Loader
from terminus.data.order import Order
from terminus.errors import Stopped, UserError
from terminus.progress import Meter
from terminus.training import checkpoint, guards
from terminus.training.assemble import Parts, assemble
from terminus.training.checkpoint import Position
from terminus.training.disk import whole_folder, write_whole, writing
from terminus.training.ema import Average
from terminus.training.facts import finished_images, write_facts
from terminus.training.journal import Journal, Row
from terminus.training.kept import pin, pinned, same_run
from terminus.training.loop import Hooks, State, run_loop
from terminus.training.memory import out_of_memory, refuse_what_cannot_fit
from terminus.training.opening import weight_table
from terminus.training.optimizer import AdamW, Optimizer, build_optimizer, optimizer_tensors, restore_optimizer
from terminus.training.precision import store_weights
from terminus.training.preview import draw
from terminus.training.recipe import Recipe, Training
from terminus.training.saving import Saver, require_checkpoint_room
from terminus.training.sessions import begin_session
from terminus.training.speed import run_as
from terminus.training.step import DiffusionStep
from terminus.training.validation import Validation, build_validation
from terminus.training.watchdog import Watchdog

log = logging.getLogger("terminus")

MOMENT_BYTES = {"fp32": 8, "bf16": 4, "int8": 2}
"""Of both means of AdamW, for each weight."""


def train(loaded: Loaded[Recipe]) -> Path:
    """Trains, or continues, the run in `run.dir`; returns the folder of the finished model.

    Raises `UserError` for what the user must change, and `Stopped` after a signal, with everything saved.
    """
    started = time.time()
    recipe = loaded.value
    folder = Path(recipe.run.dir)
    check(recipe)
    seen = finished_images(folder)
    over = seen is not None and seen >= recipe.training.images
    same = same_run(folder, recipe, over)
    if over and same:
        log.info("nothing to do: %s has seen %d images, and %d are asked for", folder, seen, recipe.training.images)
        return folder / "model"
    refuse_what_cannot_fit(recipe, runtime.pick_device(recipe.run.device))
    view = pinned(folder, recipe)
    parts = assemble(recipe, view)
    with _locked(folder):
        with writing("The run's folder", folder):
            write_whole(folder / "recipe.yaml", dump(recipe))
            pin(folder, parts.table, view)
        return _train(recipe, folder, parts, started)


def check(recipe: Recipe) -> None:
    """Everything about the recipe that can be said before a model is loaded."""
    held_out = recipe.training.validation
    if held_out.every_images < recipe.training.global_batch:
        raise UserError(
            f"training.validation.every_images is {held_out.every_images}",
            rule=f"Measuring happens between steps, and a step is {recipe.training.global_batch} images",
            fix="Raise it",
        )


def _train(recipe: Recipe, folder: Path, parts: Parts, started: float) -> Path:
    training = recipe.training
    module = parts.step.trained
    store_weights(module, training.weights)
    run_as(module, training.checkpointing, training.compile)
    optimizer = build_optimizer(module, training.optimizer, training.seed)
    state = State(Position(0, 0, 0.0), Average(module, training.ema), optimizer)
    saved = checkpoint.latest(folder / "checkpoints")
    if saved is not None:
        _restore(state, module, saved)
        state.position = saved.position
        log.info("continuing at %d images", state.position.images)
    saves = -(-(training.images - state.position.images) // training.checkpoints.every_images)
    size = _checkpoint_size(state, module, training.optimizer)
    require_checkpoint_room(folder / "checkpoints", size, training.checkpoints.keep, saves)
    validation = build_validation(parts.held_out, training.validation.images, training.micro_batch)
    order = Order(training.seed, parts.train.sizes, training.micro_batch)
    loader = Loader(parts.train, order, training.accumulation, training.loader_threads)
    begun = state.position
    with writing("The run's folder", folder):
        begin_session(folder, started, begun.step)
    if begun.step == 0 and isinstance(parts.step, DiffusionStep):
        table = weight_table(parts.step.objective, parts.step.density)
        Console(stderr=True, highlight=False).print("\n".join(table), markup=False)
    with _signals() as asked, Watchdog() as watchdog:
        with (
            Journal(folder, begun.step) as journal,
            _meter(training, begun) as meter,
            Saver(folder / "checkpoints", training.checkpoints, journal.sync) as saver,
        ):
            before = validation.measure(parts.step) if begun.step == 0 else None
            watch = _Watch(recipe, folder, parts, state, validation, journal, meter, saver, watchdog, before)
            hooks = Hooks(
                watch.validate, watch.record, watch.checkpoint, lambda: bool(asked), watch.go_back, watchdog.alive
            )
            try:
                if asked:
                    raise Stopped
                run_loop(parts.step, state, loader, training, hooks)
            except Stopped:
                log.info("stopped at %d images; the same command continues", state.position.images)
                raise
            except torch.OutOfMemoryError as error:
                raise out_of_memory(recipe, error) from error
        # A signal does not interrupt this: what is left is short, and then there is nothing to continue.
        with watchdog.patient(), writing("The finished model", folder / "model"):
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
    saver: Saver
    watchdog: Watchdog
    before: dict[str, float] | None
    validated: str = ""
    """The last validation error, for the progress line."""
    owed: bool = False
    """A save was due when the last steps had been left out: no state to return to."""

    def validate(self, position: Position) -> dict[str, float] | None:
        settings = self.recipe.training.validation
        if not (self._due(position, settings.every_images) or self._last(position)):
            return None
        with self.watchdog.patient(), self.state.average.swapped_in():
            return self.validation.measure(self.parts.step)

    def record(self, row: Row) -> None:
        self.journal.write(row, self.before if row.step == 1 else None)
        if row.validation:
            self.validated = f"  validation {row.validation['all']:.4f}"
        status = f"loss {row.loss:.4f}  lr {row.learning_rate:.1e}{self.validated}"
        self.meter.advance(self.recipe.training.global_batch, status)

    def checkpoint(self, position: Position, now: bool) -> None:
        settings = self.recipe.training
        self.saver.check()
        self._preview(position)
        self.owed = self.owed or self._due(position, settings.checkpoints.every_images)
        sound = position.health.failed == 0
        if now or (self.owed and sound):
            # At the end there is nothing else to do than to wait for room; after a signal there is no time for it.
            with self.watchdog.patient(forever=True):
                patient = self._last(position) or not now
                returned = position.health.returns and position.health.returns[-1][1] == position.step
                prune = sound and not returned
                self.saver.save(position, self._tensors(), wait=now, patient=patient, prune=prune)
            self.owed = False

    def go_back(self, state: State) -> None:
        """To the last good checkpoint's weights. What was seen since counts as left out, and is not seen again."""
        here, health = state.position, state.position.health
        self.saver.join()
        good = checkpoint.latest(self.folder / "checkpoints", guards.good_before(here.step, health))
        if good is None or len(health.returns) == guards.RETURNS:
            raise guards.no_way_back(here.step, health)
        there = good.position
        log.warning(
            "%d steps in a row left out: back to the weights of step %d, leaving out steps %d to %d and their data",
            health.failed, there.step, there.step + 1, here.step,
        )  # fmt: skip
        _restore(state, self.parts.step.trained, good)
        returns = (*health.returns, (there.step, here.step))
        state.position = replace(
            here,
            seconds=there.seconds,
            skipped=there.skipped + here.step - there.step,
            health=replace(there.health, returns=returns),
        )
        self.journal.undo(there.step, len(returns))
        # At once, and without removing any: from here on it is decided, whatever ends the process next.
        self.saver.save(state.position, self._tensors(), prune=False)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        module = self.parts.step.trained
        return {
            "weights": _weights(module),
            "average": self.state.average.tensors,
            "optimizer": optimizer_tensors(self.state.optimizer, _names(module)),
        }

    def _preview(self, position: Position) -> None:
        whole, settings = self.parts.components, self.recipe.training.preview
        if (
            not whole
            or not settings.prompts
            or not (self._due(position, settings.every_images) or self._last(position))
        ):
            return
        try:
            with self.watchdog.patient(), self.state.average.swapped_in():
                draw(self.folder, settings, whole, position, self.journal)
        except OSError as error:
            log.warning("a preview cannot be written (%s); training goes on", error.strerror or error)

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
    checkpoint.copy_into(_weights(module), saved.tensors["weights"])
    checkpoint.copy_into(state.average.tensors, saved.tensors["average"])
    state.optimizer.state.clear()
    restore_optimizer(state.optimizer, _names(module), saved.tensors["optimizer"])


def _checkpoint_size(state: State, module: torch.nn.Module, settings: Optimizer) -> int:
    """Bytes of a checkpoint to come; the optimizer has no memory yet."""
    trained = list(_names(module))
    per_weight = MOMENT_BYTES[settings.moments] if isinstance(settings, AdamW) else 0
    moments = per_weight * sum(parameter.numel() for parameter in trained)
    known = {"weights": _weights(module), "average": state.average.tensors}
    return checkpoint.size_of(known) + moments


def _weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter for parameter, name in _names(module).items()}


def _names(module: torch.nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}


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
