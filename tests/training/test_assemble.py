"""What a recipe and its checkpoint must agree on, and what a run refuses before it computes anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from terminus.config.load import load
from terminus.data.prepare import prepare
from terminus.errors import UserError
from terminus.model.record import load_record
from terminus.training.recipe import Recipe
from terminus.training.run import train

RECIPE = """
run: {{dir: {folder}/run}}
model: {{start: {model}}}
data:
  store: {folder}/data
  sources: [{{kind: embedded, backgrounds: 2, limit: 80}}]
  resolution: 32
objective: {{kind: diffusion, weighting: {{kind: min_snr}}}}
training:
  images: 8
  micro_batch: 4
  precision: fp32
  validation: {{images: 4}}
"""


@pytest.fixture
def model(random_nano: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_nano, tmp_path / "model")


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path, model=model))
    return path


def prepared(recipe: Path, *overrides: str) -> Recipe:
    settings = load(recipe, Recipe, overrides).value
    prepare(settings.data, settings.model.vae_from)
    return settings


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"prediction_type": "epsilon", "rescale_betas_zero_snr": False},
            "checkpoint says epsilon, the recipe says velo",
        ),
        ({"rescale_betas_zero_snr": False}, "zero_terminal_snr: the checkpoint says False, the recipe says True"),
    ],
)
def test_a_conflict_names_both_sides_and_writes_nothing(recipe: Path, model: Path, tmp_path: Path, changes, words):
    prepared(recipe)
    rewrite(model / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(UserError, match=words):
        train(load(recipe, Recipe))
    assert not (tmp_path / "run").exists()


def test_without_data_the_error_says_what_to_run(recipe: Path, tmp_path: Path):
    with pytest.raises(UserError, match="terminus prepare"):
        train(load(recipe, Recipe))
    assert not (tmp_path / "run").exists()


def test_latents_of_another_geometry_are_not_used(recipe: Path):
    prepared(recipe)
    with pytest.raises(UserError, match="no train rows for this VAE and transform"):
        train(load(recipe, Recipe, ["data.resolution=64"]))


def test_from_random_weights_needs_a_vae_and_text_encoders(recipe: Path):
    prepared(recipe)
    with pytest.raises(UserError, match="needs a VAE and text encoders"):
        train(load(recipe, Recipe, ["model.start=null"]))


def test_the_finished_model_says_how_it_was_trained(recipe: Path, model: Path, tmp_path: Path):
    prepared(recipe)
    finished = train(load(recipe, Recipe, ["objective.weighting.form=paper", "objective.weighting.floor=0.05"]))
    record = load_record(finished)
    assert record.weighting == {"kind": "min_snr", "gamma": 5.0, "form": "paper", "floor": 0.05}
    assert record.schedule.prediction == "velocity"
    assert record.schedule.zero_terminal
    assert record.images_seen == 8
    assert record.parents == (str(model),)
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["steps"] == 2
    assert facts["validation_before"].keys() == facts["validation_after"].keys()


def test_vae_and_text_encoders_train_by_the_same_loop(recipe: Path, tmp_path: Path):
    settings = ["model.start=null", "model.architecture=nano", "data.resolution=64", "training.micro_batch=8"]
    loaded = load(recipe, Recipe, [*settings, "objective={kind: vae}"])
    prepare(loaded.value.data, None)
    vae = train(loaded)
    assert json.loads((vae / "vae" / "config.json").read_text())["scaling_factor"] > 0
    text_encoders = f"objective={{kind: text_encoders, tokenizers: {tmp_path / 'model'}}}"
    finished = train(load(recipe, Recipe, [*settings, text_encoders, f"run.dir={tmp_path / 'text_encoders'}"]))
    names = {path.name for path in finished.iterdir()}
    assert names == {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vision"}


@pytest.mark.parametrize(
    ("parent", "stated", "finished"),
    [("openrail++", None, "openrail++"), ("openrail++", "mit", "mit"), (None, None, None)],
)
def test_the_licence_is_what_the_recipe_states_or_the_parents(
    recipe: Path, model: Path, tmp_path: Path, parent: str | None, stated: str | None, finished: str | None
):
    rewrite(model / "terminus.json", licence=parent)
    loaded = load(recipe, Recipe, [f"run.licence={stated}"] if stated else [])
    prepare(loaded.value.data, loaded.value.model.vae_from)
    assert load_record(train(loaded)).licence == finished
