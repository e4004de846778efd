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
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from terminus import runtime
from terminus.config.load import Loaded, dump
from terminus.data.loader import Loader
from terminus.data.mixing import order_of
from terminus.errors import Stopped, UserError
from terminus.training.assemble import TrainingSetup, assemble
from terminus.training.distributed.process_group import World, joined
from terminus.training.distributed.sharding import engage
from terminus.training.loop import State, run_loop
from terminus.training.monitor.energy import energy_measured
from terminus.training.monitor.facts import finished_images, write_facts
from terminus.training.monitor.outputs import NoOutputs, open_outputs
from terminus.training.monitor.sessions import begin_session
from terminus.training.monitor.watchdog import Watchdog
from terminus.training.monitor.weight_table import weight_table
from terminus.training.networks.execution import run_as
from terminus.training.optim.ema import Average
from terminus.training.optim.optimizer import build_optimizer
from terminus.training.optim.weight_formats import store_weights
from terminus.training.plan.memory import out_of_memory, refuse_what_cannot_fit
from terminus.training.preflight import check_agreement, check_multi_process, check_shared
from terminus.training.recipe import Recipe, Training
from terminus.training.run_hooks import RunHooks
from terminus.training.saving import checkpoint
from terminus.training.saving.atomic_files import whole_folder, write_whole, writing_file
from terminus.training.saving.checkpoint import RunPosition
from terminus.training.saving.run_identity import at_version, pin, pinned, recipe_digest, same_run
from terminus.training.saving.run_state import checkpoint_size, restore
from terminus.training.saving.saver import Saver, require_checkpoint_room
from terminus.training.steps.diffusion import DiffusionStep
from terminus.training.validation import build_validation

log = logging.getLogger("terminus")


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
        # What can be refused before anything is loaded.
        check_multi_process(recipe, world)
        if world.once(lambda: _nothing_to_do(folder, recipe)):
            return folder / "model"
        if world.first:
            _warn_of_software_bfloat16(recipe)
        world.together(lambda: refuse_what_cannot_fit(recipe, runtime.pick_device(recipe.run.device), world.size))

        # Networks and data, at the version of the data that the run has from its beginning to its end.
        version = world.once(lambda: pinned(folder, recipe).version)
        parts = world.together(lambda: assemble(recipe, at_version(recipe, version)))
        check_agreement(world, parts)

        # The folder is locked until the run ends or stops.
        with ExitStack() as stack:
            data = world.once(lambda: stack.enter_context(_begun(folder, recipe, parts, version)))
            check_shared(folder, world)
            return _train(recipe, folder, parts, started, world, data)


def _nothing_to_do(folder: Path, recipe: Recipe) -> bool:
    seen = finished_images(folder)
    over = seen is not None and seen >= recipe.training.images
    # Another recipe is an error even where there is nothing to do.
    same = same_run(folder, recipe, over)
    if over and same:
        log.info("nothing to do: %s has seen %d images, and %d are asked for", folder, seen, recipe.training.images)
    return over and same


def _warn_of_software_bfloat16(recipe: Recipe) -> None:
    if runtime.computes_in_software(runtime.pick_device(recipe.run.device), recipe.training.precision):
        log.warning("this CPU computes bfloat16 in software, ten times slower or worse: set training.precision=fp32")


@contextmanager
def _begun(folder: Path, recipe: Recipe, parts: TrainingSetup, version: int) -> Generator[Mapping[str, object]]:
    """Locks the run's folder and writes the recipe and the version of the data into it; yields `data.json`."""
    with _locked(folder):
        with writing_file("The run's folder", folder):
            write_whole(folder / "recipe.yaml", dump(recipe))
            data = pin(folder, parts.table, at_version(recipe, version))
        yield data


def check_recipe(recipe: Recipe) -> None:
    """Everything about the recipe that can be said before a model is loaded."""
    held_out = recipe.training.validation
    if held_out.every_images < recipe.training.global_batch:
        raise UserError(
            f"training.validation.every_images is {held_out.every_images}",
            rule=f"Held-out loss is measured between steps, and a step is {recipe.training.global_batch} images",
            fix="Set it to that or more",
        )


def _train(
    recipe: Recipe, folder: Path, parts: TrainingSetup, started: float, world: World, data: Mapping[str, object]
) -> Path:
    # The networks as they are trained, with their average and optimizer; as the newest checkpoint has them, if any.
    training, state = recipe.training, _state(recipe, parts, world)
    begun = _continued(folder, state, parts)
    _require_room(folder, training, state, parts)

    # The same held-out rows at every measurement; all other rows in an order that the seed decides.
    validation = build_validation(parts.held_out, training.validation.images, training.micro_batch)
    order = order_of(parts.train, recipe.data, training.seed, training.micro_batch)
    loader = Loader(parts.train, order, training.accumulation, training.loader_threads, world.rank, world.size)

    # Before the log is opened and cut back: it says when the session before ended.
    if world.first:
        with writing_file("The run's folder", folder):
            begin_session(folder, started, begun.step, data, recipe_digest(recipe))
        if begun.step == 0:
            _print_weights(parts)

    # From here on a signal ends the run in order, and the watchdog ends one that hangs.
    device = runtime.pick_device(recipe.run.device)
    with _signals() as asked, Watchdog() as watchdog:
        shown = open_outputs(recipe, folder, begun.step, begun.images, world.size) if world.first else None
        with (
            energy_measured(folder, device, started, world),
            shown or nullcontext(NoOutputs()) as outputs,
            Saver(folder / "checkpoints", training.checkpoints, outputs.sync, world) as saver,
        ):
            hooks = RunHooks(recipe, folder, parts, state, validation, outputs, saver, watchdog)
            if begun.step == 0:
                hooks.measure_before()
            try:
                # A signal from before the loop; whichever process has it, all stop.
                if world.any(bool(asked)):
                    raise Stopped
                run_loop(parts.step, state, loader, training, hooks.hooks(lambda: bool(asked)))
            except Stopped:
                raise Stopped(f"Stopped at {state.position.images} images; everything is saved.") from None
            except torch.OutOfMemoryError as error:
                raise out_of_memory(recipe, error, world.size) from error

        # The finished model is the average. A signal does not interrupt this: it is short, and then all is done.
        with watchdog.patient(), state.average.swapped_in(), state.engine.whole():
            world.once(lambda: _finish(recipe, folder, parts, state))
    return folder / "model"


def _print_weights(parts: TrainingSetup) -> None:
    """Prints how the loss is spread over the timesteps, for the user to see before the first step."""
    if isinstance(parts.step, DiffusionStep):
        table = weight_table(parts.step.objective, parts.step.density)
        Console(stderr=True, highlight=False).print("\n".join(table), markup=False)


def _state(recipe: Recipe, parts: TrainingSetup, world: World) -> State:
    training, module = recipe.training, parts.step.trained
    # Number format first, then compilation, then shards: each wraps what the one before made.
    store_weights(module, training.weights)
    run_as(module, training.activation_checkpointing, training.compile)
    engine = engage(module, training.parallel, world, runtime.pick_device(recipe.run.device))
    optimizer = build_optimizer(module, training.optimizer, training.seed, engine)
    average = Average(module, training.ema, engine)
    return State(RunPosition(step=0, images=0, seconds=0.0), average, optimizer, engine, world)


def _continued(folder: Path, state: State, parts: TrainingSetup) -> RunPosition:
    """The position where the run goes on: its newest checkpoint, which the state then is, or the beginning."""
    saved = state.world.once(lambda: checkpoint.latest(folder / "checkpoints"))
    if saved is not None:
        state.world.together(lambda: restore(state, parts.step.trained, saved))
        state.position = saved.position
        log.info("continuing at %d images", state.position.images)
    return state.position


def _require_room(folder: Path, training: Training, state: State, parts: TrainingSetup) -> None:
    # The saves to come, the last one included.
    saves = -(-(training.images - state.position.images) // training.checkpoints.every_images)
    size = sum(state.world.gather(checkpoint_size(state, parts.step.trained, training.optimizer)))
    state.world.once(lambda: require_checkpoint_room(folder / "checkpoints", size, training.checkpoints.keep, saves))


def _finish(recipe: Recipe, folder: Path, parts: TrainingSetup, state: State) -> None:
    with writing_file("The finished model", folder / "model"):
        with whole_folder(folder / "model") as target:
            parts.export(target, state.position.images)
        write_facts(folder, recipe, parts, state.position)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Two processes may not train in one folder. The lock dies with its process, so it is never stale."""
    with writing_file("The run's folder", folder):
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
        # The next Ctrl-C ends the process at once.
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
