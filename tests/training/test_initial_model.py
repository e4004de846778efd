"""Epsilon models: they train as they are, and become velocity models only by consent; the finished model says which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from terminus.config.load import Loaded, load
from terminus.data.prepare import prepare
from terminus.errors import UserError
from terminus.model.convert import convert
from terminus.model.record import Schedule, load_record
from terminus.training.initial_model import begin
from terminus.training.objectives import Diffusion
from terminus.training.recipe import ModelConfig, Recipe
from terminus.training.run import train

RECIPES = Path(__file__).parents[2] / "recipes"
LEAKY = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}


@pytest.fixture(scope="module")
def folder(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an epsilon model on SDXL's own schedule, and prepared data."""
    folder = tmp_path_factory.mktemp("convert")
    model = shutil.copytree(random_nano, folder / "epsilon")
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | LEAKY))
    settings = small(folder, "sdxl-to-ztsnr", "stage-1", folder / "epsilon").value
    prepare(settings.data, settings.model.vae_from)
    return folder


def small(folder: Path, recipe: str, run: str, start: Path, *more: str) -> Loaded[Recipe]:
    """A shipped recipe at the size of a test."""
    overrides = [
        f"run.dir={folder / run}", f"model.start={start}", f"data.store={folder / 'data'}",
        "data.sources=[{kind: embedded, backgrounds: 2, limit: 80}]", "data.resolution=32",
        "data.buckets={kind: square}", "data.validation_fraction=0.1",
        "training.images=240", "training.micro_batch=8", "training.accumulation=1", "training.precision=fp32",
        "training.learning_rate={max: 2.0e-3, min: 1.0e-3, warmup_images: 16, period_images: 200}",
        "training.validation={every_images: 240, images: 16}", "training.preview.prompts=[]",
        "training.ema={half_life_images: 32}",
    ]  # fmt: skip
    return load(RECIPES / f"{recipe}.yaml", Recipe, [*overrides, *more])


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_both_stages_of_the_conversion(folder: Path):
    first = train(small(folder, "sdxl-to-ztsnr", "stage-1", folder / "epsilon"))
    record = load_record(first)
    assert (record.schedule.prediction, record.schedule.zero_terminal) == ("velocity", True)
    assert record.parents == (str(folder / "epsilon"),)
    log = rows(folder / "stage-1")
    before, after = log[0]["validation_before"], log[-1]["validation"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["all"] < 0.9 * before["all"], (before, after)

    second = train(small(folder, "sdxl-to-ztsnr-late", "stage-2", first))
    record = load_record(second)
    assert (record.schedule.prediction, record.schedule.zero_terminal) == ("velocity", True)
    assert record.parents == (str(folder / "epsilon"), str(first))
    assert record.images_seen == 480
    late = early = 0
    for row in rows(folder / "stage-2"):
        bands = row["bands"]
        assert isinstance(bands, dict)
        late += sum(key >= "400" for key in bands)
        early += sum(key < "400" for key in bands)
    assert late > 2 * early

    with pytest.raises(UserError, match="The checkpoint is velocity with zero terminal SNR, and"):
        train(small(folder, "sdxl-to-ztsnr", "again", first))


def test_an_epsilon_model_goes_on_as_one(folder: Path):
    objective = "objective={kind: diffusion, prediction: epsilon, zero_terminal_snr: false}"
    settings = (objective, "model.convert_from=null", "training.images=80", "training.checkpoints.every_images=40")
    half = small(folder, "sdxl-to-ztsnr", "epsilon-run", folder / "epsilon", *settings, "training.images=40")
    train(half)
    finished = train(small(folder, "sdxl-to-ztsnr", "epsilon-run", folder / "epsilon", *settings))
    record = load_record(finished)
    assert record.schedule == Schedule(prediction="epsilon", zero_terminal=False)
    once = train(small(folder, "sdxl-to-ztsnr", "epsilon-once", folder / "epsilon", *settings))
    wall = ("seconds", "images_per_second", "validation")
    logs = [
        [{key: value for key, value in row.items() if key not in wall} for row in rows(folder / name)]
        for name in ("epsilon-run", "epsilon-once")
    ]
    assert logs[0] == logs[1]
    assert load_record(once) == record


def test_a_flow_trains_and_its_files_say_what_it_is(folder: Path):
    objective = "objective={kind: diffusion, prediction: flow, shift: 3.0, weighting: {kind: constant}}"
    density = "objective.timestep_density=logit_normal"
    finished = train(small(folder, "sdxl-to-ztsnr", "flow", folder / "epsilon", objective, density))
    assert load_record(finished).schedule == Schedule("flow", shift=3.0)
    bands = rows(folder / "flow")[-1]["validation"], rows(folder / "flow")[0]["validation_before"]
    assert bands[0]["all"] < 0.9 * bands[1]["all"]

    # A single file and back: the label, the shift and the class that diffusers loads.
    file = convert(finished, folder / "nano-flow.safetensors")
    assert file.says == "flow"
    again = convert(file.target, folder / "again").target
    assert load_record(again).schedule == Schedule("flow", shift=3.0)
    index = json.loads((again / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]

    # It goes on as what it is, and as nothing else without consent.
    for settings, words in (
        ({}, r"objective\.shift: the checkpoint says 3\.0, the recipe says 1\.0"),
        ({"prediction": "velocity"}, "objective.prediction: the checkpoint says flow, the recipe says velocity"),
    ):
        with pytest.raises(UserError, match=words):
            begin(ModelConfig(start=str(finished)), Diffusion(**{"prediction": "flow"} | settings))
    with pytest.raises(UserError, match=r"convert_from says a rectified flow|convert_from says velocity"):
        begin(ModelConfig(start=str(finished), convert_from="velocity"), Diffusion(prediction="flow"))
    longer = begin(ModelConfig(start=str(finished), convert_from="flow"), Diffusion(prediction="flow"))
    assert longer.record.schedule == Schedule("flow")
    back = begin(ModelConfig(start=str(finished), convert_from="flow"), Diffusion())
    assert back.record.schedule == Schedule()


@pytest.mark.parametrize("known", ["epsilon", "velocity"])
def test_a_model_becomes_a_flow_by_consent(folder: Path, random_nano: Path, known: str):
    start = str(folder / "epsilon" if known == "epsilon" else random_nano)
    with pytest.raises(UserError, match=f"or set model.convert_from: {known} to train it into another"):
        begin(ModelConfig(start=start), Diffusion(prediction="flow"))
    components = begin(ModelConfig(start=start, convert_from=known), Diffusion(prediction="flow", shift=2.0))
    assert components.record.schedule == Schedule("flow", shift=2.0)


def text_weights(model: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name in ("text_encoder", "text_encoder_2")
        for key, value in load_file(model / name / "model.safetensors").items()
    }


def test_a_run_leaves_frozen_text_encoders_alone_and_continues_trained_ones(folder: Path):
    def run(name: str, *settings: str) -> Path:
        return train(small(folder, "sdxl-to-ztsnr", name, folder / "epsilon", "training.images=48", *settings))

    start, frozen = text_weights(folder / "epsilon"), text_weights(run("frozen"))
    assert all(torch.equal(frozen[key], value) for key, value in start.items())
    trained = run("trained", "objective.train_text_encoders=both")
    changed = {key for key, value in text_weights(trained).items() if not torch.equal(value, start[key])}
    assert {key.split(".")[0] for key in changed} == {"text_encoder", "text_encoder_2"}

    both = ("objective.train_text_encoders=both", "training.checkpoints.every_images=24")
    run("cut", *both, "training.images=24")
    again = run("cut", *both)
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model"):
        one, two = load_file(trained / f"{name}.safetensors"), load_file(again / f"{name}.safetensors")
        assert all(torch.equal(one[key], two[key]) for key in one), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.convert_from=null"], "checkpoint says epsilon, the recipe says velocity"),
        (["model.convert_from=velocity"], "is epsilon without zero terminal SNR, and model.convert_from says velocity"),
        (["objective.prediction=epsilon", "objective.zero_terminal_snr=false"], "asks for a conversion"),
        (["model.start=null", "model.vae=nano", "model.text_encoders=nano"], "model.start is null"),
        (["objective.timestep_bands=[{low: 0, high: 1000}]"], "timesteps are 0 to 999"),
    ],
)
def test_what_is_refused(folder: Path, settings: list[str], words: str):
    with pytest.raises(UserError) as caught:
        train(small(folder, "sdxl-to-ztsnr", "refused", folder / "epsilon", *settings))
    assert words in str(caught.value)
    assert not (folder / "refused").exists()


def test_the_conflict_says_how_to_convert(folder: Path):
    with pytest.raises(UserError, match=r"set model\.convert_from: epsilon"):
        train(small(folder, "sdxl-to-ztsnr", "refused", folder / "epsilon", "model.convert_from=null"))


def test_epsilon_with_zero_terminal_snr_is_refused_where_it_is_written():
    with pytest.raises(UserError, match="cannot be trained with zero_terminal_snr"):
        load(RECIPES / "sdxl-to-ztsnr.yaml", Recipe, ["objective.prediction=epsilon"])
