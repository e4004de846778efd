"""SimpleTuner: backends become sources, steps images, and every key is accounted for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from terminus.errors import UserError
from terminus.importing.command import read_settings
from terminus.importing.recipe import settle
from terminus.training.objectives import MinSnr

LOCAL = {"id": "a", "type": "local", "instance_data_dir": "a", "caption_strategy": "textfile"}


def backends(folder: Path, *entries: object, config: dict[str, object] | None = None) -> Path:
    """The path to import: `entries` as the list, under `config` if there is one."""
    there = folder / "st"
    there.mkdir(exist_ok=True)
    (there / "multidatabackend.json").write_text(json.dumps(entries), encoding="utf-8")
    if config is None:
        return there / "multidatabackend.json"
    (there / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return there / "config.json"


def told(path: Path) -> str:
    draft = read_settings(path)
    settle(draft)
    return "\n".join([*map(str, draft.left), *draft.notes])


@pytest.mark.parametrize("source", ["simpletuner", "simpletuner/config.json"])
def test_a_configuration_with_its_backends(source: str, imported):
    recipe, text, printed = imported(Path(source))
    assert [(one.kind, one.name) for one in recipe.data.sources] == [
        ("folder", "photos"),
        ("folder", "drawings-prints"),
        ("laion", "web"),
    ]
    assert recipe.data.sources[2].columns == {"url": "link", "caption": "alt"}
    data = recipe.data
    assert (data.resolution, data.buckets.kind, data.crop) == (1024, "aspect", "random")
    assert data.mix == {"drawings-prints": 5}, "0 is once there, and 4 is five times"
    assert recipe.objective.weighting == MinSnr(form="paper")
    assert [(b.low, b.high, b.weight) for b in recipe.objective.timestep_bands] == [(0, 399, 1.0), (400, 999, 2.0)]
    run = recipe.training
    assert (run.images, run.global_batch, run.learning_rate.max, run.learning_rate.min) == (1_200_000, 40, 4e-7, 8e-8)
    assert 0.5 ** (40 / run.ema.half_life_images) == pytest.approx(0.999, abs=1e-7)
    assert (run.weights, run.optimizer.moments, run.optimizer.beta2) == ("bf16", "bf16", 0.999)
    for secret in ("AKIAEXAMPLE", "wJalrXUtnFEMI", "hf_abcdef"):
        assert secret not in text + printed
    assert "did you mean vae_cache_ondemand?" in text


def test_every_key_of_both_files_stands_in_the_recipe(imported):
    text = imported(Path("simpletuner"))[1]
    folder = Path("simpletuner")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    listed = json.loads((folder / "multidatabackend.json").read_text(encoding="utf-8"))
    keys = {key.removeprefix("--") for key in config} | {key for one in listed for key in one}
    assert len(keys) > 60
    assert {key for key in keys if not re.search(rf"\b{key}\b", text)} == set()


@pytest.mark.parametrize(
    ("size", "kind", "side"),
    [(1.0, "area", 1024), (0.5, "area", 768), (0.25, "area", 512), (1.5, "area", 1216), (1024, "pixel", 1024),
     (512, "pixel_area", 512), ("1.0", "area", 1024), (1, None, 1024), (1000, "pixel_area", 960)],
)  # fmt: skip
def test_resolutions(here: Path, size: object, kind: str | None, side: int):
    config: dict[str, object] = {"model_family": "sdxl", "resolution": size, "resolution_type": kind}
    tree = settle(read_settings(backends(here, LOCAL, config=config)))
    assert tree["data"].get("resolution", 1024) == side


@pytest.mark.parametrize(
    ("settings", "kind", "crop"),
    [
        ({}, "aspect", "center"),
        ({"crop": True}, "square", "random"),
        ({"crop": True, "crop_style": "center"}, "square", "center"),
        ({"crop": "true", "crop_aspect": "closest", "crop_style": "centre"}, "aspect", "center"),
    ],
)
def test_crops(here: Path, imported, settings: dict[str, object], kind: str, crop: str):
    config: dict[str, object] = {"model_family": "sdxl"}
    if settings.get("crop") == "true":
        settings = {**settings, "crop": True}
    recipe = imported(backends(here, {**LOCAL, **settings}, config=config))[0]
    assert (recipe.data.buckets.kind, recipe.data.crop) == (kind, crop)


def test_uniform_sampling_is_exact_shares(here: Path, imported):
    entries = [{**LOCAL, "id": name, "instance_data_dir": name, "probability": p} for name, p in (("a", 1), ("b", 3))]
    config = {"model_family": "sdxl", "data_backend_sampling": "uniform"}
    assert imported(backends(here, *entries, config=config))[0].data.mix == {"a": 0.25}


def test_unequal_chances_are_not_guessed(here: Path):
    entries = [{**LOCAL, "id": name, "instance_data_dir": name, "probability": p} for name, p in (("a", 1), ("b", 3))]
    draft = read_settings(backends(here, *entries))
    assert "mix" not in settle(draft)["data"]
    assert len([left for left in draft.left if "set it by hand" in left.why]) == 2


def test_nothing_said_of_the_prediction_is_epsilon_there(here: Path):
    path = backends(here, LOCAL, config={"model_family": "sdxl", "rescale_betas_zero_snr": True})
    assert "trains SDXL as epsilon, whatever the checkpoint says" in told(path)
    assert "Terminus refuses the two together" in told(path)


def test_a_hub_data_set_at_a_commit(here: Path, imported):
    entry = {"id": "h", "type": "huggingface", "dataset_name": "a/b", "revision": "0" * 40, "caption_column": "text"}
    source = imported(backends(here, entry))[0].data.sources[0]
    assert (source.kind, source.repo, source.columns) == ("huggingface", "a/b", {"caption": "text"})


def test_two_backends_of_one_name_are_two_sources(here: Path, imported):
    entries = [LOCAL, {**LOCAL, "instance_data_dir": "b"}]
    assert [one.name for one in imported(backends(here, *entries))[0].data.sources] == ["a", "a-2"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([3], "should be an object"),
        ([[]], "should be an object"),
        ([{**LOCAL, "repeats": "4x"}], "[0].repeats is"),
        ([{**LOCAL, "repeats": 1.5}], "should be a whole number"),
        ([{**LOCAL, "id": 5}], "should be a text"),
        ([{**LOCAL, "resolution": -1}], "should be pixels, or megapixels"),
        ([], "no source of images"),
        ([{"id": "t", "dataset_type": "text_embeds", "cache_dir": "x"}], "no source of images"),
    ],
)
def test_hostile_backends(here: Path, entries: list[object], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        settle(read_settings(backends(here, *entries)))


def test_another_family_is_refused(here: Path):
    with pytest.raises(UserError, match="Terminus trains SDXL"):
        read_settings(backends(here, LOCAL, config={"model_family": "flux"}))


def test_a_list_that_is_not_there(here: Path):
    path = backends(here, LOCAL, config={"model_family": "sdxl", "data_backend_config": "elsewhere.json"})
    (path.parent / "multidatabackend.json").unlink()
    with pytest.raises(UserError, match="the list of image backends is not there"):
        read_settings(path)
