"""`terminus demo`: the whole life of a model on a laptop, by the same code that trains SDXL on GPUs.

Prepare, train, sample, evaluate, card, from the shipped images and the shipped model. Nothing here is special to
the demo but the order of the calls and the words around them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from terminus.card.command import card
from terminus.config.load import Loaded, load
from terminus.data.prepare import prepare
from terminus.evaluation.command import Own, evaluate
from terminus.evaluation.settings import QUICK
from terminus.judged import find_judged, trained_by
from terminus.sampling.api import Terminus
from terminus.sampling.sheet import sheet
from terminus.training.recipe import Recipe
from terminus.training.run import train

RECIPE = "demo"
TAUGHT = "teal"
"""The background that the shipped model has never seen (recipes/demo.yaml)."""
PROMPTS = (
    "a 3d render of a red apple on a white background",
    "a flat drawing of a sun on a black background",
    "a 3d render of a red heart on a yellow background",
    "a 3d render of a grinning face on a red background",
    "a 3d render of a rocket on a teal background",
    "a flat drawing of a house on a teal background",
    "a 3d render of a grinning face on a teal background",
    "a flat drawing of a sun on a teal background",
)
"""The first half asks for what is to be kept, the second for the colour that is taught."""
FEW = replace(QUICK, captions=8, extreme_images=16, color_images=6, light_images=4)
"""Images that are drawn by the parent, by the model, and on a leaky schedule: the time is better spent training."""
WORSE = 0.05
"""RGB error, 0..1, by which a colour is called better or worse than before: of six images less is noise."""


def demo(out: Path) -> None:
    """Runs prepare, train, sample, evaluate and card into the folder `out`; run again, it continues."""
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    loaded = load(RECIPE, Recipe, [f"run.dir={_quoted(out)}", f"data.store={_quoted(out / 'data')}"])
    start = cast(str, loaded.value.model.start)
    # Each chapter is the command of that name.
    _chapter(console, 1, "prepare: images become latents")
    prepare(loaded.value.data, loaded.value.model.vae_from, console)
    _chapter(console, 2, f"train: {start} is shown {TAUGHT}, and the colours that it knows again")
    model = train(loaded)
    _chapter(console, 3, "sample: the same prompts and seeds before and after")
    _before_and_after(start, model, out / "samples.png")
    _chapter(console, 4, "evaluate: each background that was asked for, before and after")
    _evaluate(model, out)
    _chapter(console, 5, "card: what the run recorded, as a model card")
    card(out, check=False)
    _closing(console, loaded, out, time.monotonic() - started)


def _quoted(path: Path) -> str:
    """A path as a YAML string, whatever characters it has."""
    return json.dumps(str(path), ensure_ascii=False)


def _chapter(console: Console, number: int, title: str) -> None:
    console.rule(f"[bold]{number} of 5[/bold]  {title}", align="left")


def _before_and_after(start: str, model: Path, target: Path) -> None:
    # Same seeds: what differs between the rows is the training.
    before = Terminus.load(start).text2img(PROMPTS, seed=0)
    after = Terminus.load(model).text2img(PROMPTS, seed=0)
    titles = (f"before: {start}", "after this run")
    sheet([*before, *after], [*PROMPTS, *PROMPTS], columns=len(PROMPTS), row_titles=titles).save(target)


def _evaluate(model: Path, out: Path) -> None:
    """The evaluation has its own folder; what people look for first lies beside the model card."""
    folder = out / "evaluation"
    evaluate(str(model), folder, FEW, data=Own(trained_by(find_judged(str(model)))))
    for name in ("metrics.json", "report.html"):
        shutil.copyfile(folder / name, out / name)


def _closing(console: Console, loaded: Loaded[Recipe], out: Path, seconds: float) -> None:
    # The numbers come from the files of the run, as those of its model card do.
    facts = json.loads((out / "facts.json").read_text(encoding="utf-8"))
    contrast = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["contrast"]
    before, after = (facts[f"validation_{when}"]["all"] for when in ("before", "after"))
    table = Table(box=None, pad_edge=False, show_header=False)
    rows: Sequence[tuple[str, str]] = (
        ("held-out error", f"{before:.4f} before, {after:.4f} after {facts['images_seen']} images"),
        ("", ""),
        ("samples.png", f"the same prompts and seeds before and after; the right half asks for {TAUGHT}"),
        ("report.html", "held-out captions and the contrast probe, image by image, before and after"),
        ("README.md", "the model card; every number in it comes from this run"),
        ("data/report.html", "what was prepared, what was dropped and why"),
        ("model/", "a diffusers folder: StableDiffusionXLPipeline.from_pretrained loads it"),
        ("recipe.yaml", "every setting; `terminus train` with it continues this run"),
    )
    for name, text in rows:
        table.add_row(f"[bold]{name}[/bold]", text)
    took = f"{seconds / 60:.1f} minutes"
    was, errors = (
        {name: result["rgb_error"]["mean"] for name, result in contrast[which]["backgrounds"].items()}
        for which in ("before", "ztsnr")
    )
    parts = [*colors(was, errors), Text(), table]
    console.print(
        Panel(Group(*parts), title=f"{loaded.value.run.name}: look in {out}", subtitle=took, title_align="left")
    )


def colors(before: Mapping[str, float], after: Mapping[str, float]) -> list[RenderableType]:
    """Table of each background's colour error (RGB, 0..1), before and after the run, with its summary in words."""
    table = Table("background", "error before", "after", "", box=None, pad_edge=False)
    for name in after:
        table.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}", _verdict(before[name], after[name]))
    verdicts = {name: _verdict(before[name], after[name]) for name in after}
    better, worse = ([name for name, said in verdicts.items() if said == which] for which in ("better", "worse"))
    legend = f"Mean error of the colour of an image's frame, 0..1, for {len(after)} backgrounds that were asked for:"
    said = f"Better by more than {WORSE:g}: {', '.join(better) or 'none'}. Worse: {', '.join(worse) or 'none'}."
    return [Text(legend), table, Text(said)]


def _verdict(old: float, new: float) -> str:
    if abs(new - old) <= WORSE:
        return ""
    return "worse" if new > old else "better"
