"""Training learns: the UNet of nano, from random weights, overfits a handful of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from terminus.config.load import load
from terminus.data.prepare import prepare
from terminus.training.recipe import Recipe
from terminus.training.run import train

RECIPE = """
run: {{dir: {folder}/run}}
model: {{start: null, architecture: nano, vae: nano, text_encoders: nano}}
data:
  store: {folder}/data
  sources: [{{kind: embedded, styles: [3d], backgrounds: 2, limit: 30}}]
  resolution: 64
training:
  images: 1_920
  micro_batch: 16
  learning_rate: {{max: 1.0e-3, min: 1.0e-4, warmup_images: 160}}
  ema: {{half_life_images: 200}}
  checkpoints: {{every_images: 1_920}}
  validation: {{every_images: 960, images: 4}}
"""


@pytest.mark.slow
def test_a_handful_of_images_is_learned(tmp_path: Path):
    """120 steps of 16: the error falls by half, and on held-out images it falls too."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    loaded = load(tmp_path / "recipe.yaml", Recipe)
    prepare(loaded.value.data, loaded.value.model.vae_from)
    train(loaded)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, last = (sum(row["error"] for row in part) / 10 for part in (rows[:10], rows[-10:]))
    assert last < 0.5 * first
    assert rows[-1]["validation"]["all"] < rows[0]["validation_before"]["all"]
