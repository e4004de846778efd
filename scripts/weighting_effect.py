"""What the form of min-SNR does to the terminal timesteps: nano, trained with each form from the same start and seed.

    terminus prepare nano
    python scripts/weighting_effect.py [--store runs/nano-data] [--out runs/weighting-effect] [--images 3200]

Prints the share of the gradient's length that each hundred timesteps have at the start, and afterwards the error on
held-out images, the same images, noise and timesteps for every form, and how bright the frame is of images asked
for on black and on white. A finished run is not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from terminus.config.load import Loaded, load
from terminus.data import emoji
from terminus.data.batch import Batch
from terminus.data.emoji import CONTRAST
from terminus.data.store import Store
from terminus.diffusion.timesteps import Band, density
from terminus.evaluation.luminance import REC601, frame_rgb
from terminus.model.components import load_components
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img, to_bytes
from terminus.training.assemble import TrainingSetup, assemble
from terminus.training.recipe import Recipe
from terminus.training.run import train
from terminus.training.steps.diffusion import DiffusionStep
from terminus.training.validation import build_validation

FORMS = ("augmented", "paper")
WIDTH, HELD_OUT, GRADIENT, SUBJECTS = 100, 128, 64, 24
"""Timesteps of a band; images behind each error, behind each gradient, and drawn on each background."""


@dataclass(frozen=True)
class Start:
    """What the runs of one table have in common."""

    name: str
    settings: tuple[str, ...]


STARTS = (
    Start("shipped", ("model.start=nano", "training.learning_rate.max=3.0e-4")),
    Start(
        "random",
        (
            "model={start: null, architecture: nano, vae: nano, text_encoders: nano}",
            "training.learning_rate.max=1.0e-3",
        ),
    ),
)


def recipe(start: Start, form: str, arguments: argparse.Namespace) -> Loaded[Recipe]:
    """The run of one form from one start."""
    images = arguments.images
    return load("nano", Recipe, [
        f"run.dir={arguments.out}/{start.name}-{form}", f"data.store={arguments.store}", *start.settings,
        f"objective.weighting.form={form}", f"training.images={images}", "training.learning_rate.warmup_images=320",
        f"training.learning_rate.period_images={images - 320}", "training.ema.half_life_images=400",
        "training.validation.images=32", f"training.validation.every_images={images}",
        f"training.checkpoints.every_images={images}",
    ])  # fmt: skip


def parts_of(loaded: Loaded[Recipe]) -> tuple[TrainingSetup, DiffusionStep]:
    parts = assemble(loaded.value, Store(loaded.value.data.store).latents.required())
    return parts, cast(DiffusionStep, parts.step)


def in_band(step: DiffusionStep, low: int, count: int) -> DiffusionStep:
    """The step by which held-out data are measured, with every timestep in one band and every caption as it is."""
    table = density([Band(low, low + WIDTH - 1, 1.0)], step.objective.schedule.timesteps)
    fixed = step.seeded(0)
    return replace(fixed, density=table, caption_dropout=0.0, global_batch=count, precision="fp32")


def errors(step: DiffusionStep, batches: Sequence[Batch]) -> torch.Tensor:
    """Plain error [band, image]."""
    with torch.no_grad():
        rows = [
            torch.cat([in_band(step, low, HELD_OUT).loss(batch, 0).error for batch in batches])
            for low in range(0, step.objective.schedule.timesteps, WIDTH)
        ]
    return torch.stack(rows).double()


def gradient_shares(step: DiffusionStep, batches: Sequence[Batch]) -> torch.Tensor:
    """The length of the mean gradient of each band's weighted loss, over the sum of these lengths [band]."""
    lengths: list[float] = []
    for low in range(0, step.objective.schedule.timesteps, WIDTH):
        step.trained.zero_grad(set_to_none=True)
        band = in_band(step, low, GRADIENT)
        for batch in batches:
            (band.loss(batch, 0).weighted.mean() / len(batches)).backward()
        gradients = [p.grad for p in step.trained.parameters() if p.grad is not None]
        lengths.append(float(torch.nn.utils.get_total_norm(gradients)))
    step.trained.zero_grad(set_to_none=True)
    table = torch.tensor(lengths, dtype=torch.float64)
    return table / table.sum()


def frame(model: Path, background: str) -> tuple[float, float]:
    """Mean luminance of the frame of images on this background, in 0..1, and its standard error."""
    components = load_components(model)
    subjects = [drawing for drawing in emoji.drawings() if drawing.style == "3d"][::60][:SUBJECTS]
    prompts = [emoji.emoji_caption(drawing, background) for drawing in subjects]
    *_, last = text2img(components, prompts, range(len(prompts)), Settings(steps=16, guidance=4.0))
    luminance = frame_rgb(to_bytes(components, last.x).numpy()) @ np.array(REC601)
    return float(luminance.mean()), float(luminance.std(ddof=1) / len(prompts) ** 0.5)


def line(name: str, values: torch.Tensor, digits: int) -> None:
    print(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in values.tolist()) + " |", flush=True)


def compare(start: Start, arguments: argparse.Namespace) -> None:
    print(f"\n{start.name}: {arguments.images} images; columns are hundreds of timesteps", flush=True)
    measured: dict[str, torch.Tensor] = {}
    for form in FORMS:
        loaded = recipe(start, form, arguments)
        parts, step = parts_of(loaded)
        batches = build_validation(parts.held_out, HELD_OUT, 32).batches
        line(f"gradient at the start, %, {form}", 100 * gradient_shares(step, batches[: GRADIENT // 32]), 2)
        if "before" not in measured:
            measured["before"] = errors(step, batches)
            line("error before", measured["before"].mean(1), 4)
        model = train(loaded)
        done = load("nano", Recipe, [f"model.start={model}", f"data.store={arguments.store}"])
        measured[form] = errors(parts_of(done)[1], batches)
        line(f"error, {form}", measured[form].mean(1), 4)
        for background in CONTRAST:
            mean, deviation = frame(model, background)
            print(f"{background} frame, {form}: {mean:.3f}, standard error {deviation:.3f}", flush=True)
    difference = measured["paper"] - measured["augmented"]
    line("paper − augmented", difference.mean(1), 4)
    line("its standard error", difference.std(1) / difference.shape[1] ** 0.5, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", default="runs/nano-data")
    parser.add_argument("--out", default="runs/weighting-effect")
    parser.add_argument("--images", type=int, default=3200)
    arguments = parser.parse_args()
    for start in STARTS:
        compare(start, arguments)


if __name__ == "__main__":
    main()
