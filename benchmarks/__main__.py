"""How fast training and loading are: `python -m benchmarks train RECIPE`, `python -m benchmarks load`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from terminus import options
from terminus.cli_bench import check_bench
from terminus.cli_data import loading
from terminus.errors import EXIT_INPUT, UserError

app = typer.Typer(help="How fast training and loading are on this machine.", add_completion=False)

Name = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe that trains a UNet; or random:sdxl, random:nano.")
]
Steps = Annotated[int, typer.Option(help="Optimizer steps of a run.")]
Text = Annotated[str, typer.Option(help="cached, or online: through the text encoders at every step.")]
Average = Annotated[str, typer.Option(help="both, or none: keep a moving average of the weights.")]
Rows = Annotated[int, typer.Option(help="Rows whose order is drawn.")]
Stored = Annotated[int, typer.Option(help="Rows that are written and read, 262 kB each.")]


@app.command()
def train(
    recipe: Name,
    overrides: options.Overrides = None,
    against: options.Against = None,
    steps: Steps = 10,
    runs: options.BenchRuns = 5,
    text: Text = "cached",
    average: Average = "both",
    out: options.BenchOut = None,
) -> None:
    """Images per second of the training loop on invented rows, part by part, beside a loop of diffusers' classes."""
    from terminus.config.load import read_tree
    from terminus.model.choices import check_choice

    check_bench(against, out, steps=steps, runs=runs)
    check_choice("--text", text, ("cached", "online"))
    check_choice("--average", average, ("both", "none"))
    if not recipe.startswith("random:"):
        read_tree(recipe, overrides or ())
    with loading():
        from benchmarks.train import bench_train

    bench_train(recipe, overrides or (), against, steps, runs, text, average, out)


@app.command()
def load(rows: Rows = 10**9, stored: Stored = 1000, out: options.BenchOut = None) -> None:
    """Rows per second of the loader, and its memory, with the order of so many rows."""
    check_bench(None, out, rows=rows, stored=stored)
    with loading():
        from benchmarks.load import bench_load

    bench_load(rows, stored, out=out)


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark and returns its exit code: 0, or 2 for wrong input."""
    try:
        app(arguments, "python -m benchmarks", standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except typer.TyperException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return EXIT_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
