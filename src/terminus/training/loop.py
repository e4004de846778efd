"""The only training loop.

What is trained is a `TrainingStep`; what happens every N images is a plain callable beside the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain

import torch

from terminus.data.batch import Batch
from terminus.data.loader import Loader
from terminus.errors import Stopped, UserError
from terminus.training import guards
from terminus.training.distributed.process_group import World
from terminus.training.distributed.sharding import Alone, Engine
from terminus.training.guards import Health, Reason
from terminus.training.monitor.journal import LogRow, by_band
from terminus.training.optim.clipping import clip_gradient_norm
from terminus.training.optim.ema import Average
from terminus.training.optim.optimizer import learning_rate, set_rate
from terminus.training.recipe import Training
from terminus.training.saving.checkpoint import RunPosition
from terminus.training.step import StepLoss, TrainingStep

log = logging.getLogger("terminus")


@dataclass
class State:
    """Everything that changes while training."""

    position: RunPosition
    average: Average
    optimizer: torch.optim.Optimizer
    engine: Engine = field(default_factory=Alone)
    """How the processes exchange gradients and weights."""
    world: World = field(default_factory=World)


@dataclass(frozen=True)
class Hooks:
    """The run's callables beside the loop; all but `alive` are called after the step they are told about."""

    validate: Callable[[RunPosition], dict[str, float] | None]
    record: Callable[[LogRow], None]
    checkpoint: Callable[[RunPosition, bool], None]
    """The flag asks for a save now, whatever the interval says."""
    stop_asked: Callable[[], bool]
    go_back: Callable[[State], None]
    """Restores the last good checkpoint; what was done and seen since is left out, and the position stays."""
    alive: Callable[[], None]
    """A micro-batch is done."""


@dataclass(frozen=True)
class _Measured:
    """Numbers of one step, gathered from all processes."""

    losses: list[StepLoss]
    loss: float
    """Mean of the weighted losses."""
    norm: float
    """Norm of the gradient before it was clipped."""
    damaged: tuple[str, ...]
    """Rows of the store that could not be used."""


def run_loop(step: TrainingStep, state: State, loader: Loader, settings: Training, hooks: Hooks) -> None:
    """Trains until `settings.images` have been seen. Raises `Stopped` when asked to, with everything saved."""
    # Rounded up: steps are whole.
    last = -(-settings.images // settings.global_batch)
    reported: set[str] = set()
    step.trained.train()
    with closing(loader.steps(state.position.step, last)) as stream:
        started = time.perf_counter()
        for batches in _or_saved(stream, state, hooks):
            # Forward and backward: the gradients of this process's micro-batches add up.
            rate = learning_rate(state.position.images, settings.learning_rate, settings.images)
            own = _accumulate(step, batches, state.position.step, hooks.alive)

            # One gradient for all processes, clipped to the norm that is allowed.
            state.engine.average_gradients()
            norm = clip_gradient_norm(step.trained.parameters(), settings.optimizer.clip_norm)

            # From here on every process knows what one alone would know, and so decides alike.
            measured = _gathered(state.world, own, norm, batches)
            reason = guards.reason_to_skip(measured.loss, measured.norm, state.position.health, settings.guards)

            # The optimizer's step. A bad one is left out: it changes no weight, no moment and no average.
            if reason is None:
                _apply(state, rate)
            step.trained.zero_grad(set_to_none=True)  # also what another process's optimizer moves
            seconds = time.perf_counter() - started

            # Progress counts either way, so that rate, order and random numbers stay functions of it.
            health = guards.after(state.position.health, measured.loss, measured.norm, reason, settings.guards)
            state.position = _advance(state.position, settings.global_batch, seconds, health)
            skipped: tuple[str, ...] = ()
            if reason is None:
                state.average.update(state.position.images, settings.global_batch)
            else:
                skipped = _culprits(state.world.interleaved([batch.keys for batch in batches]), measured.losses)
                _warn_skipped(state.position, reason, skipped)

            # Held-out loss where it is due, and the row of the log.
            validation = hooks.validate(state.position)
            epoch = loader.order[state.position.step * loader.accumulation - 1].epoch
            row = _row(state, measured, epoch, rate, seconds, validation)
            hooks.record(replace(row, skipped=skipped, reason=reason))
            _warn_damaged(measured.damaged, reported)

            # Too many bad steps in a row: the last good weights again.
            if guards.must_go_back(health):
                hooks.go_back(state)

            # Previews and checkpoints where they are due; after a signal, a checkpoint at once and then the end.
            stop = state.world.any(hooks.stop_asked()) and state.position.step < last
            hooks.checkpoint(state.position, stop or state.position.step == last)
            if stop:
                raise Stopped
            # The wait for the next batch belongs to its step; measuring and saving do not.
            started = time.perf_counter()


def _or_saved(stream: Iterator[list[Batch]], state: State, hooks: Hooks) -> Iterator[list[Batch]]:
    """The batches of each step; where the data can no longer be read, what was done until then is saved first."""
    begun = state.position.step
    try:
        yield from stream
    except UserError:
        # Of several processes the others are in the middle of a step.
        if state.world.size == 1 and state.position.step > begun:
            hooks.checkpoint(state.position, True)
        raise


def _gathered(world: World, own: list[StepLoss], norm: float, batches: list[Batch]) -> _Measured:
    # In the order in which one process alone would have them: then their mean has the same bits.
    losses = world.interleaved([part.on_cpu() for part in own])
    damaged_here = [*chain.from_iterable(batch.damaged for batch in batches)]
    norms, damaged = zip(*world.gather((norm, damaged_here)), strict=True)
    loss = torch.cat([part.weighted for part in losses]).double().mean().item()
    # The norm is that of the averaged gradient: every process has the same, and the first one's is taken.
    return _Measured(losses, loss, norms[0], tuple(sorted(set(chain.from_iterable(damaged)))))


def _culprits(batches: list[tuple[str, ...]], losses: list[StepLoss]) -> tuple[str, ...]:
    """Keys of the samples whose loss is not finite; of all samples if that is true of none."""
    keys = [*chain.from_iterable(batches)]
    finite = torch.cat([part.weighted for part in losses]).isfinite().tolist()
    return tuple(key for key, good in zip(keys, finite, strict=True) if not good) or tuple(keys)


def _warn_skipped(position: RunPosition, reason: Reason, skipped: tuple[str, ...]) -> None:
    named = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    what = "is not finite" if reason == "not finite" else "is far above the steps before"
    log.warning("step %d is left out: loss or gradient %s; samples: %s", position.step, what, named)


def _warn_damaged(damaged: Iterable[str], reported: set[str]) -> None:
    """Once for each row, which comes again in every epoch."""
    for name in damaged:
        if name not in reported:
            reported.add(name)
            log.warning("damaged in the store, so that another row takes its place: %s", name)


def _accumulate(step: TrainingStep, batches: list[Batch], number: int, alive: Callable[[], None]) -> list[StepLoss]:
    losses: list[StepLoss] = []
    for batch in batches:
        result = step.loss(batch, number)
        # Micro-batches are equally large, so the mean of their means is the mean over the global batch.
        (result.weighted.mean() / len(batches)).backward()
        losses.append(StepLoss(result.weighted.detach(), result.error.detach(), result.t))
        alive()
    return losses


def _apply(state: State, rate: float) -> None:
    set_rate(state.optimizer, rate)
    state.optimizer.step()
    state.engine.share_weights()


def _advance(position: RunPosition, images: int, seconds: float, health: Health) -> RunPosition:
    return replace(
        position,
        step=position.step + 1,
        images=position.images + images,
        seconds=position.seconds + seconds,
        skipped=position.skipped + (health.failed > 0),
        health=health,
    )


def _row(
    state: State, measured: _Measured, epoch: int, rate: float, seconds: float, validation: dict[str, float] | None
) -> LogRow:
    error = torch.cat([part.error for part in measured.losses])
    t = [part.t for part in measured.losses if part.t is not None]
    return LogRow(
        step=state.position.step,
        images_seen=state.position.images,
        epoch=epoch,
        loss=measured.loss,
        error=error.double().mean().item(),
        learning_rate=rate,
        gradient_norm=measured.norm,
        bands=by_band(error, torch.cat(t)) if t else {},
        seconds=seconds,
        images_per_second=len(error) / seconds,
        validation=validation,
        processes=state.world.size if state.world.size > 1 else None,
        damaged=measured.damaged,
    )
