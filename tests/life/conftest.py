"""A tiny run: the embedded drawings, a model with random weights, a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from terminus.config.load import Loaded, dump, load
from terminus.data.batch import Batch
from terminus.data.store import View
from terminus.training import run
from terminus.training.assemble import TrainingSetup
from terminus.training.recipe import Recipe
from terminus.training.step import StepLoss, TrainingStep

RECIPE = """
run: {{dir: {folder}/run}}
model: {{start: {model}}}
data:
  store: {folder}/data
  sources: [{{kind: embedded, styles: [3d, flat], backgrounds: 2, limit: 120}}]
  resolution: 32
objective: {{kind: diffusion}}
training:
  images: 96
  micro_batch: 4
  accumulation: 2
  precision: fp32
  learning_rate: {{max: 1.0e-3, min: 1.0e-4, warmup_images: 16, period_images: 80}}
  checkpoints: {{every_images: 32}}
  validation: {{every_images: 48, images: 8}}
"""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, random_nano: Path) -> Path:
    """A folder with a recipe and its prepared data."""
    from terminus.data.prepare import prepare

    folder = tmp_path_factory.mktemp("life")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, model=random_nano))
    recipe = load(folder / "recipe.yaml", Recipe).value
    prepare(recipe.data, recipe.model.vae_from)
    return folder


@pytest.fixture
def recipe(prepared: Path, tmp_path: Path) -> Callable[..., Loaded[Recipe]]:
    """The tiny recipe with overrides, in a run folder of the test's own unless it names one."""

    def build(*overrides: str) -> Loaded[Recipe]:
        return load(prepared / "recipe.yaml", Recipe, [f"run.dir={tmp_path / 'run'}", *overrides])

    return build


def losses(run: Path) -> list[tuple[object, ...]]:
    """Everything in a log that must not depend on interruptions: all but the wall clock."""
    clock = {"seconds", "images_per_second"}
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [tuple((key, json.dumps(value)) for key, value in row.items() if key not in clock) for row in rows]


def same_end(one: Path, two: Path) -> None:
    """Logs and every tensor of the last checkpoint and of the finished model are equal."""
    from terminus.training.saving.checkpoint import whole_checkpoints

    assert losses(one) == losses(two)
    last = whole_checkpoints(one / "checkpoints")[-1].name
    for pattern in (f"checkpoints/{last}/*.safetensors", "model/*/*.safetensors"):
        files = sorted(one.glob(pattern))
        assert files
        for file in files:
            left, right = load_file(file), load_file(two / file.relative_to(one))
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left), file.name


class Wrapped:
    """A step that is another, apart from what a test does to its losses."""

    def __init__(self, step: TrainingStep, change: Callable[[Batch, int, StepLoss], StepLoss]) -> None:
        self.step, self.change = step, change

    @property
    def trained(self) -> nn.Module:
        return self.step.trained

    def loss(self, batch: Batch, step: int) -> StepLoss:
        return self.change(batch, step, self.step.loss(batch, step))

    def seeded(self, seed: int) -> TrainingStep:
        return self.step.seeded(seed)


def wrap(monkeypatch: pytest.MonkeyPatch, change: Callable[[Batch, int, StepLoss], StepLoss]) -> None:
    """Puts `change` between the step of every run and its loop; validation is left alone."""
    real = run.assemble

    def assemble(recipe: Recipe, view: View) -> TrainingSetup:
        parts = real(recipe, view)
        return replace(parts, step=Wrapped(parts.step, change))

    monkeypatch.setattr(run, "assemble", assemble)


__all__ = ["dump", "losses", "same_end", "wrap"]
