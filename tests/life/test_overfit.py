"""A network that cannot learn eight images by heart learns nothing: nano, from random weights, alone with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from terminus.config.load import load
from terminus.data.prepare import prepare
from terminus.training.recipe import Recipe
from terminus.training.run import train

IMAGES, STEPS, ERROR = 8, 300, 0.10
"""Stated: after these steps, each of all images once, the squared velocity error is below this (0.95 at first)."""

RECIPE = """
run: {{dir: {folder}/run}}
model: {{start: null, architecture: nano, vae: nano, text_encoders: nano}}
data:
  store: {folder}/data
  sources: [{{kind: embedded, styles: [3d], groups: [Travel & Places], backgrounds: 1, limit: 10}}]
  resolution: 64
objective: {{kind: diffusion, caption_dropout: 0.0, weighting: {{kind: constant}}}}
training:
  images: {images}
  micro_batch: {micro_batch}
  precision: fp32
  learning_rate: {{max: 2.0e-3, min: 1.0e-4, warmup_images: 160}}
  ema: {{half_life_images: 200}}
  checkpoints: {{every_images: {images}}}
  validation: {{every_images: {images}, images: 2}}
"""


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(tmp_path: Path):
    recipe = RECIPE.format(folder=tmp_path, images=IMAGES * STEPS, micro_batch=IMAGES)
    (tmp_path / "recipe.yaml").write_text(recipe)
    loaded = load(tmp_path / "recipe.yaml", Recipe)
    prepare(loaded.value.data, loaded.value.model.vae_from)
    train(loaded)
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert (facts["train_rows"], facts["steps"]) == (IMAGES, STEPS)
    errors = [json.loads(line)["error"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert errors[0] > 0.9
    assert sum(errors[-20:]) / 20 < ERROR, [round(error, 3) for error in errors[::20]]
