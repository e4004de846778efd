"""Several cuts of an image are rows of latents alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from terminus.config.load import load
from terminus.data.prepare import prepare
from terminus.errors import UserError
from terminus.training.recipe import Recipe
from terminus.training.run import train

RECIPE = """
run: {{dir: {folder}/run}}
model: {{architecture: nano}}
data:
  store: {folder}/data
  sources: [{{kind: embedded, backgrounds: 1, limit: 40}}]
  resolution: 64
  crop: native
  crops: 2
objective: {{kind: vae}}
training: {{images: 8, micro_batch: 4, validation: {{images: 4}}}}
"""


def test_a_vae_is_not_trained_on_fewer_cuts_than_the_recipe_says(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    loaded = load(path, Recipe)
    prepare(loaded.value.data, None)
    with pytest.raises(UserError, match=r"data\.crops: data\.crops is 2, and this objective reads pixels.*to 1\."):
        train(loaded)
    assert not (tmp_path / "run").exists()
