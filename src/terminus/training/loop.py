"""The only training loop.

What is trained is a `Step`; what happens every N images is a plain callable beside the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from terminus.data.loader import Batch, Loader
from terminus.errors import Stopped, UserError
from terminus.training import guards
from terminus.training.distributed.process_group import World
from terminus.training.distributed.sharding import Alone, Engine
from terminus.training.guards import Health, Reason
from terminus.training.monitor.journal import LogRow, by_band
from terminus.training.optim.clipping import clip
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
    """What the run wants to know and do; all but `alive` are called after the step they are told about."""

    validate: Callable[[RunPosition], dict[str, float] | None]
    record: Callable[[LogRow], None]
    checkpoint: Callable[[RunPosition, bool], None]
    """The flag asks for a save now, whatever the interval says."""
    stop_asked: Callable[[], bool]
    go_back: Callable[[State], None]
    """Restores the last good checkpoint; what was done and seen since is left out, and the position stays."""
    alive: Callable[[], None]
    """A micro-batch is done."""


def run_loop(step: TrainingStep, state: State, loader: Loader, settings: Training, hooks: Hooks) -> None:
    """Trains until `settings.images` have been seen. Raises `Stopped` when asked to, with everything saved."""
    last = -(-settings.images // settings.global_batch)
    said: set[str] = set()
    step.trained.train()
    with closing(loader.steps(state.position.step, last)) as stream:
        started = time.perf_counter()
        for batches in _or_saved(stream, state, hooks):
            rate = learning_rate(state.position.images, settings.learning_rate, settings.images)
            own = _accumulate(step, batches, state.position.step, hooks.alive)
            state.engine.average_gradients()
            norm = _gradient_norm(step, settings.optimizer.clip_norm)
            # From here on every process knows what one alone would know, and so decides alike.
            losses = state.world.interleaved([part.on_cpu() for part in own])
            told = state.world.gather((norm, [name for batch in batches for name in batch.damaged]))
            norm, damaged = told[0][0], tuple(sorted({name for _, names in told for name in names}))
            loss = torch.cat([part.weighted for part in losses]).double().mean().item()
            reason = guards.judge(loss, norm, state.position.health, settings.guards)
            if reason is None:
                _apply(state, rate)
            step.trained.zero_grad(set_to_none=True)  # also what another process's optimizer moves
            seconds = time.perf_counter() - started
            skipped = _culprits(state.world.interleaved([batch.keys for batch in batches]), losses) if reason else ()
            health = guards.after(state.position.health, loss, norm, reason, settings.guards)
            state.position = _advance(state.position, settings.global_batch, seconds, health)
            if reason:
                _left_out(state.position, reason, skipped)
            else:
                state.average.update(state.position.images, settings.global_batch)
            validation = hooks.validate(state.position)
            epoch = loader.order[state.position.step * loader.accumulation - 1].epoch
            row = _row(state.position, epoch, losses, loss, rate, norm, validation, seconds)
            processes = state.world.size if state.world.size > 1 else None
            hooks.record(replace(row, skipped=skipped, reason=reason, processes=processes, damaged=damaged))
            _say_damaged(damaged, said)
            if guards.must_go_back(health):
                hooks.go_back(state)
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


def _culprits(batches: list[tuple[str, ...]], losses: list[StepLoss]) -> tuple[str, ...]:
    keys = [key for batch in batches for key in batch]
    finite = torch.cat([part.weighted for part in losses]).isfinite().tolist()
    return tuple(key for key, good in zip(keys, finite, strict=True) if not good) or tuple(keys)


def _left_out(position: RunPosition, reason: Reason, skipped: tuple[str, ...]) -> None:
    named = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    what = "is not finite" if reason == "not finite" else "is far above the steps before"
    log.warning("step %d is left out: loss or gradient %s; samples: %s", position.step, what, named)


def _say_damaged(damaged: Iterable[str], said: set[str]) -> None:
    """Once for each row: it comes again in every epoch."""
    for name in damaged:
        if name not in said:
            said.add(name)
            log.warning("damaged in the store, so that another row takes its place: %s", name)


def _accumulate(step: TrainingStep, batches: list[Batch], number: int, alive: Callable[[], None]) -> list[StepLoss]:
    losses: list[StepLoss] = []
    for batch in batches:
        result = step.loss(batch, number)
        (result.weighted.mean() / len(batches)).backward()
        losses.append(StepLoss(result.weighted.detach(), result.error.detach(), result.t))
        alive()
    return losses


def _gradient_norm(step: TrainingStep, limit: float) -> float:
    return clip(step.trained.parameters(), limit)


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
    position: RunPosition, epoch: int, losses: list[StepLoss], loss: float, rate: float, norm: float,
    validation: dict[str, float] | None, seconds: float,
) -> LogRow:  # fmt: skip
    error = torch.cat([part.error for part in losses])
    steps: Iterator[Tensor] = (part.t for part in losses if part.t is not None)
    t = list(steps)
    return LogRow(
        step=position.step,
        images_seen=position.images,
        epoch=epoch,
        loss=loss,
        error=error.double().mean().item(),
        learning_rate=rate,
        gradient_norm=norm,
        bands=by_band(error, torch.cat(t)) if t else {},
        seconds=seconds,
        images_per_second=len(error) / seconds,
        validation=validation,
    )
