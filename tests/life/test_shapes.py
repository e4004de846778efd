"""Bit for bit also with mixed shapes, several micro-batches to a step, a stop within one, and data that grew."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terminus.config.load import Loaded, load
from terminus.data.order import Order
from terminus.data.prepare import prepare
from terminus.data.store import Store
from terminus.errors import Stopped
from terminus.training import run
from terminus.training.recipe import Recipe

from .conftest import losses, same_end, wrap

RECIPE = """
run: {{dir: {folder}/run}}
model: {{start: {model}}}
data:
  store: {folder}/data
  sources: [{{kind: folder, name: noise, path: {folder}/images}}]
  resolution: 64
  buckets: {{kind: aspect, step: 16}}
  validation_fraction: 0.2
objective: {{kind: diffusion}}
training:
  images: 48
  micro_batch: 2
  accumulation: 3
  precision: fp32
  loader_threads: 0
  learning_rate: {{max: 1.0e-3, min: 1.0e-4, warmup_images: 16, period_images: 40}}
  checkpoints: {{every_images: 18}}
  validation: {{every_images: 24, images: 4}}
"""
SIZES = ((72, 72), (96, 48), (48, 96))


def paint(folder: Path, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = draw.integers(0, 256, (*SIZES[i % len(SIZES)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"noise number {i}")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, random_nano: Path) -> Path:
    """A prepared store of three shapes."""
    folder = tmp_path_factory.mktemp("mixed")
    paint(folder / "images", 24, seed=0)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, model=random_nano))
    recipe = build(folder).value
    prepare(recipe.data, recipe.model.vae_from)
    return folder


def build(mixed: Path, *overrides: str) -> Loaded[Recipe]:
    return load(mixed / "recipe.yaml", Recipe, list(overrides))


@pytest.fixture(scope="module")
def undisturbed(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run.train(build(mixed, f"run.dir={folder}"))
    return folder


def stop_in(monkeypatch: pytest.MonkeyPatch, *micro_batches: int) -> Counter[tuple[int, ...]]:
    """SIGTERM while each of these micro-batches of the run is computed; counts the shapes that were seen."""
    shapes: Counter[tuple[int, ...]] = Counter()

    def change(batch, step, losses):
        shapes[tuple(batch.values.shape[-2:])] += 1
        if batch.positions[0] // len(batch.positions) in micro_batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    wrap(monkeypatch, change)
    return shapes


@pytest.mark.parametrize("threads", [0, 2])
def test_stopped_within_a_step_and_between_epochs(
    mixed: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
):
    """In the first, the middle and the last micro-batch of a step; then to the end."""
    recipe = build(mixed, f"run.dir={tmp_path}", f"training.loader_threads={threads}")
    shapes = stop_in(monkeypatch, 3, 10, 17)
    for step in (2, 4, 6):
        with pytest.raises(Stopped):
            run.train(recipe)
        assert len(losses(tmp_path)) == step
    run.train(recipe)
    same_end(undisturbed, tmp_path)
    assert len(shapes) == 3
    epochs = [dict(row)["epoch"] for row in losses(tmp_path)]
    assert len(set(epochs)) > 1


def test_stopped_where_an_epoch_ends(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One micro-batch per step, so that the last of an epoch is the last before the stop."""
    short = ("training.accumulation=1", "training.images=24")
    one, two = (build(mixed, f"run.dir={tmp_path / name}", *short) for name in ("one", "two"))
    run.train(one)
    sizes = run.assemble(one.value, Store(one.value.data.store).latents.required()).train.sizes
    order = Order(one.value.training.seed, sizes, one.value.training.micro_batch)
    last = next(i for i in range(100) if order[i + 1].epoch > order[i].epoch)
    stop_in(monkeypatch, last)
    with pytest.raises(Stopped):
        run.train(two)
    assert len(losses(tmp_path / "two")) == last + 1
    run.train(two)
    same_end(tmp_path / "one", tmp_path / "two")


def test_data_that_grew_meanwhile(
    mixed: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_nano: Path
):
    """A run keeps the version of the data that it was begun with; a new one takes the newest."""
    store = shutil.copytree(mixed / "data", tmp_path / "data")
    recipe = build(mixed, f"run.dir={tmp_path / 'run'}", f"data.store={store}")
    stop_in(monkeypatch, 7)
    with pytest.raises(Stopped):
        run.train(recipe)
    paint(tmp_path / "more", 9, seed=1)
    before = Store(str(store)).latents.count()
    more = build(
        mixed, f"data.store={store}", f"data.sources=[{{kind: folder, name: more, path: {tmp_path / 'more'}}}]"
    )
    prepare(more.value.data, str(random_nano))
    assert Store(str(store)).latents.count() > before
    run.train(recipe)
    same_end(undisturbed, tmp_path / "run")
    run.train(build(mixed, f"run.dir={tmp_path / 'new'}", f"data.store={store}", "training.images=6"))
    assert losses(tmp_path / "new")[0] != losses(undisturbed)[0]
