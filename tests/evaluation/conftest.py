"""A finished run on images of its own, put together without training: a store, a parent and a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPE = """
run: {{dir: {run}, name: Stripes}}
model: {{start: {parent}}}
data:
  store: {store}
  sources: [{{kind: folder, name: stripes, path: {images}}}]
  resolution: 32
  validation_fraction: 0.5
objective: {{kind: diffusion}}
"""


def image(number: int) -> Image.Image:
    """48 × 40 pixels, of one grey that tells its number, with a stripe."""
    pixels = np.full((40, 48, 3), 5 * number, np.uint8)
    pixels[:, 4 : 6 + number % 20] = (255 - 5 * number, 10, 20 * (number % 12))
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def _stripes(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from terminus.config.load import dump, load
    from terminus.data.prepare import prepare
    from terminus.data.store import Store
    from terminus.training.recipe import Recipe

    folder = tmp_path_factory.mktemp("stripes")
    run, store, images = folder / "run", folder / "store", folder / "images"
    images.mkdir()
    for number in range(24):
        image(number).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"stripe (number {number})")
    parent = shutil.copytree(random_nano, folder / "parent")
    model = shutil.copytree(random_nano, run / "model")
    record = json.loads((model / "terminus.json").read_text())
    (model / "terminus.json").write_text(json.dumps(record | {"parents": [str(parent)], "images_seen": 96}))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    for place in range(1, 20_001, 2):
        data[-place] ^= 0x01  # the high byte of halves: another model, of finite numbers
    weights.write_bytes(data)
    recipe = folder / "stripes.yaml"
    recipe.write_text(RECIPE.format(run=run, parent=parent, store=store, images=images))
    loaded = load(recipe, Recipe).value
    prepare(loaded.data, loaded.model.vae_from)
    (run / "recipe.yaml").write_text(dump(loaded))
    view = Store(str(store)).latents.required()
    (run / "data.json").write_text(json.dumps({"table": "latents", "version": view.version, "rows": view.count}))
    return folder


@pytest.fixture
def stripes(_stripes: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil: `run/`, `store/`, `parent/`, `images/`, `stripes.yaml`."""
    folder = Path(shutil.copytree(_stripes, tmp_path / "stripes"))
    for file in (folder / "stripes.yaml", folder / "run" / "recipe.yaml", folder / "run" / "model" / "terminus.json"):
        file.write_text(file.read_text().replace(str(_stripes), str(folder)))
    return folder
