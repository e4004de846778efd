"""Models in a worker's memory: counted by what is loaded of them, the one used longest ago goes first."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from terminus.serving.shelf import Shelf, weight_numbers


def test_only_what_is_loaded_is_counted(random_nano: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(random_nano, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weight_numbers(folder)
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert weight_numbers(folder) == before > 0
    assert weight_numbers(weights) < before, "a single file is a whole model too"


def test_the_model_used_longest_ago_makes_room(random_nano: Path, tmp_path: Path):
    names = [str(tmp_path / name) for name in "abc"]
    for name in names:
        shutil.copytree(random_nano, name)
    size = 4 * weight_numbers(random_nano)

    def free(device: torch.device) -> int:
        assert device.type == "cpu"
        return int(size * (2.5 - len(shelf.loaded)))

    shelf = Shelf("cpu", free)
    for name in names[:2]:
        shelf.model(name)
    assert shelf.loaded == (names[0], names[1]), "the second needs 1.3 sizes, and has 1.5"
    shelf.model(names[2])
    assert shelf.loaded == (names[1], names[2])
    kept = shelf.model(names[1])
    shelf.model(names[0])
    assert shelf.loaded == (names[1], names[0]), "used last, it stays"
    assert shelf.model(names[1]) is kept
