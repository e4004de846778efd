"""`terminus bench sample`: how fast a model draws, part by part, and beside diffusers' pipeline in the same process.

The contenders take turns (A B A B ...), so that a machine that slows down slows both; medians are compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from terminus import runtime
from terminus.bench.contenders import Contender, Work, components_of, diffusers, ours
from terminus.bench.measure import (
    NetworkSeconds,
    Spread,
    add_row,
    comparison,
    parts_of,
    peak_bytes,
    save_result,
    timed,
)
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.execution import Running
from terminus.model.text import TextFeatures
from terminus.model.unet import UNet, predict
from terminus.progress import Meter

_WARM_UP = 1
"""Runs that are not counted; what is compiled needs one more."""


@dataclass(frozen=True)
class SampleResult:
    """Results of one contender. Seconds are of a run of `batch` images."""

    name: str
    run: Spread
    seconds_per_image: float
    images_per_second: float
    text: float
    unet: float
    decode: float
    rest: float
    """Tokenizer, solver, guidance, metadata: the same run less its networks."""
    unet_calls: int
    tflops: float
    """Speed of the UNet, while it runs."""
    peak_gib: float | None
    first_run: float
    """Seconds of the first run, with everything that is compiled and loaded once."""


def bench_sample(
    model: str,
    out: Path | None = None,
    against: str | None = None,
    size: Size | None = None,
    steps: int = 28,
    batch: int = 1,
    runs: int = 3,
    device: str = "auto",
    running: Running | None = None,
) -> list[SampleResult]:
    """Draws and measures; prints a table last, and writes `out` as JSON. `model` may be "random:sdxl"."""
    if min(steps, batch, runs) < 1:
        raise UserError(f"{steps} steps, batch {batch}, {runs} runs", rule="Each is at least 1")
    if against not in (None, "diffusers"):
        raise UserError(f"Against {against!r}", rule="Known: diffusers")
    where, how = runtime.pick_device(device), running or Running()
    # Both contenders draw with the same weights.
    components = components_of(model, where)
    native = components.native_pixels
    work = Work(size or Size(native, native), steps, batch)
    flops = unet_flops(components, work)
    # Theirs is made first: of random weights it copies our networks before they are prepared.
    theirs = diffusers(model, components, work, where, how) if against else None
    contenders = [ours(model, components, work, where, how), *([theirs] if theirs else [])]
    results = _alternate(contenders, work, runs, where, flops)
    _report(results, model, work, how.on(where), where, out)
    return results


def unet_flops(components: Components, work: Work) -> int:
    """FLOPs of one call on all images of the work, conditional and unconditional; counted, not run."""
    factor, rows, config = components.vae.factor, 2 * work.batch, components.unet.config
    tokens = components.text_encoders.tokenizer_1.model_max_length
    projection = cast(int, components.text_encoders.text_encoder_2.config.projection_dim)
    # On the meta device nothing is allocated or computed: FLOPs follow from shapes.
    with torch.device("meta"):
        unet = UNet.from_config(config)
        x = torch.empty(rows, config["in_channels"], work.size.height // factor, work.size.width // factor)
        text = TextFeatures(torch.empty(rows, tokens, config["cross_attention_dim"]), torch.empty(rows, projection))
        t, ids = torch.zeros(rows, dtype=torch.long), torch.empty(rows, 6)
    assert isinstance(unet, UNet)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predict(unet, x, t, text, ids)
    return counter.get_total_flops()


def _alternate(
    contenders: list[Contender], work: Work, runs: int, device: torch.device, flops: int
) -> list[SampleResult]:
    seconds: dict[str, list[float]] = {one.name: [] for one in contenders}
    first: dict[str, float] = {}
    parts: dict[str, list[NetworkSeconds]] = {one.name: [] for one in contenders}
    peaks: dict[str, int | None] = {}
    with Meter(Console(stderr=True), "runs", (1 + _WARM_UP + 2 * runs) * len(contenders)) as meter:
        # Whole runs; those that warm up are not counted.
        for index in range(1 + _WARM_UP + runs):
            for one in contenders:
                took = timed(one.run, device)
                first.setdefault(one.name, took)
                if index > _WARM_UP:
                    seconds[one.name].append(took)
                meter.advance(1)

        # The networks inside a run, in runs of their own: the device is waited for around each.
        for _ in range(runs):
            for one in contenders:
                with parts_of(one.networks, device) as measured:
                    measured.whole = timed(one.run, device)
                parts[one.name].append(measured)
                meter.advance(1)

        for one in contenders:
            peaks[one.name] = peak_bytes(one.run, one.networks, device)

    results: list[SampleResult] = []
    for one in contenders:
        run, middle = Spread.of(seconds[one.name]), _middle(parts[one.name])
        results.append(_result(one, run, middle, peaks[one.name], first[one.name], work, flops))
    return results


def _middle(parts: list[NetworkSeconds]) -> NetworkSeconds:
    """The run of median length, whose parts add up; medians of each part would not."""
    return sorted(parts, key=lambda one: one.whole)[len(parts) // 2]


def _result(
    one: Contender, run: Spread, parts: NetworkSeconds, peak: int | None, first: float, work: Work, flops: int
) -> SampleResult:
    inside = parts.seconds
    return SampleResult(
        name=one.name,
        run=run,
        seconds_per_image=run.median / work.batch,
        images_per_second=work.batch / run.median,
        text=inside["text"],
        unet=inside["unet"],
        decode=inside["decode"],
        rest=parts.whole - sum(inside.values()),
        unet_calls=parts.unet_calls,
        # a batch may be drawn in several parts, each with calls of its own: the work is the same
        tflops=flops * work.steps / inside["unet"] / 1e12,
        peak_gib=None if peak is None else peak / 2**30,
        first_run=first,
    )


def _report(
    results: list[SampleResult], model: str, work: Work, running: Running, device: torch.device, out: Path | None
) -> None:
    environment = runtime.environment(device)
    # The load of the machine is part of the result: a busy one shows in it.
    if out is not None:
        content = {
            "model": model,
            "work": asdict(work),
            "running": asdict(running),
            "environment": asdict(environment),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "results": [asdict(one) for one in results],
        }
        save_result(out, content)
    title = (
        f"{model}: {work.batch} x {work.size.width}x{work.size.height}, {work.steps} steps, guidance {work.guidance:g},"
        f" {running.precision}, {environment.hardware}, torch {environment.packages['torch']}"
    )
    console = Console(highlight=False)
    console.print(title, soft_wrap=True)
    console.print(_table(results))


_ROWS: tuple[tuple[str, str, Callable[[SampleResult], float | None]], ...] = (
    ("seconds per image", ".3f", lambda one: one.seconds_per_image),
    ("images per second", ".3f", lambda one: one.images_per_second),
    ("run: median", ".3f", lambda one: one.run.median),
    ("     fastest", ".3f", lambda one: one.run.low),
    ("     slowest", ".3f", lambda one: one.run.high),
    ("in it: text", ".3f", lambda one: one.text),
    ("       UNet", ".3f", lambda one: one.unet),
    ("       decoding", ".3f", lambda one: one.decode),
    ("       the rest", ".3f", lambda one: one.rest),
    ("UNet, TFLOP/s", ".3g", lambda one: one.tflops),
    ("peak memory, GiB", ".2f", lambda one: one.peak_gib),
    ("first run", ".2f", lambda one: one.first_run),
)
"""Label, format and number of each row."""


def _table(results: list[SampleResult]) -> Table:
    table = comparison([one.name for one in results])
    for label, form, number in _ROWS:
        add_row(table, label, form, [number(one) for one in results])
    return table
