"""A run that trains an adapter: only that is saved, it continues bit for bit, and the end is a model and two files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from terminus.config.load import Loaded, load
from terminus.errors import UserError
from terminus.model.adapter_keys import networks
from terminus.model.adapters import Adapters
from terminus.model.components import Components, load_components
from terminus.training import run
from terminus.training.networks.adapter import is_adapter_parameter
from terminus.training.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
DORA = (
    "model.adapter={algorithm: dora, rank: 4, targets: all}",
    "objective.train_text_encoders=both",
    "objective.text_encoder_rate=0.5",
    "run.name=Ink",
)


def with_adapter(prepared: Path, folder: Path, *overrides: str) -> Loaded[Recipe]:
    return load(prepared / "recipe.yaml", Recipe, [f"run.dir={folder}", *DORA, *overrides])


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "run"
    run.train(with_adapter(prepared, folder, "training.images=64", "training.learning_rate.period_images=80"))
    return folder


def weights(components: Components) -> dict[str, Tensor]:
    parts = networks(components)
    return {f"{part}.{name}": value for part, one in parts.items() for name, value in one.state_dict().items()}


def test_a_run_in_pieces_ends_in_the_same_bits(finished: Path, prepared: Path, tmp_path: Path):
    """Ended after 24 images (a checkpoint), begun again from its files alone."""
    for images in (24, 64):
        period = "training.learning_rate.period_images=80"
        run.train(with_adapter(prepared, tmp_path / "run", f"training.images={images}", period))
    last = "checkpoints/images-000000000064"
    for name in ("weights", "average", "optimizer"):
        left, right = (load_file(one / last / f"{name}.safetensors") for one in (finished, tmp_path / "run"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    pieces = sorted(path.relative_to(finished) for path in (finished / "model").rglob("*.safetensors"))
    assert len(pieces) == 7  # UNet, VAE, two text encoders, vision, two files of the adapter
    for piece in pieces:
        assert (finished / piece).read_bytes() == (tmp_path / "run" / piece).read_bytes(), piece


def test_checkpoints_hold_the_adapter_alone(finished: Path):
    saved = load_file(finished / "checkpoints" / "images-000000000064" / "weights.safetensors")
    assert all(is_adapter_parameter(name) for name in saved)
    assert {name.split(".")[0] for name in saved} == {"unet", "text_encoder_1", "text_encoder_2"}


@pytest.mark.parametrize("file", ["ink.safetensors", "pytorch_lora_weights.safetensors"])
def test_the_model_is_its_start_and_the_adapter(finished: Path, random_nano: Path, file: str):
    """Up to the half precision in which a model is written."""
    model, start = load_components(finished / "model"), load_components(random_nano)
    before = {name: value.clone() for name, value in weights(start).items()}
    Adapters(start).attach(finished / "model" / "adapter" / file)
    put_on, merged = weights(start), weights(model)
    assert put_on.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(put_on[name], value, rtol=1e-3, atol=1e-5)
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, merged[name])}
    assert moved == {"unet", "text_encoder_1", "text_encoder_2"}


def test_the_facts_count_the_finished_model(finished: Path, random_nano: Path):
    parameters = json.loads((finished / "facts.json").read_text())["parameters"]
    start = load_components(random_nano)
    assert parameters["unet"] == sum(p.numel() for p in start.unet.parameters())


def test_the_shipped_recipe_runs(prepared: Path, random_nano: Path, tmp_path: Path):
    recipe = tmp_path / "short.yaml"
    tiny = load(prepared / "recipe.yaml", Recipe).value
    data = json.dumps(tiny.data.model_dump(mode="json"))
    recipe.write_text(
        f"extends: {RECIPES / 'lora.yaml'}\nrun: {{dir: {tmp_path / 'run'}}}\nmodel: {{start: {random_nano}}}\n"
        f"data: {data}\ntraining: {{images: 32, micro_batch: 8, validation: {{images: 8}}}}\n"
    )
    model = run.train(load(recipe, Recipe))
    assert sorted(path.name for path in (model / "adapter").iterdir()) == [
        "nano-lora.safetensors",
        "pytorch_lora_weights.safetensors",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.start=null", "model.vae=nano", "model.text_encoders=nano"], "adapter changes a trained model"),
        (["model.convert_from=epsilon"], "adapter leaves the model on its schedule"),
        (["model.adapter.rank=0"], "rank"),
    ],
)
def test_what_cannot_be_adapted_is_refused(prepared: Path, tmp_path: Path, overrides: list[str], words: str):
    with pytest.raises(UserError, match=words):
        with_adapter(prepared, tmp_path / "run", *overrides)


def test_an_adapter_is_for_diffusion(prepared: Path):
    overrides = ["model.adapter.rank=4", "objective={kind: vae}"]
    with pytest.raises(UserError, match=r"model\.adapter is for the objective diffusion"):
        load(prepared / "recipe.yaml", Recipe, overrides)


def test_frozen_weights_are_stored_as_they_are_multiplied(prepared: Path, tmp_path: Path, random_nano: Path):
    """A whole run in bf16, previews included; what it leaves alone is written as it was loaded."""
    narrow = ("training.precision=bf16", "training.images=16", "training.preview={every_images: 8, prompts: [a, b]}")
    model = run.train(with_adapter(prepared, tmp_path / "run", "objective.train_text_encoders=none", *narrow))
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    start, end = weights(load_components(random_nano)), weights(load_components(model))
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved
    assert all(name.startswith("unet.") and start[name].ndim >= 2 for name in moved)
