"""sd-scripts: what its options mean, level by level, and that none of them is lost."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from terminus.errors import UserError
from terminus.importing.command import read_settings
from terminus.importing.recipe import settle
from terminus.training.objectives import Constant, Debiased, Diffusion, MinSnr

DATA = '[[datasets]]\nresolution = 1024\n[[datasets.subsets]]\nimage_dir = "a"\n'


def left_of(path: Path) -> str:
    draft = read_settings(path)
    settle(draft)
    return "\n".join([*map(str, draft.left), *draft.notes])


def training(folder: Path, text: str) -> Path:
    (folder / "data.toml").write_text(DATA, encoding="utf-8")
    (folder / "t.toml").write_text(f'dataset_config = "data.toml"\n{text}', encoding="utf-8")
    return folder / "t.toml"


def test_a_training_file_and_its_dataset(here: Path, imported):
    recipe, text, printed = imported(Path("kohya/train.toml"))
    data = recipe.data
    assert [(one.name, str(one.path)) for one in data.sources] == [
        ("heldin", "kohya/images/heldin"),
        ("style", "kohya/images/style"),
        ("more", "C:\\images\\more"),
    ]
    assert (data.resolution, data.buckets.kind, data.mix) == (1024, "aspect", {"heldin": 10})
    objective = recipe.objective
    assert isinstance(objective, Diffusion)
    assert (objective.prediction, objective.zero_terminal_snr) == ("velocity", True)
    assert objective.weighting == MinSnr(gamma=5.0, form="paper")
    assert (objective.caption_dropout, objective.offset_noise, objective.text_encoder_rate) == (0.05, 0.0357, 0.5)
    run = recipe.training
    assert (run.micro_batch, run.accumulation, run.images, run.seed) == (4, 2, 16_000, 42)
    assert (run.optimizer.moments, run.optimizer.beta2, run.optimizer.weight_decay) == ("int8", 0.99, 0.1)
    assert (recipe.model.adapter.rank, recipe.model.adapter.alpha) == (32, 16.0)
    assert recipe.model.start == "kohya/models/noob-vpred.safetensors"
    assert "shufle_caption = true: unknown" in text
    assert "did you mean shuffle_caption?" in text
    assert "is never trained" in text
    assert "0123456789abcdef" not in text + printed
    assert "24 keys not carried over" in printed


def keys_of(value: object) -> set[str]:
    """The keys of all objects, also in lists."""
    if isinstance(value, dict):
        inner = {key for one in value.values() for key in keys_of(one)}
        return {key for key, one in value.items() if not isinstance(one, dict)} | inner
    return {key for one in value for key in keys_of(one)} if isinstance(value, list) else set()


@pytest.mark.parametrize("name", ["train.toml", "dataset.toml"])
def test_every_key_of_the_file_stands_in_the_recipe(name: str, imported):
    text = imported(Path("kohya") / name)[1]
    keys = keys_of(tomllib.loads(Path("kohya", name).read_text(encoding="utf-8")))
    assert len(keys) > 15
    assert {key for key in keys - {"datasets", "subsets"} if not re.search(rf"\b{key}\b", text)} == set()


def test_the_innermost_level_counts(here: Path):
    outer = "[general]\nnum_repeats = 3\ncaption_dropout_rate = 0.2\n"
    inner = 'num_repeats = 7\n[[datasets.subsets]]\nimage_dir = "b"\n'
    (here / "d.toml").write_text(outer + DATA + inner, encoding="utf-8")
    tree = settle(read_settings(here / "d.toml"))
    assert tree["data"]["mix"] == {"a": 7, "b": 3}
    assert tree["objective"]["caption_dropout"] == 0.2


@pytest.mark.parametrize(
    ("lines", "weighting", "prediction", "terminal", "given"),
    [
        ("zero_terminal_snr = true", Constant(kind="constant"), "epsilon", False, "Terminus refuses the two together"),
        ("v_parameterization = true", Constant(kind="constant"), "velocity", False, "never reaches pure noise"),
        ("min_snr_gamma = 3", MinSnr(gamma=3.0), "epsilon", False, ""),
        ("debiased_estimation_loss = true", Debiased(kind="debiased"), "epsilon", False, ""),
        (
            "debiased_estimation_loss = true\nv_parameterization = true\nzero_terminal_snr = true",
            Constant(kind="constant"), "velocity", True, "which is no form here",
        ),
        (
            "v_parameterization = true\nzero_terminal_snr = true\nmin_snr_gamma = 5",
            MinSnr(form="paper"), "velocity", True, "0.0047 by accident",
        ),
    ],
)  # fmt: skip
def test_objectives(here: Path, imported, lines, weighting, prediction, terminal, given):
    recipe, text, _ = imported(training(here, lines))
    assert recipe.objective.weighting == weighting
    assert (recipe.objective.prediction, recipe.objective.zero_terminal_snr) == (prediction, terminal)
    assert given in text


def test_a_conversion_of_the_base_model_is_consented_to(here: Path, imported):
    base = 'pretrained_model_name_or_path = "stabilityai/stable-diffusion-xl-base-1.0"\n'
    lines = "v_parameterization = true\nzero_terminal_snr = true"
    assert imported(training(here, base + lines))[0].model.convert_from == "epsilon"
    assert imported(training(here, base))[0].model.convert_from is None


@pytest.mark.parametrize(
    ("size", "bucket", "resolution"),
    [("512", "false", 512), ("[768, 1344]", "true", 960), ('"1024,1024"', "true", 1024), ("1000", "true", 960)],
)
def test_resolutions(here: Path, imported, size: str, bucket: str, resolution: int):
    text = DATA.replace("resolution = 1024", f"resolution = {size}\nenable_bucket = {bucket}")
    (here / "d.toml").write_text(text, encoding="utf-8")
    recipe = imported(here / "d.toml")[0]
    assert recipe.data.resolution == resolution
    assert recipe.data.buckets.kind == ("aspect" if bucket == "true" else "square")


def test_folders_with_repeats_in_their_names(here: Path, imported):
    for name in ("10_heldin woman", "1_style", "notes"):
        (here / "images" / name).mkdir(parents=True)
    (here / "t.toml").write_text('train_data_dir = "images"\ncaption_extension = ".txt"\n', encoding="utf-8")
    recipe = imported(here / "t.toml")[0]
    assert {one.name for one in recipe.data.sources} == {"heldin-woman", "style"}
    assert recipe.data.mix == {"heldin-woman": 10}


def test_captions_that_a_folder_does_not_read_are_said(here: Path):
    (here / "d.toml").write_text(DATA, encoding="utf-8")
    assert "caption_extension is not set, which is .caption there" in left_of(here / "d.toml")


def test_epochs_have_no_number_of_images(here: Path):
    assert "max_train_epochs = 10: an epoch has as many" in left_of(training(here, "max_train_epochs = 10"))


@pytest.mark.parametrize(
    "line",
    [
        "train_batch_size = -1",
        "seed = -5",
        "learning_rate = 0.0",
        "network_dim = 0\nnetwork_module = 'networks.lora'",
    ],
)
def test_a_value_that_no_setting_takes_is_listed(here: Path, line: str):
    assert "does not take it" in left_of(training(here, line))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('train_batch_size = "4"', 'train_batch_size is "4", and should be a number'),
        ("train_batch_size = 1.5", "should be a whole number"),
        ("learning_rate = nan", "should be a finite number"),
        ("learning_rate = [1]", "should be a number"),
        ("min_snr_gamma = true", "should be a number"),
        ("v_parameterization = 1", "should be true or false"),
        ("optimizer_type = 3", "should be a text"),
        ("optimizer_args = [1]", "a list of texts"),
        ("resolution = [1, 2, 3]", "data.toml"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_file(here: Path, line: str, message: str):
    path = training(here, line)
    if message == "data.toml":
        (here / "data.toml").write_text(DATA.replace("1024", "[1, 2, 3]"), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        read_settings(path)


@pytest.mark.parametrize(
    "text",
    ["datasets = 3", "datasets = [3]", "[[datasets]]\nsubsets = {a = 1}", "general = 1\ndatasets = []"],
)
def test_lists_where_objects_belong(here: Path, text: str):
    (here / "d.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"d\.toml: .*should be"):
        read_settings(here / "d.toml")


@pytest.mark.parametrize(("lines", "bands"), [("min_timestep = 400", [(400, 999)]), ("max_timestep = 300", [(0, 299)])])
def test_a_range_of_timesteps(here: Path, imported, lines: str, bands: list[tuple[int, int]]):
    recipe = imported(training(here, lines))[0]
    assert [(band.low, band.high) for band in recipe.objective.timestep_bands] == bands


def test_an_impossible_range_of_timesteps_is_listed(here: Path):
    assert "is no range within 0 to 1000" in left_of(training(here, "min_timestep = 900\nmax_timestep = 300"))
