"""The verbs of `terminus bench`: how fast, against what, on which machine."""

from __future__ import annotations

import typer

from terminus import options

bench_app = typer.Typer(help="How fast, against what, on this machine.")


@bench_app.command("sample")
def bench_sample(
    model: options.ModelName,
    against: options.Against = None,
    size: options.PictureSize = None,
    steps: options.Steps = 28,
    batch: options.BenchBatch = 1,
    runs: options.BenchRuns = 3,
    compiled: options.Compile = "off",
    offload: options.Offload = "none",
    device: options.Device = "auto",
    out: options.BenchOut = None,
) -> None:
    """Pictures per second, part by part, beside diffusers' pipeline; MODEL may be random:sdxl."""
    from terminus.bench.sample import bench_sample as run_bench
    from terminus.model.running import running
    from terminus.sampling.requests import parse_pixels

    pixels = None if size is None else parse_pixels(size)
    run_bench(model, out, against, pixels, steps, batch, runs, device, running(compiled, offload))


@bench_app.command("codec")
def bench_codec(
    model: options.ModelName,
    size: options.PictureSize = None,
    device: options.Device = "auto",
    out: options.BenchOut = None,
) -> None:
    """Decode one large latent whole and in tiles: time, memory, difference."""
    from terminus.bench.codec import bench_codec as run_bench
    from terminus.sampling.requests import parse_pixels

    run_bench(model, out, None if size is None else parse_pixels(size), device=device)


@bench_app.command("train")
def bench_train(
    recipe: options.BenchRecipe,
    overrides: options.Overrides = None,
    against: options.Against = None,
    steps: options.BenchSteps = 10,
    runs: options.BenchRuns = 5,
    text: options.BenchText = "cached",
    average: options.BenchAverage = "both",
    out: options.BenchOut = None,
) -> None:
    """Images per second of the training loop on invented rows, part by part, beside a loop of diffusers' classes."""
    from terminus.bench.train import bench_train as run_bench

    run_bench(recipe, overrides or (), against, steps, runs, text, average, out)


@bench_app.command("load")
def bench_load(
    rows: options.BenchRows = 10**9, stored: options.BenchStored = 1000, out: options.BenchOut = None
) -> None:
    """Rows per second of the loader, and its memory, with the order of so many rows."""
    from terminus.bench.load import bench_load as run_bench

    run_bench(rows, stored, out=out)
