"""The plan of a preparation: what is counted is the sources' own count, and what nobody knows is not made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from terminus import cli
from terminus.config.load import load
from terminus.data import plan
from terminus.data.filters import Filters
from terminus.data.plan import Machine, PreparePlan, Prices, Stage, TrainingEstimate, latent_bytes, plan_preparation
from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig
from terminus.data.sources.midjourney import DRAWN
from terminus.data.store import Store
from terminus.model.architecture import SDXL
from terminus.model.vae import build_vae
from terminus.training.plan.gpus import GPUS
from terminus.training.plan.planning import stage_of
from terminus.training.recipe import Recipe

HERE = Machine("a GPU", 500e12, 1000)
LATER = TrainingEstimate(Stage("train", 1000, 1e9, 0.0, 10.0, 7.0), 8, "assumed: nothing")


def planned(data: DataConfig, images: int | None = None, prices: Prices | None = None) -> dict[str, Stage]:
    return {stage.name: stage for stage in plan_preparation(data, HERE, LATER, images, prices).stages}


def config(tmp_path: Path, *sources: dict[str, Any], **settings: Any) -> DataConfig:
    return DataConfig.model_validate({"store": str(tmp_path / "data"), "sources": sources, **settings})


def embedded(limit: int = 12) -> dict[str, Any]:
    return {"kind": "embedded", "name": "emoji", "backgrounds": 2, "limit": limit}


def test_a_plan_counts_what_preparation_then_meets(tmp_path: Path):
    data = config(tmp_path, embedded(), resolution=64)
    stages = planned(data)
    report = prepare(data, None)
    assert stages["curate"].images == report.candidates == 24


def test_a_latent_is_planned_as_it_is_stored(tmp_path: Path):
    recipe = load("nano", Recipe, [f"data.store={tmp_path}/data", "data.sources.0.limit=3"]).value
    prepare(recipe.data, recipe.model.vae_from)
    rows = Store(recipe.data.store).latents.required().take([0], ["posterior"])
    factor = stage_of(recipe, GPUS["h100"]).factor
    assert latent_bytes(recipe.data, factor) == len(rows.column("posterior")[0].as_py())


def test_the_vaes_flops_are_those_of_torchs_counter(tmp_path: Path):
    with torch.device("meta"):
        vae = build_vae(SDXL).autoencoder
        for side in (512, 1024):
            with FlopCounterMode(display=False) as counter:
                vae.encode(torch.empty(1, 3, side, side))
            seconds = 1 / plan.encoded_per_second(config(tmp_path, embedded(), resolution=side), HERE)
            counted = counter.get_total_flops() / (plan.ENCODER_SHARE * HERE.flops)
            assert seconds == pytest.approx(counted, rel=0.005)


def test_what_is_not_known_stays_so(tmp_path: Path):
    data = config(tmp_path, embedded(), {"kind": "laion", "name": "web", "path": str(tmp_path / "none")})
    found = plan_preparation(data, HERE, LATER)
    by_name = {source.name: source for source in found.sources}
    assert (by_name["emoji"].count, by_name["web"].count) == (24, None)
    assert "nothing under this name" in by_name["web"].why
    stages = {stage.name: stage for stage in found.stages}
    assert stages["curate"].images is None
    assert stages["encode"].gpu_hours is None
    assert stages["train"] == LATER.stage
    assert any(fact.startswith("not known:") for fact in found.facts)
    assert not any("passes" in fact for fact in found.facts)


def test_nothing_large_is_read_to_count(tmp_path: Path):
    """Neither a repository is fetched nor a remote list read: there is no network here, and no error."""
    data = config(
        tmp_path,
        {"kind": "huggingface", "name": "hub", "repo": "someone/some-data", "revision": "0" * 40},
        {"kind": "coco", "name": "coco", "path": "s3://bucket/captions.json"},
    )
    assert [source.count for source in plan_preparation(data, HERE, LATER).sources] == [None, None]


def test_numbers_follow_from_what_is_stated(tmp_path: Path):
    data = config(
        tmp_path, embedded(), resolution=1024, crop="native", crops=2,
        captioner={"name": "vlm", "model": {"kind": "local", "model": "x"}},
    )  # fmt: skip
    found = plan_preparation(data, HERE, LATER, images=3600)
    curate, caption, encode, train = found.stages
    assert curate.disk == 3600 * plan.IMAGE_BYTES
    assert curate.core_hours == pytest.approx(1 / plan.DECODED)
    assert caption.gpu_hours == pytest.approx(plan.CAPTION_SECONDS)
    assert caption.kwh == pytest.approx(caption.gpu_hours)
    assert encode.images == 7200
    assert encode.disk == 7200 * 262_144
    assert encode.gpu_hours == pytest.approx(2 * 4.879e12 / (plan.ENCODER_SHARE * HERE.flops), rel=0.001)
    assert train.gpu_hours == 10.0
    assert {fact.split(":")[0] for fact in found.facts} <= {"counted", "measured", "computed", "assumed"}


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ({}, "10.0 passes over all of them"),
        ({"anchor": 0.1}, "3.0 passes over anchor, 13.5 passes over web"),
        ({"anchor": 3}, "18.0 passes over anchor, 6.0 passes over web"),
    ],
)
def test_passes_are_those_of_each_source_where_they_are_mixed(tmp_path: Path, mix: dict[str, float], says: str):
    anchor = {"kind": "embedded", "name": "anchor", "limit": 10, "backgrounds": 2, "styles": ("3d",)}
    data = config(tmp_path, anchor, anchor | {"name": "web", "limit": 20, "backgrounds": 2}, mix=mix)
    training = replace(LATER, stage=replace(LATER.stage, images=600))
    [metadata] = [fact for fact in plan_preparation(data, HERE, training).facts if "passes" in fact]
    assert metadata.endswith(f"are {says}")


def test_a_cost_is_said_only_where_every_price_is(tmp_path: Path):
    data = config(tmp_path, embedded())
    assert {stage.cost for stage in planned(data).values()} == {None}
    half = planned(data, prices=Prices(gpu=2.0))
    assert half["train"].cost == 20.0
    assert half["encode"].cost is half["curate"].cost is None
    both = planned(data, prices=Prices(2.0, 0.5))
    assert both["curate"].cost == pytest.approx(0.5 * (both["curate"].core_hours or 0))


@pytest.mark.parametrize("name", ["gamma-v2", "otaku-v1", "nano", "nano-vae"])
def test_the_command_says_it_and_writes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    smaller = ["model.architecture=nano", "model.start=null"] if name in ("gamma-v2", "otaku-v1") else []
    command = ["prepare", name, *smaller, "--plan", "--images", "1000", "--gpu", "a100"]
    assert cli.main(command) == 0
    assert "curate" in capsys.readouterr().out
    assert cli.main([*command, "--json", "--price-gpu", "1", "--price-core", "1"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(found) == set(PreparePlan.__annotations__)
    assert [stage["name"] for stage in found["stages"]] == ["curate", "caption", "encode", "train"]
    assert list(tmp_path.iterdir()) == []


def test_options_of_the_plan_need_it(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["prepare", "nano", "--images", "5"]) == 2
    assert "need --plan" in capsys.readouterr().err


def test_the_cards_numbers_are_in_the_recipes():
    gamma, otaku = (load(name, Recipe).value for name in ("gamma-v2", "otaku-v1"))
    assert (gamma.training.global_batch, otaku.training.global_batch) == (360, 96)
    assert (gamma.training.images, otaku.training.images) == (60 * 770_000, 11 * 50_000)
    rates = [(one.training.learning_rate.min, one.training.learning_rate.max) for one in (gamma, otaku)]
    assert rates == [(4e-7, 8e-7), (1e-7, 1e-6)]
    assert (gamma.data.crop, otaku.data.crop) == ("random", "native")
    assert float(otaku.data.shares["anchor"]) == 0.1
    assert {*DRAWN, "niji"} == set(otaku.data.filters_for("mj").require_tags)
    assert otaku.data.captioner is not None
    assert otaku.data.captioner.sources == ("niji-showcase", "mj-showcase")
    assert otaku.data.filters_for("anchor").require_tags == ()
    hd, general = (gamma.data.filters_for(name) for name in ("laion-hd", "mj-general"))
    assert (hd.require_exif_camera, hd.max_luminance, hd.max_watermark) == (True, 0.5, 0.5)
    assert general == Filters()
