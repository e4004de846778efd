"""`terminus demo`: the whole life of a model on a laptop, by the same code that trains SDXL on GPUs.

Prepare, train, sample, evaluate, card, from the shipped pictures and the shipped model. Nothing here is special to
the demo but the order of the calls and the words around them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from terminus.card.command import card
from terminus.config.load import Loaded, load
from terminus.data.prepare import prepare
from terminus.evaluation.command import evaluate
from terminus.evaluation.settings import QUICK
from terminus.sampling.api import Terminus
from terminus.sampling.sheet import sheet
from terminus.training.recipe import Recipe
from terminus.training.run import train

Backgrounds = dict[str, dict[str, dict[str, float]]]
"""The part of `metrics.json` that is quoted on the closing screen."""

RECIPE = "demo"
PROMPTS = (
    "a 3d render of a red apple on a white background",
    "a flat drawing of a sun on a black background",
    "a 3d render of a red heart on a black background",
    "a 3d render of a grinning face on a white background",
    "a 3d render of a rocket on a teal background",
    "a flat drawing of a house on a teal background",
    "a 3d render of a grinning face on a teal background",
    "a flat drawing of a sun on a teal background",
)
"""The second half asks for the colour that the demo teaches."""


def demo(out: Path) -> None:
    """Everything into the folder `out`; run again, it continues where it was interrupted."""
    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    loaded = load(RECIPE, Recipe, [f"run.dir={_quoted(out)}", f"data.store={_quoted(out / 'data')}"])
    start = cast(str, loaded.value.model.start)
    _chapter(console, 1, "prepare: pictures become latents")
    prepare(loaded.value.data, loaded.value.model.codec_from, console)
    _chapter(console, 2, f"train: {start} learns the word teal")
    model = train(loaded)
    _chapter(console, 3, "sample: the same prompts and seeds before and after")
    _before_and_after(start, model, out / "samples.png")
    _chapter(console, 4, "evaluate: is black black, and white white?")
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
    pictures = [
        picture
        for which in (start, model)
        for picture in Terminus.load(which).text2img(PROMPTS, seed=0)
    ]  # fmt: skip
    titles = (f"before: {start}", "after this run")
    sheet(pictures, [*PROMPTS, *PROMPTS], columns=len(PROMPTS), row_titles=titles).save(target)


def _evaluate(model: Path, out: Path) -> None:
    """The evaluation has its own folder; what people look for first lies beside the model card."""
    folder = out / "evaluation"
    evaluate(str(model), folder, QUICK)
    for name in ("metrics.json", "report.html"):
        shutil.copyfile(folder / name, out / name)


def _closing(console: Console, loaded: Loaded[Recipe], out: Path, seconds: float) -> None:
    facts = json.loads((out / "facts.json").read_text(encoding="utf-8"))
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    before, after = (facts[f"validation_{when}"]["all"] for when in ("before", "after"))
    own, control = (metrics["contrast"][name]["backgrounds"] for name in ("ztsnr", "leaky_control"))
    table = Table(box=None, pad_edge=False, show_header=False)
    rows: Sequence[tuple[str, str]] = (
        ("held-out error", f"{before:.4f} before, {after:.4f} after {facts['images_seen']} images"),
        ("black asked for", _luminance(own, control, "black")),
        ("white asked for", _luminance(own, control, "white")),
        ("", ""),
        ("samples.png", "the same prompts and seeds before and after; the right half asks for teal"),
        ("report.html", "contrast, picture by picture, beside the same model on a leaky schedule"),
        ("README.md", "the model card; every number in it comes from this run"),
        ("data/report.html", "what was prepared, what was dropped and why"),
        ("model/", "a diffusers folder: StableDiffusionXLPipeline.from_pretrained loads it"),
        ("recipe.yaml", "every setting; `terminus train` with it continues this run"),
    )
    for name, text in rows:
        table.add_row(f"[bold]{name}[/bold]", text)
    took = f"{seconds / 60:.1f} minutes"
    console.print(Panel(table, title=f"{loaded.value.run.name}: look in {out}", subtitle=took, title_align="left"))


def _luminance(own: Backgrounds, control: Backgrounds, asked: str) -> str:
    ours, leaky = (backgrounds[asked]["border_luminance"]["mean"] for backgrounds in (own, control))
    return f"border luminance {ours:.3f}; the same model on a leaky schedule {leaky:.3f}"
