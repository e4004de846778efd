"""`terminus bench sample`: how fast a model draws, part by part, and beside diffusers' pipeline in the same process.

The contenders take turns (A B A B ...), so that a machine that slows down slows both; medians are compared.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from terminus import runtime
from terminus.bench.contenders import Contender, Work, components_of, diffusers, ours
from terminus.bench.measure import NetworkSeconds, Spread, comparison, parts_of, peak_bytes, timed
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
    """Of one contender. Seconds are of a run of `batch` images."""

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
    """Of the UNet, while it runs."""
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
    components = components_of(model, where)
    native = components.native_pixels
    work = Work(size or Size(native, native), steps, batch)
    flops = unet_flops(components, work)
    theirs = diffusers(model, components, work, where, how) if against else None
    contenders = [ours(model, components, work, where, how), *([theirs] if theirs else [])]
    results = _alternate(contenders, work, runs, where, flops)
    _report(results, model, work, how.on(where), where, out)
    return results


def unet_flops(components: Components, work: Work) -> int:
    """Of one call on all images of the work, conditional and unconditional; counted, not run."""
    factor, rows, config = components.vae.factor, 2 * work.batch, components.unet.config
    tokens = components.text_encoders.tokenizer_1.model_max_length
    projection = cast(int, components.text_encoders.text_encoder_2.config.projection_dim)
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
        for index in range(1 + _WARM_UP + runs):
            for one in contenders:
                took = timed(one.run, device)
                first.setdefault(one.name, took)
                if index > _WARM_UP:
                    seconds[one.name].append(took)
                meter.advance(1)
        for _ in range(runs):
            for one in contenders:
                with parts_of(one.networks, device) as measured:
                    measured.whole = timed(one.run, device)
                parts[one.name].append(measured)
                meter.advance(1)
        for one in contenders:
            peaks[one.name] = peak_bytes(one.run, one.networks, device)
    return [
        _result(
            one, Spread.of(seconds[one.name]), _middle(parts[one.name]), peaks[one.name], first[one.name], work, flops
        )
        for one in contenders
    ]


def _middle(parts: list[NetworkSeconds]) -> NetworkSeconds:
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
    if out is not None:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "model": model,
            "work": asdict(work),
            "running": asdict(running),
            "environment": asdict(environment),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
            "results": [asdict(one) for one in results],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    title = (
        f"{model}: {work.batch} x {work.size.width}x{work.size.height}, {work.steps} steps, guidance {work.guidance:g},"
        f" {running.precision}, {environment.hardware}, torch {environment.packages['torch']}"
    )
    console = Console(highlight=False)
    console.print(title, soft_wrap=True)
    console.print(_table(results))


def _table(results: list[SampleResult]) -> Table:
    table, ratio = comparison([one.name for one in results]), len(results) == 2
    rows: list[tuple[str, str, list[float | None]]] = [
        ("seconds per image", ".3f", [one.seconds_per_image for one in results]),
        ("images per second", ".3f", [one.images_per_second for one in results]),
        ("run: median", ".3f", [one.run.median for one in results]),
        ("     fastest", ".3f", [one.run.low for one in results]),
        ("     slowest", ".3f", [one.run.high for one in results]),
        ("in it: text", ".3f", [one.text for one in results]),
        ("       UNet", ".3f", [one.unet for one in results]),
        ("       decoding", ".3f", [one.decode for one in results]),
        ("       the rest", ".3f", [one.rest for one in results]),
        ("UNet, TFLOP/s", ".3g", [one.tflops for one in results]),
        ("peak memory, GiB", ".2f", [one.peak_gib for one in results]),
        ("first run", ".2f", [one.first_run for one in results]),
    ]
    for name, form, values in rows:
        cells = ["-" if value is None else format(value, form) for value in values]
        first, second = values[0], values[-1]
        if ratio:
            cells.append(f"{first / second:.2f}" if first is not None and second else "-")
        table.add_row(name, *cells)
    return table
