"""A run: one folder, one command, continued by the same command.

The folder holds `recipe.yaml`, `data.json` (the pinned version of the data), `log.jsonl`, `checkpoints/`, `previews/`
and, at the end, `model/`.
"""

from __future__ import annotations

import fcntl
import logging
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor

from terminus import runtime
from terminus.config.load import Loaded, dump
from terminus.data.loader import Loader
from terminus.data.mixing import order_of
from terminus.errors import Stopped, UserError
from terminus.training import guards
from terminus.training.assemble import TrainingSetup, assemble
from terminus.training.distributed.process_group import World, joined
from terminus.training.distributed.sharded_files import HeldRows, held
from terminus.training.distributed.sharding import engage
from terminus.training.loop import Hooks, State, run_loop
from terminus.training.monitor.dashboard import Dashboard, dashboard
from terminus.training.monitor.facts import finished_images, write_facts
from terminus.training.monitor.journal import Journal, LogRow
from terminus.training.monitor.sessions import begin_session
from terminus.training.monitor.trackers import Trackers
from terminus.training.monitor.watchdog import Watchdog
from terminus.training.monitor.weight_table import weight_table
from terminus.training.networks.execution import run_as
from terminus.training.optim.ema import Average
from terminus.training.optim.optimizer import AdamW, Optimizer, build_optimizer, optimizer_tensors, restore_optimizer
from terminus.training.optim.weight_formats import store_weights
from terminus.training.plan.memory import out_of_memory, refuse_what_cannot_fit
from terminus.training.preflight import check_agreement, check_multi_process, check_shared
from terminus.training.preview import render_previews
from terminus.training.recipe import Recipe, Training
from terminus.training.saving import checkpoint
from terminus.training.saving.atomic_files import reading, whole_folder, write_whole, writing
from terminus.training.saving.checkpoint import RunPosition
from terminus.training.saving.run_identity import at_version, pin, pinned, recipe_digest, same_run
from terminus.training.saving.saver import Saver, require_checkpoint_room
from terminus.training.steps.diffusion import DiffusionStep
from terminus.training.validation import HeldOutSet, build_validation

log = logging.getLogger("terminus")

MOMENT_BYTES = {"fp32": 8, "bf16": 4, "int8": 2}
"""Of both means of AdamW, for each weight."""


def train(loaded: Loaded[Recipe]) -> Path:
    """Trains, or continues, the run in `run.dir`; returns the folder of the finished model.

    Started several times by a launcher, the processes train it together. Raises `UserError` for what the user must
    change, and `Stopped` after a signal, with everything saved.
    """
    started = time.time()
    recipe = loaded.value
    folder = Path(recipe.run.dir)
    check_recipe(recipe)
    with joined(recipe.run.device) as world:
        check_multi_process(recipe, world)
        if world.once(lambda: _nothing_to_do(folder, recipe)):
            return folder / "model"
        if world.first and runtime.computes_in_software(
            runtime.pick_device(recipe.run.device), recipe.training.precision
        ):
            log.warning(
                "this CPU computes bfloat16 in software, ten times slower or worse: set training.precision=fp32"
            )
        world.together(lambda: refuse_what_cannot_fit(recipe, runtime.pick_device(recipe.run.device), world.size))
        version = world.once(lambda: pinned(folder, recipe).version)
        parts = world.together(lambda: assemble(recipe, at_version(recipe, version)))
        check_agreement(world, parts)
        with ExitStack() as stack:
            data = world.once(lambda: stack.enter_context(_begun(folder, recipe, parts, version)))
            check_shared(folder, world)
            return _train(recipe, folder, parts, started, world, data)


def _nothing_to_do(folder: Path, recipe: Recipe) -> bool:
    seen = finished_images(folder)
    over = seen is not None and seen >= recipe.training.images
    same = same_run(folder, recipe, over)
    if over and same:
        log.info("nothing to do: %s has seen %d images, and %d are asked for", folder, seen, recipe.training.images)
    return over and same


@contextmanager
def _begun(folder: Path, recipe: Recipe, parts: TrainingSetup, version: int) -> Generator[Mapping[str, object]]:
    """The run's folder is this run's alone, and says what it is; gives what it says of the data."""
    with _locked(folder):
        with writing("The run's folder", folder):
            write_whole(folder / "recipe.yaml", dump(recipe))
            data = pin(folder, parts.table, at_version(recipe, version))
        yield data


def check_recipe(recipe: Recipe) -> None:
    """Everything about the recipe that can be said before a model is loaded."""
    held_out = recipe.training.validation
    if held_out.every_images < recipe.training.global_batch:
        raise UserError(
            f"training.validation.every_images is {held_out.every_images}",
            rule=f"Measuring happens between steps, and a step is {recipe.training.global_batch} images",
            fix="Raise it",
        )


def _train(
    recipe: Recipe, folder: Path, parts: TrainingSetup, started: float, world: World, data: Mapping[str, object]
) -> Path:
    state = _state(recipe, parts, world)
    training, begun = recipe.training, _continued(folder, state, parts)
    _require_room(folder, training, state, parts)
    validation = build_validation(parts.held_out, training.validation.images, training.micro_batch)
    order = order_of(parts.train, recipe.data, training.seed, training.micro_batch)
    loader = Loader(parts.train, order, training.accumulation, training.loader_threads, world.rank, world.size)
    if world.first:
        with writing("The run's folder", folder):
            begin_session(folder, started, begun.step, data, recipe_digest(recipe))
        if begun.step == 0 and isinstance(parts.step, DiffusionStep):
            table = weight_table(parts.step.objective, parts.step.density)
            Console(stderr=True, highlight=False).print("\n".join(table), markup=False)
    with _signals() as asked, Watchdog() as watchdog:
        with (
            _trackers(folder, recipe) if world.first else nullcontext() as trackers,
            Journal(folder, begun.step, recipe.run.name) if world.first else nullcontext() as journal,
            dashboard(recipe, folder, begun.images, world.size) if world.first else nullcontext() as meter,
            Saver(folder / "checkpoints", training.checkpoints, journal.sync if journal else _nothing, world) as saver,
        ):
            watch = _Watch(recipe, folder, parts, state, validation, journal, meter, trackers, saver, watchdog)
            if begun.step == 0:
                watch.before = validation.measure(parts.step, world)
            hooks = Hooks(
                watch.validate, watch.record, watch.checkpoint, lambda: bool(asked), watch.go_back, watchdog.alive
            )
            try:
                if world.any(bool(asked)):
                    raise Stopped
                run_loop(parts.step, state, loader, training, hooks)
            except Stopped:
                raise Stopped(f"Stopped at {state.position.images} images; everything is saved.") from None
            except torch.OutOfMemoryError as error:
                raise out_of_memory(recipe, error, world.size) from error
        # A signal does not interrupt this: what is left is short, and then there is nothing to continue.
        with watchdog.patient(), state.average.swapped_in(), state.engine.whole():
            world.once(lambda: _finish(recipe, folder, parts, state))
    return folder / "model"


def _state(recipe: Recipe, parts: TrainingSetup, world: World) -> State:
    training, module = recipe.training, parts.step.trained
    store_weights(module, training.weights)
    run_as(module, training.activation_checkpointing, training.compile)
    engine = engage(module, training.parallel, world, runtime.pick_device(recipe.run.device))
    optimizer = build_optimizer(module, training.optimizer, training.seed, engine)
    return State(RunPosition(0, 0, 0.0), Average(module, training.ema, engine), optimizer, engine, world)


def _continued(folder: Path, state: State, parts: TrainingSetup) -> RunPosition:
    """Where the run goes on: at its newest checkpoint, which the state then is, or at the beginning."""
    saved = state.world.once(lambda: checkpoint.latest(folder / "checkpoints"))
    if saved is not None:
        state.world.together(lambda: _restore(state, parts.step.trained, saved))
        state.position = saved.position
        log.info("continuing at %d images", state.position.images)
    return state.position


def _require_room(folder: Path, training: Training, state: State, parts: TrainingSetup) -> None:
    saves = -(-(training.images - state.position.images) // training.checkpoints.every_images)
    size = sum(state.world.gather(_checkpoint_size(state, parts.step.trained, training.optimizer)))
    state.world.once(lambda: require_checkpoint_room(folder / "checkpoints", size, training.checkpoints.keep, saves))


def _finish(recipe: Recipe, folder: Path, parts: TrainingSetup, state: State) -> None:
    with writing("The finished model", folder / "model"):
        with whole_folder(folder / "model") as target:
            parts.export(target, state.position.images)
        write_facts(folder, recipe, parts, state.position)


def _nothing() -> None:
    """What a process that writes no log does to have it on the disk."""


@dataclass
class _Watch:
    """What happens beside the loop, every so many images."""

    recipe: Recipe
    folder: Path
    parts: TrainingSetup
    state: State
    validation: HeldOutSet
    journal: Journal | None
    """Of the first process; the others write nothing but their parts of checkpoints."""
    meter: Dashboard | None
    trackers: Trackers | None
    saver: Saver
    watchdog: Watchdog
    before: dict[str, float] | None = None
    owed: bool = False
    """A save was due when the last steps had been left out: no state to return to."""

    def validate(self, position: RunPosition) -> dict[str, float] | None:
        settings = self.recipe.training.validation
        if not (self._due(position, settings.every_images) or self._last(position)):
            return None
        with self.watchdog.patient(), self.state.average.swapped_in():
            return self.validation.measure(self.parts.step, self.state.world)

    def record(self, row: LogRow) -> None:
        if self.journal is None or self.meter is None:
            return
        before = self.before if row.step == 1 else None
        self.journal.write(row, before)
        self.meter.row(row, before)
        if self.trackers is not None:
            self.trackers.row(row, before)

    def checkpoint(self, position: RunPosition, now: bool) -> None:
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
                self.saver.save(position, self._pieces(), wait=now, patient=patient, prune=prune)
            self.owed = False

    def go_back(self, state: State) -> None:
        """To the last good checkpoint's weights. What was seen since counts as left out, and is not seen again."""
        here, health = state.position, state.position.health
        with self.watchdog.patient(forever=True):
            self.saver.join(give_way=True)
        last = guards.good_before(here.step, health)
        good = state.world.once(lambda: checkpoint.latest(self.folder / "checkpoints", last))
        if good is None or len(health.returns) == guards.RETURNS:
            error = guards.no_way_back(here.step, health)
            error.told = not state.world.first
            raise error
        there = good.position
        log.warning(
            "%d steps in a row left out: back to the weights of step %d, leaving out steps %d to %d and their data",
            health.failed, there.step, there.step + 1, here.step,
        )  # fmt: skip
        state.world.together(lambda: _restore(state, self.parts.step.trained, good))
        returns = (*health.returns, (there.step, here.step))
        state.position = replace(
            here,
            seconds=there.seconds,
            skipped=there.skipped + here.step - there.step,
            health=replace(there.health, returns=returns),
        )
        if self.journal is not None:
            self.journal.undo(there.step, len(returns))
        if self.meter is not None:
            self.meter.reread()
        # At once, and without removing any: from here on it is decided, whatever ends the process next.
        with self.watchdog.patient(forever=True):
            self.saver.save(state.position, self._pieces(), prune=False)

    def _pieces(self) -> checkpoint.Pieces:
        """What this process adds to a checkpoint."""
        if not self.state.engine.writes:
            return {part: {} for part in checkpoint.PARTS}
        module, average = self.parts.step.trained, self.state.average
        return {
            "weights": {name: one for name, one in _weights(module).items() if self.state.engine.mine(name)},
            "average": {name: held(average.trained[name]).of(one) for name, one in average.tensors.items()},
            "optimizer": optimizer_tensors(self.state.optimizer, _names(module)),
        }

    def _preview(self, position: RunPosition) -> None:
        whole, settings = self.parts.components, self.recipe.training.preview
        if (
            not whole
            or not settings.prompts
            or not (self._due(position, settings.every_images) or self._last(position))
        ):
            return
        try:
            with self.watchdog.patient(), self.state.average.swapped_in():
                path = render_previews(
                    self.folder, settings, whole, position, self.journal, self.recipe.training.precision
                )
            if path is not None and self.trackers is not None:
                self.trackers.image(path, position.step)
        except OSError as error:
            log.warning("a preview cannot be written (%s); training goes on", error.strerror or error)

    def _due(self, position: RunPosition, every: int) -> bool:
        """Whether this step crossed a multiple of `every` images."""
        before = position.images - self.recipe.training.global_batch
        return position.images // every > before // every

    def _last(self, position: RunPosition) -> bool:
        return position.images >= self.recipe.training.images


def _trackers(folder: Path, recipe: Recipe) -> Trackers:
    return Trackers(folder, recipe.run.trackers, recipe.run.name, recipe.model_dump(mode="json"))


def _restore(state: State, module: torch.nn.Module, saved: checkpoint.Saved) -> None:
    average = state.average
    with reading("A checkpoint", saved.folder):
        with saved.tensors("weights") as stored:
            checkpoint.copy_into(_weights(module), stored)
        with saved.tensors("average") as stored:
            averages = {name: held(average.trained[name]).of(one) for name, one in average.tensors.items()}
            checkpoint.copy_into(averages, stored, some=True)
        state.optimizer.state.clear()
        with saved.tensors("optimizer") as stored:
            restore_optimizer(state.optimizer, _names(module), stored)


def _checkpoint_size(state: State, module: torch.nn.Module, settings: Optimizer) -> int:
    """Bytes that this process will add to each checkpoint; the optimizer has no memory yet."""
    engine = state.engine
    if not engine.writes:
        return 0
    mine = [one for name, one in _weights(module).items() if engine.mine(name)]
    per_weight = 4 + (MOMENT_BYTES[settings.moments] if isinstance(settings, AdamW) else 0)
    return sum(one.size + per_weight * one.local.numel() for one in mine)


def _weights(module: torch.nn.Module) -> dict[str, HeldRows]:
    return {name: held(parameter) for parameter, name in _names(module).items()}


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
    """Collects the signals that ask for an end; nothing is done inside a handler. A second Ctrl-C ends at once.

    A second SIGTERM does not: a scheduler and the launcher that it stops both send one, and who means it sends SIGKILL.
    """
    asked: list[int] = []
    previous: dict[int, object] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    for kind in kinds:
        previous[kind] = signal.signal(kind, handle)
    try:
        yield asked
    finally:
        for kind in kinds:
            signal.signal(kind, previous[kind])  # pyright: ignore[reportArgumentType]
