"""`python -m benchmarks train`: how fast a recipe trains, part by part, and beside a loop of diffusers' classes.

Where both fit on the device the contenders take turns (A B A B ...), so that a machine that slows down slows both;
medians are compared. Nothing is read from a disk and nothing is written but the result.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.task import PARTS, Task, Trainer
from benchmarks.trainers import Ours, Theirs
from terminus import runtime
from terminus.bench.contenders import RANDOM, components_of
from terminus.bench.measure import Spread, add_row, comparison, peak_above, product_peak, save_result, timed
from terminus.config.load import load
from terminus.errors import UserError
from terminus.model.architecture import ARCHITECTURES
from terminus.model.components import Components
from terminus.progress import Meter
from terminus.training.objectives import Diffusion
from terminus.training.plan.cost import Cost, Kind, Shape, config_of, count_cost
from terminus.training.plan.memory import own_cut
from terminus.training.recipe import Recipe

Text = Literal["cached", "online"]
Average = Literal["both", "none"]
_STATE = 20
"""Bytes for each parameter of a contender, by which it is guessed whether two fit on one GPU."""
_WORTH = 0.01
"""Parts of a step below this share are shown and not compared."""
_RATE = "images per second"
_BASE = "nano"
"""The recipe whose settings are those of random:NAME, apart from the network and its resolution."""


@dataclass(frozen=True)
class TrainResult:
    """Results of one contender. Seconds are of one optimizer step."""

    name: str
    step: Spread
    turns: tuple[float, ...]
    """Seconds per step of each turn, in their order."""
    processor: Spread
    """Seconds of processor time, all threads: on a CPU what other programs hardly lengthen, on a GPU the overhead."""
    images_per_second: float
    tflops: float
    """Speed of the UNet's two passes, without what is computed twice."""
    mfu: float
    """The same as a share of what matrix products reach here."""
    hfu: float
    """With what is computed twice."""
    parts: dict[str, float]
    """Seconds of each part, of steps in which the device is waited for at every border."""
    peak_gib: float | None
    first_step: float
    """With everything that is compiled and allocated once."""
    loss: float
    """Loss of the last step."""


@dataclass(frozen=True)
class BenchLength:
    """The number of steps and turns that are measured."""

    steps: int
    """Optimizer steps of one turn."""
    runs: int
    """Turns of each contender; their median counts."""
    together: bool
    """Whether the contenders take turns, or one is measured after the other."""


@dataclass(frozen=True)
class Yardstick:
    """The speed of the device, and the work of one image."""

    peak: float
    """FLOP/s of large matrix products, measured."""
    cost: Cost
    """FLOPs of an image, nothing computed twice."""
    again: Cost
    """FLOPs of an image, as the recipe computes it."""


def bench_train(
    what: str,
    overrides: Sequence[str] = (),
    against: str | None = None,
    steps: int = 10,
    runs: int = 5,
    text: str = "cached",
    average: str = "both",
    out: Path | None = None,
) -> list[TrainResult]:
    """Trains on invented rows and measures; prints a table last, and writes `out` as JSON.

    `what` is a recipe with the objective diffusion, or "random:sdxl": random weights of an architecture.
    """
    if min(steps, runs) < 1:
        raise UserError(f"{steps} steps, {runs} runs", rule="Each is at least 1")
    for name, value, known in (
        ("--against", against or "diffusers", ("diffusers",)), ("--text", text, get_args(Text)),
        ("--average", average, get_args(Average)),
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"{name} {value}", rule=f"Known: {', '.join(known)}")
    recipe = recipe_of(what, overrides)
    device = runtime.pick_device(recipe.run.device)
    task = Task(recipe, _networks(recipe, device), device, text == "cached", average == "both")
    makers: list[Callable[[Task], Trainer]] = [Ours, *([Theirs] if against else [])]
    yardstick = measure_device(task)
    turns = BenchLength(steps, runs, len(makers) > 1 and _both_fit(yardstick.cost.parameters, device))
    with Meter(Console(stderr=True), "turns", (2 * runs + 2) * len(makers)) as meter:
        results = _take_turns(task, makers, turns, yardstick, meter)
    _report(results, what, task, turns, yardstick, out)
    return results


def recipe_of(what: str, overrides: Sequence[str]) -> Recipe:
    """The recipe that is measured; UserError for one that trains no UNet alone."""
    if what.startswith(RANDOM):
        name = what.removeprefix(RANDOM)
        if name not in ARCHITECTURES:
            raise UserError(f"There is no architecture {name!r}", rule=f"Known: {', '.join(sorted(ARCHITECTURES))}")
        pixels = ARCHITECTURES[name].vae.pixels
        ours = ["model.start=null", f"model.architecture={name}", f"data.resolution={pixels}"]
        recipe = load(_BASE, Recipe, [*ours, *overrides]).value
    else:
        recipe = load(what, Recipe, overrides).value
    if not isinstance(recipe.objective, Diffusion) or recipe.objective.train_text_encoders != "none":
        raise UserError(
            "This recipe trains something else than the UNet alone",
            where=what,
            rule="The benchmark measures the objective diffusion with objective.train_text_encoders: none",
        )
    return recipe


def measure_device(task: Task) -> Yardstick:
    """Counts the work of an image on the meta device, and measures a large matrix product."""
    training, components = task.recipe.training, task.components()
    side = task.recipe.data.resolution // components.vae.factor
    kind: Kind = "cuda" if task.device.type == "cuda" else "cpu"
    tokens = components.text_encoders.tokenizer_1.model_max_length
    shape = Shape(config_of(components.unet), side, side, tokens, training.precision, training.weights, kind)
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    return Yardstick(
        product_peak(task.device, dtype),
        count_cost(shape, "none"),
        count_cost(shape, training.activation_checkpointing),
    )


def _networks(recipe: Recipe, device: torch.device) -> Callable[[], Components]:
    start = recipe.model.start
    return partial(components_of, start or f"{RANDOM}{recipe.model.architecture}", device)


def _both_fit(parameters: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    torch.cuda.empty_cache()
    return 2 * _STATE * parameters < 0.5 * torch.cuda.mem_get_info(device)[0]


@dataclass
class _Measured:
    """Measurements of one contender's turns."""

    name: str
    first: float = 0.0
    seconds: list[float] = field(default_factory=list[float])
    processor: list[float] = field(default_factory=list[float])
    parts: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    peak: int | None = None
    loss: float = 0.0


def _take_turns(
    task: Task, makers: list[Callable[[Task], Trainer]], turns: BenchLength, yardstick: Yardstick, meter: Meter
) -> list[TrainResult]:
    groups = [makers] if turns.together else [[maker] for maker in makers]
    results: list[TrainResult] = []
    for group in groups:
        results += [_result(one, task, turns, yardstick) for one in _group(task, group, turns, meter)]
        gc.collect()
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def _group(task: Task, makers: list[Callable[[Task], Trainer]], turns: BenchLength, meter: Meter) -> list[_Measured]:
    """Contenders that are on the device at the same time."""
    pairs: list[tuple[Trainer, _Measured]] = []
    for maker in makers:
        trainer = maker(task)
        pairs.append((trainer, _Measured(trainer.name)))

    # Warm up: the first step compiles and allocates, and is reported alone.
    for trainer, measured in pairs:
        measured.first = timed(lambda one=trainer: one.run(1), task.device)
        trainer.run(min(2, turns.steps))
        meter.advance(1)

    # Whole steps, nothing waited for inside them.
    for _ in range(turns.runs):
        for trainer, measured in pairs:
            before = time.process_time()
            measured.seconds.append(timed(lambda one=trainer: one.run(turns.steps), task.device) / turns.steps)
            measured.processor.append((time.process_time() - before) / turns.steps)
            meter.advance(1)

    # The parts of a step, in runs of their own: the device is waited for at every border, which costs time.
    for _ in range(turns.runs):
        for trainer, measured in pairs:
            with trainer.laps.on():
                trainer.run(turns.steps)
            measured.parts.append({name: value / turns.steps for name, value in trainer.laps.seconds.items()})
            meter.advance(1)

    # One more step for the peak of memory.
    for trainer, measured in pairs:
        above = peak_above(lambda one=trainer: one.run(1), task.device)
        measured.peak = None if above is None else above + trainer.state_bytes()
        measured.loss = trainer.losses[-1]
        meter.advance(1)
    return [measured for _, measured in pairs]


def _result(one: _Measured, task: Task, turns: BenchLength, yardstick: Yardstick) -> TrainResult:
    step = Spread.of(one.seconds)
    rate = task.recipe.training.global_batch / step.median
    middle = sorted(one.parts, key=lambda parts: sum(parts.values()))[turns.runs // 2]
    return TrainResult(
        name=one.name,
        step=step,
        turns=tuple(one.seconds),
        processor=Spread.of(one.processor),
        images_per_second=rate,
        tflops=rate * yardstick.cost.total / 1e12,
        mfu=rate * yardstick.cost.total / yardstick.peak,
        hfu=rate * yardstick.again.total / yardstick.peak,
        parts=middle,
        peak_gib=None if one.peak is None else one.peak / 2**30,
        first_step=one.first,
        loss=one.loss,
    )


def _report(
    results: list[TrainResult], what: str, task: Task, turns: BenchLength, yardstick: Yardstick, out: Path | None
) -> None:  # fmt: skip
    environment, training = runtime.environment(task.device), task.recipe.training
    if out is not None:
        save_result(out, _content(results, what, task, turns, yardstick))
    compiled = ", compiled" if training.compile else ""
    console = Console(highlight=False)
    console.print(
        f"{what}: {training.micro_batch} x {training.accumulation} images of {task.recipe.data.resolution} pixels, "
        f"{training.precision}, checkpointing {training.activation_checkpointing}{compiled}, text "
        f"{'cached' if task.cached_text else 'online'} and {'an average' if task.keep_average else 'no average'}, "
        f"{environment.hardware}, torch {environment.packages['torch']}; "
        f"{yardstick.cost.total / 1e12:.4g} TFLOP per image, products reach {yardstick.peak / 1e12:.4g} TFLOP/s",
        soft_wrap=True,
    )
    console.print(_table(results))


def _content(
    results: list[TrainResult], what: str, task: Task, turns: BenchLength, yardstick: Yardstick
) -> dict[str, object]:
    """Everything that was measured, and what it was measured on, for the JSON file."""
    training = task.recipe.training
    content: dict[str, object] = {
        "what": what,
        "pixels": task.recipe.data.resolution,
        "text": "cached" if task.cached_text else "online",
        "average": "both" if task.keep_average else "none",
        "turns": asdict(turns),
        "training": training.model_dump(mode="json", exclude={"checkpoints", "validation", "preview", "images"}),
        "environment": asdict(runtime.environment(task.device)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "product_tflops": yardstick.peak / 1e12,
        "tflop_per_image": {"model": yardstick.cost.total / 1e12, "computed": yardstick.again.total / 1e12},
        "parameters": yardstick.cost.parameters,
        "planned_gib": _planned(task),
        "results": [asdict(one) for one in results],
        "ratio": None,
        "ratio_of_turns": None,
    }
    if len(results) == 2:
        ours, theirs = results
        content["ratio"] = ours.images_per_second / theirs.images_per_second
        content["ratio_of_turns"] = asdict(of_turns(results))
    return content


def of_turns(results: list[TrainResult]) -> Spread:
    """The first contender's speed over the second's, turn by turn: what slows a whole machine slows both."""
    return Spread.of([second / first for first, second in zip(results[0].turns, results[1].turns, strict=True)])


def _planned(task: Task) -> float | None:
    """GiB that the planner expects at our peak; None on a CPU, which it does not plan for."""
    if task.device.type != "cuda":
        return None
    return own_cut(task.recipe, float("inf")).memory.total / 2**30


_SPEED: tuple[tuple[str, str, Callable[[TrainResult], float]], ...] = (
    (_RATE, ".2f", lambda one: one.images_per_second),
    ("UNet, TFLOP/s", ".3g", lambda one: one.tflops),
    ("MFU, %", ".1f", lambda one: 100 * one.mfu),
    ("HFU, %", ".1f", lambda one: 100 * one.hfu),
    ("step: median, s", ".4f", lambda one: one.step.median),
    ("      fastest", ".4f", lambda one: one.step.low),
    ("      slowest", ".4f", lambda one: one.step.high),
    ("processor time, s", ".4f", lambda one: one.processor.median),
)
"""Label, format and number of each row above the parts of a step."""


def _table(results: list[TrainResult]) -> Table:
    table = comparison([one.name for one in results])
    for label, form, number in _SPEED:
        add_row(table, label, form, [number(one) for one in results])
        if label == _RATE and len(results) == 2:
            ratio = of_turns(results)
            table.add_row("  turn by turn", "", "", f"{ratio.low:.2f} .. {ratio.median:.2f} .. {ratio.high:.2f}")
    worth = _WORTH * results[0].step.median
    for name in PARTS:
        label = f"in it: {name}" if name == PARTS[0] else f"       {name}"
        seconds = [one.parts[name] for one in results]
        add_row(table, label, ".4f", seconds, with_ratio=max(seconds) >= worth)
    add_row(table, "peak memory, GiB", ".2f", [one.peak_gib for one in results])
    add_row(table, "first step", ".2f", [one.first_step for one in results])
    return table
