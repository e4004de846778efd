"""A run that stores less than float32 stops and continues bit for bit, and its model is the float32 average."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from terminus.config.load import Loaded
from terminus.training import run
from terminus.training.recipe import Recipe

from .conftest import losses

LEAN = ("training.precision=bf16", "training.weights=bf16", "training.loader_threads=0")
KINDS = {
    "adamw": ("training.optimizer.moments=bf16", "training.ema={kind: power, device: cpu, every_steps: 2}"),
    "adafactor": ("training.optimizer={kind: adafactor}",),
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_a_lean_run_in_two_pieces_is_the_run_in_one(
    settings: tuple[str, ...], recipe: Callable[..., Loaded[Recipe]], tmp_path: Path
):
    one, two = tmp_path / "one", tmp_path / "two"
    run.train(recipe(f"run.dir={one}", "training.images=32", *LEAN, *settings))
    run.train(recipe(f"run.dir={two}", "training.images=16", *LEAN, *settings))
    run.train(recipe(f"run.dir={two}", "training.images=32", *LEAN, *settings))
    files = sorted(one.glob("checkpoints/images-000000000032/*.safetensors"))
    assert {file.stem for file in files} == {"weights", "average", "optimizer"}
    for file in files:
        left, right = load_file(file), load_file(two / file.relative_to(one))
        assert left.keys() == right.keys()
        assert all(left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left)
    assert [row[:4] for row in losses(one)] == [row[:4] for row in losses(two)]
    weights, average = (
        load_file(one / f"checkpoints/images-000000000032/{name}.safetensors") for name in ("weights", "average")
    )
    assert {weights[name].dtype for name in weights if weights[name].ndim >= 2} == {torch.bfloat16}
    assert {value.dtype for value in average.values()} == {torch.float32}
    model = load_file(one / "model/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, average[name].to(value.dtype)) for name, value in model.items())
