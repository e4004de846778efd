"""`from terminus import Terminus`: what a script gets back."""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

import terminus
from terminus import Terminus, __version__, cli
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.execution import Running, running
from terminus.sampling.api import How
from terminus.sampling.arguments import Start
from terminus.sampling.command import edit_of
from terminus.sampling.edits import Hires
from terminus.sampling.metadata import read_image_metadata
from terminus.sampling.settings import Settings
from terminus.sampling.shapes import parse_interval, parse_size


def test_importing_terminus_is_cheap():
    code = "import sys, terminus; terminus.__version__; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_name_that_is_not_there():
    with pytest.raises(ImportError, match="Terminos"):
        from terminus import Terminos  # noqa: F401


def test_images_carry_what_repeats_them(model: Terminus, random_nano: Path):
    (image,) = model.text2img("a red apple", "blurry", seed=5, steps=3, size="48x16")
    assert (image.mode, image.size) == ("RGB", (48, 16))
    said = json.loads(image.info["terminus"])
    weights = random_nano / "unet" / "diffusion_pytorch_model.safetensors"
    assert said["model_hash"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert said["model"] == "random-nano"
    assert said["version"] == __version__
    asked = {key: said[key] for key in ("seed", "steps", "guidance", "rescale", "solver")}
    (again,) = model.text2img(said["prompt"], said["negative"], **asked, size=Size(**said["size"]))
    assert np.array_equal(np.asarray(again), np.asarray(image))
    assert again.info == image.info


def test_every_prompt_is_drawn_with_every_seed(model: Terminus):
    images = model.text2img(["a dog", "a cat"], seed=7, count=2, steps=1)
    said = [json.loads(image.info["terminus"]) for image in images]
    assert [(one["prompt"], one["seed"]) for one in said] == [("a dog", 7), ("a dog", 8), ("a cat", 7), ("a cat", 8)]
    listed = model.text2img("a cat", seed=[8, 7], steps=1)
    assert [np.asarray(one).tolist() for one in listed] == [np.asarray(one).tolist() for one in images[:1:-1]]


def test_batches_do_not_show(model: Terminus, monkeypatch: pytest.MonkeyPatch):
    whole = model.text2img("a dog", count=3, steps=2)
    monkeypatch.setattr("terminus.sampling.api._BATCH_IMAGES", 2)
    parts = model.text2img("a dog", count=3, steps=2)
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
        assert one.info == other.info


def test_a_stream_shows_every_step_and_ends_in_the_image(model: Terminus):
    settings = Settings(steps=3)
    drawings = list(model.stream("a dog", seed=2, settings=settings))
    assert [(one.step, one.steps, one.finished) for one in drawings] == [(1, 3, False), (2, 3, False), (3, 3, True)]
    (preview,), (final,) = drawings[0].images(), drawings[-1].images()
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
    with pytest.raises(UserError, match="produced NaN"):
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
        model.text2img("a dog", **arguments)


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
    (image,) = model.text2img("a dog", size="16x16")
    said = json.loads(image.info["terminus"])
    expected = replace(Settings(), rescale=0.7)
    assert [said[key] for key in ("steps", "guidance", "solver", "rescale")] == [
        *(expected.steps, expected.guidance, expected.solver, expected.rescale),
    ]


def test_many_images_of_one_prompt_are_asked_for_at_once(model: Terminus, monkeypatch: pytest.MonkeyPatch):
    """Every request is checked before the first is drawn, and reading a prompt takes longer than all else there."""
    from terminus.sampling import api

    read: list[str] = []
    chunks = api.prompt_chunks
    monkeypatch.setattr(
        api, "prompt_chunks", lambda components, one, how: read.append(one.prompt) or chunks(components, one, how)
    )
    stream = model.stream(["a dog", "a cat"], count=20_000)
    next(stream)
    assert read == ["a dog", "a cat"]
    with pytest.raises(UserError, match="1 to 100,000"):
        next(model.stream("a dog", count=100_001))


def test_the_command_line_and_python_have_the_same_defaults(model: Terminus, tmp_path: Path):
    line = {name: one.default for name, one in inspect.signature(cli.sample).parameters.items()}
    line["interval"] = parse_interval(line["interval"])
    settings = vars(Settings())
    assert line.keys() & settings.keys() == settings.keys() - {"conditioning", "negative_conditioning", "precision"}
    assert {name: line[name] for name in line.keys() & settings.keys()} == {
        name: settings[name] for name in line.keys() & settings.keys()
    }
    assert get_type_hints(How).keys() == settings.keys() | {"control_inputs"}
    python = inspect.signature(Terminus.text2img).parameters
    for name in ("negative", "seed", "count", "hires"):
        assert python[name].default == line[name], name
    load = inspect.signature(Terminus.load).parameters
    assert load["device"].default == line["device"]
    assert running(line["compiled"], line["offload"]) == Running()
    # what a start from an image leaves open
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    Image.linear_gradient("L").resize((32, 32)).point(lambda value: 255 * (value > 99)).save(tmp_path / "m.png")
    for start, task in (
        (Start(tmp_path / "a.png"), Terminus.img2img),
        (Start(tmp_path / "a.png", mask=tmp_path / "m.png"), Terminus.inpaint),
    ):
        edit = edit_of(start, model, Settings())
        assert edit is not None
        assert edit.strength == inspect.signature(task).parameters["strength"].default
    enlarged = edit_of(Start(tmp_path / "a.png", upscale=2.0), model, Settings())
    (one,) = model.upscale(tmp_path / "a.png", 2.0, steps=2)
    assert enlarged is not None
    assert enlarged.strength == json.loads(one.info["terminus"])["strength"]
    assert Start(hires="2").second_pass() == astuple(Hires(2.0))


def test_a_drawing_that_is_cancelled_leaves_nothing_behind(model: Terminus):
    (expected,) = model.text2img("a cat", steps=2)
    stream = model.stream("a dog", count=4, settings=Settings(steps=50))
    drawing = next(stream)
    latents = weakref.ref(drawing.x0)
    stream.close()
    assert len(drawing.images()) == 4  # a preview that is held stays good
    del drawing
    gc.collect()
    assert latents() is None
    (after,) = model.text2img("a cat", steps=2)
    assert np.array_equal(np.asarray(after), np.asarray(expected))


def test_threads_may_share_a_model(model: Terminus):
    prompts = ["a dog", "a (cat:1.3)", "a bird BREAK a tree", "a fish"]

    def drawn(prompt: str) -> bytes:
        return model.text2img(prompt, "blurry", steps=3)[0].tobytes()

    alone = [drawn(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, prompts)) == alone


def test_the_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As they stand there, in a folder of a user's own; what they save says how it was made."""
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    assert len(lines.splitlines()) <= 6
    exec(lines, {})
    (saved,) = tmp_path.iterdir()
    facts = read_image_metadata(saved)
    assert (facts.kind, facts.source_type) == ("terminus", "trainedAlgorithmicMedia")


def test_type_checkers_are_told_that_there_are_types():
    assert (Path(terminus.__file__).parent / "py.typed").is_file()
