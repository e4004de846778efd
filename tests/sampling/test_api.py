"""`from terminus import Terminus`: what a script gets back."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from terminus import Terminus, __version__
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.sampling.requests import parse_size
from terminus.sampling.settings import Settings


def test_importing_terminus_is_cheap():
    code = "import sys, terminus; terminus.__version__; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_name_that_is_not_there():
    with pytest.raises(ImportError, match="Terminos"):
        from terminus import Terminos  # type: ignore[attr-defined]  # noqa: F401


def test_pictures_carry_what_repeats_them(model: Terminus, random_nano: Path):
    (picture,) = model.text2img("a red apple", "blurry", seed=5, steps=3, size="48x16")
    assert (picture.mode, picture.size) == ("RGB", (48, 16))
    said = json.loads(picture.info["terminus"])
    weights = random_nano / "unet" / "diffusion_pytorch_model.safetensors"
    assert said["model_hash"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert said["model"] == "random-nano"
    assert said["version"] == __version__
    asked = {key: said[key] for key in ("seed", "steps", "guidance", "rescale", "solver")}
    (again,) = model.text2img(said["prompt"], said["negative"], **asked, size=Size(**said["size"]))
    assert np.array_equal(np.asarray(again), np.asarray(picture))
    assert again.info == picture.info


def test_every_prompt_is_drawn_with_every_seed(model: Terminus):
    pictures = model.text2img(["a dog", "a cat"], seed=7, count=2, steps=1)
    said = [json.loads(picture.info["terminus"]) for picture in pictures]
    assert [(one["prompt"], one["seed"]) for one in said] == [("a dog", 7), ("a dog", 8), ("a cat", 7), ("a cat", 8)]
    listed = model.text2img("a cat", seed=[8, 7], steps=1)
    assert [np.asarray(one).tolist() for one in listed] == [np.asarray(one).tolist() for one in pictures[:1:-1]]


def test_batches_do_not_show(model: Terminus, monkeypatch: pytest.MonkeyPatch):
    whole = model.text2img("a dog", count=3, steps=2)
    monkeypatch.setattr("terminus.sampling.api._BATCH_PICTURES", 2)
    parts = model.text2img("a dog", count=3, steps=2)
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
        assert one.info == other.info


def test_a_stream_shows_every_step_and_ends_in_the_picture(model: Terminus):
    settings = Settings(steps=3)
    drawings = list(model.stream("a dog", seed=2, settings=settings))
    assert [(one.step, one.steps, one.finished) for one in drawings] == [(1, 3, False), (2, 3, False), (3, 3, True)]
    (preview,), (final,) = drawings[0].pictures(), drawings[-1].pictures()
    assert preview.info == {}
    (expected,) = model.text2img("a dog", seed=2, steps=3)
    assert np.array_equal(np.asarray(final), np.asarray(expected))
    assert not np.array_equal(np.asarray(preview), np.asarray(expected))


def test_a_runs_model_is_named_by_its_run(random_nano: Path, tmp_path: Path):
    shutil.copytree(random_nano, tmp_path / "my-run" / "model")
    assert Terminus.load(tmp_path / "my-run" / "model").name == "my-run"


def test_numbers_that_are_none_are_not_painted(random_nano: Path):
    broken = Terminus.load(random_nano)
    broken.components.unet.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match="drew NaN"):
        broken.text2img("a dog", steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count 0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63 - 1, "count": 2}, "seed 9223372036854775807"),
        ({"seed": [1, 2], "count": 3}, "count 3 and 2 seeds"),
        ({"seed": [1, -2]}, "seed -2"),
        ({"size": "48"}, "size '48'"),
        ({"size": "40x32"}, "The nearest is 32x32"),
        ({"solver": "eular"}, "Did you mean `euler`"),
    ],
)
def test_a_wrong_argument_is_a_users_error(model: Terminus, arguments: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        model.text2img("a dog", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "x", "32x", "x32", "-32x32", "32x32x32", "3e1x32", "1" * 5000 + "x1", "٣x32x"])
def test_a_size_is_width_by_height(text: str):
    assert parse_size("48x16") == parse_size("48X16") == Size(height=16, width=48)
    with pytest.raises(UserError, match="WIDTHxHEIGHT"):
        parse_size(text)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there(random_nano: Path, device: str):
    with pytest.raises(UserError, match="cannot be used"):
        Terminus.load(random_nano, device=device)


def test_the_defaults_are_the_settings(model: Terminus):
    (picture,) = model.text2img("a dog", size="16x16")
    said = json.loads(picture.info["terminus"])
    expected = replace(Settings(), rescale=0.7)
    assert [said[key] for key in ("steps", "guidance", "solver", "rescale")] == [
        *(expected.steps, expected.guidance, expected.solver, expected.rescale),
    ]


def test_many_pictures_of_one_prompt_are_asked_for_at_once(model: Terminus, monkeypatch: pytest.MonkeyPatch):
    """Every request is checked before the first is drawn, and reading a prompt takes longer than all else there."""
    from terminus.sampling import api

    read: list[str] = []
    chunks = api.chunks
    monkeypatch.setattr(
        api, "chunks", lambda components, one, how: read.append(one.prompt) or chunks(components, one, how)
    )
    stream = model.stream(["a dog", "a cat"], count=20_000)
    next(stream)
    assert read == ["a dog", "a cat"]
    with pytest.raises(UserError, match="1 to 100,000"):
        next(model.stream("a dog", count=100_001))
