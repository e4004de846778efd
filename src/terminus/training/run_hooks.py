"""Hooks beside the loop, every so many images: validation, log, previews, checkpoints, going back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from terminus.training import guards
from terminus.training.assemble import TrainingSetup
from terminus.training.loop import Hooks, State
from terminus.training.monitor.journal import LogRow
from terminus.training.monitor.outputs import Outputs
from terminus.training.monitor.watchdog import Watchdog
from terminus.training.preview import render_previews
from terminus.training.recipe import Recipe
from terminus.training.saving import checkpoint
from terminus.training.saving.checkpoint import RunPosition
from terminus.training.saving.run_state import checkpoint_pieces, restore
from terminus.training.saving.saver import Saver
from terminus.training.validation import HeldOutSet

log = logging.getLogger("terminus")


@dataclass
class RunHooks:
    """The hooks of one run. Several processes that train together call them alike."""

    recipe: Recipe
    folder: Path
    parts: TrainingSetup
    state: State
    validation: HeldOutSet
    outputs: Outputs
    saver: Saver
    watchdog: Watchdog
    before: dict[str, float] | None = None
    """Held-out loss before the first step, which the first row carries."""
    owed: bool = False
    """A save was due when the last steps had been left out: no state to return to."""

    def hooks(self, stop_asked: Callable[[], bool]) -> Hooks:
        """Them all, as the loop takes them."""
        return Hooks(
            validate=self.validate,
            record=self.record,
            checkpoint=self.checkpoint,
            stop_asked=stop_asked,
            go_back=self.go_back,
            alive=self.watchdog.alive,
        )

    def measure_before(self) -> None:
        """Measures the held-out loss of the weights that the run begins from."""
        self.before = self.validation.measure(self.parts.step, self.state.world)

    def validate(self, position: RunPosition) -> dict[str, float] | None:
        """The held-out loss of the averaged weights where it is due, and after the last step; else None."""
        settings = self.recipe.training.validation
        if not self._due_or_last(position, settings.every_images):
            return None
        with self.watchdog.patient(), self.state.average.swapped_in():
            return self.validation.measure(self.parts.step, self.state.world)

    def record(self, row: LogRow) -> None:
        """Passes the row of a step to the log and all who show it."""
        self.outputs.row(row, self.before if row.step == 1 else None)

    def checkpoint(self, position: RunPosition, now: bool) -> None:
        """Draws previews and saves the state, where they are due; `now` saves in any case, and waits for the disk."""
        settings = self.recipe.training
        self.saver.check()
        self._preview(position)

        # A state within a row of bad steps is saved only if it must be: nobody would want to return to it.
        self.owed = self.owed or self._due(position, settings.checkpoints.every_images)
        sound = position.health.failed == 0
        if not (now or (self.owed and sound)):
            return
        # At the end there is nothing else to do than to wait for room; after a signal there is no time for it.
        patient = self._last(position) or not now
        # Just after a return older checkpoints stay, in case the run has to go back further.
        returned = position.health.returns and position.health.returns[-1][1] == position.step
        with self.watchdog.patient(forever=True):
            self.saver.save(position, self._pieces(), wait=now, patient=patient, prune=sound and not returned)
        self.owed = False

    def go_back(self, state: State) -> None:
        """Restores the last good checkpoint. What was seen since counts as left out, and is not seen again."""
        # A checkpoint that is being written may be the one to return to.
        here, health = state.position, state.position.health
        with self.watchdog.patient(forever=True):
            self.saver.join(give_way=True)
        last = guards.good_before(here.step, health)
        good = state.world.once(lambda: checkpoint.latest(self.folder / "checkpoints", last))
        if good is None or len(health.returns) == guards.RETURNS:
            error = guards.no_way_back(here.step, health)
            error.told = not state.world.first
            raise error

        # Its weights, average and optimizer, but the steps and images of now: order and rate go on.
        there = good.position
        log.warning(
            "%d steps in a row left out: back to the weights of step %d, leaving out steps %d to %d and their data",
            health.failed, there.step, there.step + 1, here.step,
        )  # fmt: skip
        state.world.together(lambda: restore(state, self.parts.step.trained, good))
        returns = (*health.returns, (there.step, here.step))
        state.position = replace(
            here,
            seconds=there.seconds,
            skipped=there.skipped + here.step - there.step,
            health=replace(there.health, returns=returns),
        )
        self.outputs.undo(there.step, len(returns))

        # At once, and without removing any: from here on it is decided, whatever ends the process next.
        with self.watchdog.patient(forever=True):
            self.saver.save(state.position, self._pieces(), prune=False)

    def _pieces(self) -> checkpoint.Pieces:
        return checkpoint_pieces(self.state, self.parts.step.trained)

    def _preview(self, position: RunPosition) -> None:
        components, settings = self.parts.components, self.recipe.training.preview
        if components is None or not settings.prompts or not self._due_or_last(position, settings.every_images):
            return
        precision = self.recipe.training.precision
        try:
            with self.watchdog.patient(), self.state.average.swapped_in():
                render_previews(self.folder, settings, components, position, self.outputs, precision)
        except OSError as error:
            log.warning("a preview cannot be written (%s); training goes on", error.strerror or error)

    def _due(self, position: RunPosition, every: int) -> bool:
        """Whether this step crossed a multiple of `every` images."""
        before = position.images - self.recipe.training.global_batch
        return position.images // every > before // every

    def _last(self, position: RunPosition) -> bool:
        return position.images >= self.recipe.training.images

    def _due_or_last(self, position: RunPosition, every: int) -> bool:
        return self._due(position, every) or self._last(position)
