"""One bad sample costs its step and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from terminus.conditioning import MicroConditioning, Size
from terminus.data.batch import Batch
from terminus.data.loader import Loader
from terminus.data.order import Order
from terminus.training.loop import Hooks, State, run_loop
from terminus.training.monitor.journal import LogRow
from terminus.training.optim.ema import Average, ConstantEma
from terminus.training.optim.optimizer import AdamW, LearningRate, build_optimizer
from terminus.training.recipe import Training
from terminus.training.saving.checkpoint import RunPosition
from terminus.training.step import StepLoss

SETTINGS = Training(images=24, micro_batch=2, accumulation=2, learning_rate=LearningRate(max=0.1, min=0.1))


class Numbers:
    """Sixteen rows whose value is a function of their number."""

    def __init__(self, bad: frozenset[int] = frozenset()) -> None:
        self.bad = bad

    sizes = (16,)

    def read(self, bucket, rows, positions, epoch) -> Batch:
        values = torch.tensor(
            [[float("nan")] if p in self.bad else [float(r)] for r, p in zip(rows, positions, strict=True)]
        )
        whole = (MicroConditioning.uncropped(Size(8, 8)),) * len(rows)
        return Batch(tuple(positions), tuple(f"row {r}" for r in rows), ((),) * len(rows), whole, values, epoch)


@dataclass(frozen=True)
class Square:
    """A step small enough to follow by hand."""

    module: nn.Module

    @property
    def trained(self) -> nn.Module:
        return self.module

    def loss(self, batch: Batch, step: int) -> StepLoss:
        error = (self.module(batch.values) - 1.0).square().flatten(1).mean(1)
        return StepLoss(error, error)

    def seeded(self, seed: int) -> Square:
        return self


def run(
    bad: frozenset[int],
    without: int | None = None,
    alive: Callable[[], None] = lambda: None,
) -> tuple[State, list[LogRow], list[dict[str, torch.Tensor]]]:
    """The state at the end, the log, and the average after each step; `without` leaves one update out on purpose."""
    torch.manual_seed(0)
    step = Square(nn.Linear(1, 1))
    optimizer = build_optimizer(step.module, AdamW())
    state = State(RunPosition(0, 0, 0.0), Average(step.module, ConstantEma(half_life_images=8)), optimizer)
    rows: list[LogRow] = []
    averages: list[dict[str, torch.Tensor]] = []
    update, apply = state.average.update, optimizer.step

    def record(row: LogRow) -> None:
        rows.append(row)
        averages.append({name: value.clone() for name, value in state.average.tensors.items()})

    if without is not None:
        optimizer.step = lambda: None if state.position.step == without else apply()
        state.average.update = lambda images, n: None if images == 4 * (without + 1) else update(images, n)
    hooks = Hooks(lambda position: None, record, lambda position, now: None, lambda: False, lambda state: None, alive)
    loader = Loader(Numbers(bad), Order(0, (16,), 2), accumulation=2, threads=0)
    run_loop(step, state, loader, SETTINGS, hooks)
    return state, rows, averages


def test_a_step_with_a_nan_changes_nothing_and_names_its_sample(caplog: pytest.LogCaptureFixture):
    bad, rows, averages = run(frozenset({9}))
    same, others, _ = run(frozenset(), without=2)
    assert all(
        torch.equal(a, b) for a, b in zip(bad.average.trained.values(), same.average.trained.values(), strict=True)
    )
    assert all(torch.equal(bad.average.tensors[name], same.average.tensors[name]) for name in bad.average.tensors)
    assert all(torch.equal(averages[2][name], averages[1][name]) for name in averages[1])
    assert bad.position == replace(same.position, skipped=1, seconds=bad.position.seconds)
    assert len(rows) == len(others) == 6
    (name,) = rows[2].skipped
    assert name.startswith("row ")
    assert name in caplog.text
    assert not any(row.skipped for row in rows if row.step != 3)


def test_each_micro_batch_says_that_the_run_is_alive():
    beats: list[None] = []
    run(frozenset(), alive=lambda: beats.append(None))
    assert len(beats) == 6 * SETTINGS.accumulation
