"""All of the experiment by one command, which goes on where it was stopped:

    python -m benchmarks.experiments [--seeds 3] [--out runs/experiments] [--results benchmarks/results]

A trained and measured arm is not repeated. The table is printed after each, so that what is there can be read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.experiments.arms import LEAKS, LEAKY, RECIPES, Arm, all_arms
from benchmarks.experiments.leak import LATENTS, leak_figure
from benchmarks.experiments.report import bands, figure, table
from terminus.sampling.sheet import sheet as labelled_sheet

SHOWN = 6
"""Images of each kind on the sheet of an arm."""
KINDS = ("black", "white", "dark", "bright", "plain", "varied")
"""Its rows: what their prompts say of the background, and the held-out drawings."""


def main(
    seeds: Annotated[int, typer.Option(min=1, max=5, help="Trainings of each arm.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/experiments"),
    results: Annotated[Path, typer.Option(help="Folder of the table and the figure.")] = Path("benchmarks/results"),
    override: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for every arm: a smaller trial.")] = None,
) -> None:
    """Trains every arm with every seed, measures what it draws, and writes table and figure."""
    given = tuple(override or ())
    prepare = [sys.executable, "-m", "terminus", "prepare", str(RECIPES / "common.yaml")]
    subprocess.run([*prepare, f"data.store={out / 'data'}", *given], check=True)
    runs: list[dict[str, Any]] = []
    for arm in all_arms(out, seeds, given):
        runs.append(one(arm))
        # Arms that were measured by an earlier call are read again, so the table is whole after each.
        print(table(runs), flush=True)
        write(runs, results, out)
    print(bands(runs))


def one(arm: Arm) -> dict[str, Any]:
    """The record of one arm: trained and measured now, or read where an earlier call did."""
    record = arm.folder / "measured.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    print(f"{arm.name}, seed {arm.seed}", flush=True)
    arm.train()
    from benchmarks.experiments.measure import measure
    from terminus.evaluation.distribution.extractors import load_extractor

    measured, drawn = measure(arm.model, load_extractor("nano"))
    found = {"arm": arm.name, "seed": arm.seed, "measured": asdict(measured), "validation": validation(arm.folder)}
    sheet(drawn).save(arm.folder / "drawn.png")
    # Last, and at once: its presence says that all of the arm is there.
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)
    return found


def validation(folder: Path) -> dict[str, float]:
    """The last held-out error of a run by band of timesteps."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["validation"] for row in rows if row.get("validation")][-1]


def sheet(drawn: dict[str, np.ndarray]) -> Image.Image:
    """The first images of each kind, a row for each."""
    rows = [np.concatenate(list(images[:SHOWN]), axis=1) for images in drawn.values()]
    return Image.fromarray(np.concatenate(rows))


def arms_sheet(
    out: Path, arms: Sequence[str], kinds: Sequence[str] = ("black", "white"), shown: int = 5
) -> Image.Image:
    """A row for each arm: `shown` images of each kind by seed 0, the same prompts and noise in all rows."""
    rows = {name: np.asarray(Image.open(out / f"{name}-0" / "drawn.png").convert("RGB")) for name in arms}
    tiles: list[Image.Image] = []
    for drawn in rows.values():
        side = drawn.shape[1] // SHOWN
        for kind in kinds:
            top = KINDS.index(kind) * side
            tiles += [Image.fromarray(drawn[top : top + side, side * k : side * (k + 1)]) for k in range(shown)]
    return labelled_sheet(tiles, columns=shown * len(kinds), scale=1, row_titles=list(rows))


def write(runs: list[dict[str, Any]], results: Path, out: Path) -> None:
    """`zero-terminal-snr.json`, `.svg` and `.png`, and `-leak.svg`."""
    from terminus import runtime
    from terminus.config.load import load
    from terminus.diffusion.schedule import NoiseSchedule
    from terminus.training.recipe import Recipe

    results.mkdir(parents=True, exist_ok=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "environment": asdict(runtime.environment()),
        "runs": runs,
    }
    (results / "zero-terminal-snr.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (results / "zero-terminal-snr.svg").write_text(figure(runs), encoding="utf-8")
    drawn = [name for name in dict.fromkeys(run["arm"] for run in runs) if (out / f"{name}-0" / "drawn.png").is_file()]
    arms_sheet(out, drawn).save(results / "zero-terminal-snr.png")
    ends = LEAKS | {LEAKY: load(str(RECIPES / f"{LEAKY}.yaml"), Recipe).value.model.beta_end}
    schedules = {name: NoiseSchedule.scaled_linear(0.00085, end, 1000) for name, end in ends.items()}
    leaks = {name: LATENTS * float(schedule.snr[-1]) for name, schedule in schedules.items()}
    (results / "zero-terminal-snr-leak.svg").write_text(leak_figure(runs, leaks), encoding="utf-8")


if __name__ == "__main__":
    try:
        typer.run(main)
    except subprocess.CalledProcessError as failed:
        # The command has said what is wrong, or that it was stopped (75): there is nothing to add.
        sys.exit(failed.returncode)
