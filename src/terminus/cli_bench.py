"""The verbs of `terminus bench`: how fast models draw, against what, on which machine. Training is measured by
`python -m benchmarks` in a clone.

Each says what is wrong with its arguments before torch is imported.
"""

from __future__ import annotations

from pathlib import Path

import typer

from terminus import options
from terminus.cli_data import loading
from terminus.errors import UserError

bench_app = typer.Typer(help="How fast models draw on this machine, and against what.")


def check_bench(against: str | None, out: Path | None, **counts: int) -> None:
    """Checks the options that the verbs share."""
    from terminus.model.choices import check_choice
    from terminus.sampling.arguments import check_folder

    if against is not None:
        check_choice("--against", against, ("diffusers",))
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} {count}", rule="It is at least 1")
    # Now, and not after minutes of measuring.
    if out is not None and out.is_dir():
        raise UserError("This is a folder", where=str(out), rule="The numbers are written into a file", fix="Name one")
    if out is not None:
        check_folder(out.parent)


def _check_model(name: str) -> None:
    from terminus.model.naming import find_whole

    if not name.startswith("random:"):  # which of them there are is said by what makes them
        find_whole(name)


@bench_app.command("sample")
def bench_sample(
    model: options.ModelName,
    against: options.Against = None,
    size: options.ImageSize = None,
    steps: options.Steps = 28,
    batch: options.BenchBatch = 1,
    runs: options.BenchRuns = 3,
    compiled: options.Compile = "off",
    offload: options.Offload = "none",
    device: options.Device = "auto",
    out: options.BenchOut = None,
) -> None:
    """Images per second, part by part, beside diffusers' pipeline; MODEL may be random:sdxl."""
    from terminus.model.choices import check_running
    from terminus.sampling.shapes import parse_pixels

    pixels = None if size is None else parse_pixels(size)
    check_running(compiled, offload, device)
    check_bench(against, out, steps=steps, batch=batch, runs=runs)
    _check_model(model)
    with loading():
        from terminus.bench.sample import bench_sample as run_bench
        from terminus.model.execution import running

    run_bench(model, out, against, pixels, steps, batch, runs, device, running(compiled, offload))


@bench_app.command("vae")
def bench_vae(
    model: options.ModelName,
    size: options.ImageSize = None,
    device: options.Device = "auto",
    out: options.BenchOut = None,
) -> None:
    """Decode one large latent whole and in tiles: time, memory, difference."""
    from terminus.model.choices import check_running
    from terminus.sampling.shapes import parse_pixels

    pixels = None if size is None else parse_pixels(size)
    check_running("off", "none", device)
    check_bench(None, out)
    _check_model(model)
    with loading():
        from terminus.bench.vae import bench_vae as run_bench

    run_bench(model, out, pixels, device=device)
