"""A tiny run: the embedded drawings, a model with random weights, a few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from terminus.config.load import Loaded, dump, load
from terminus.training.recipe import Recipe

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
    prepare(recipe.data, recipe.model.codec_from)
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


__all__ = ["dump", "losses"]
