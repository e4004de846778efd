"""docs/interop.md against the diffusers that is installed: its tables say what is so, its snippets run.

A scheduler is judged by what comes out, not by its config, which goes on saying `rescale_betas_zero_snr` where the
class has never heard of it. The data are normal, so that the best possible velocity is known in closed form: a right
sampler returns their mean.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from terminus.diffusion.schedule import NoiseSchedule
from terminus.model.weights import SHIPPED
from tests.documents.blocks import blocks

# diffusers' schedulers hand tensors to numpy in ways that numpy 2 deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
MEAN, DEVIATION, STEPS = 1.5, 0.5, 28
SCHEDULE = NoiseSchedule.scaled_linear().with_zero_terminal_snr()


def table(first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has this title."""
    lines = iter(PAGE.splitlines())
    head = next(line for line in lines if line.startswith(f"| {first} |"))
    titles = [cell.strip() for cell in head.strip("|").split("|")]
    next(lines)
    rows: list[dict[str, str]] = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(titles, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return rows


PIPELINES, SCHEDULERS = table("pipeline"), table("scheduler")


@pytest.mark.parametrize("row", PIPELINES, ids=lambda row: row["pipeline"].strip("`"))
def test_what_the_page_says_of_a_pipeline(row: Mapping[str, str]):
    parameters = inspect.signature(getattr(diffusers, row["pipeline"].strip("`")).__call__).parameters
    assert row["`guidance_rescale`"].split()[0] == ("yes" if "guidance_rescale" in parameters else "**no**")
    assert "guidance_rescale" not in parameters or parameters["guidance_rescale"].default == 0.0
    strength = str(parameters["strength"].default) if "strength" in parameters else "-"
    assert row["default `strength`"].strip("*") == strength


def test_the_page_names_every_pipeline():
    there = {name for name in dir(diffusers) if name.startswith("StableDiffusionXL") and name.endswith("Pipeline")}
    named = [row["pipeline"].strip("`") for row in PIPELINES]
    assert sorted(named) == sorted(there - {"StableDiffusionXLModularPipeline"})


def named(row: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """`EulerDiscreteScheduler`, `timestep_spacing="leading"` → the class's name and the changed settings."""
    name, *changes = re.findall(r"`([^`]+)`", row["scheduler"])
    return name, {key: json.loads(value) for key, value in (change.split("=") for change in changes)}


def scheduler_of(folder: Path, row: Mapping[str, str]) -> Any:
    """As people swap schedulers: `from_config` with the config that our folder holds."""
    name, changes = named(row)
    ours: Any = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    return getattr(diffusers, name).from_config(ours.config, **changes)


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[v | x] for data N(MEAN, DEVIATION²); between two timesteps (Heun's) alpha is interpolated."""
    below = min(int(t), SCHEDULE.timesteps - 2)
    alpha = float(torch.lerp(SCHEDULE.alpha[below], SCHEDULE.alpha[below + 1], t - below))
    sigma = (1 - alpha**2) ** 0.5
    deviation = (x - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
    x0, epsilon = MEAN + alpha * DEVIATION**2 * deviation, sigma * deviation
    return alpha * epsilon - sigma * x0


def sample(scheduler: Any, steps: int = STEPS) -> tuple[float, float]:
    """The pipeline's loop with the best possible network: the first timestep and the mean of what is drawn."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(1, 4, 64, 64, generator=generator)
    # Every number and its opposite, so that the noise has a mean of exactly 0 and the answer's error is the solver's.
    x = torch.cat([half, -half]) * scheduler.init_noise_sigma
    draws = "generator" in inspect.signature(scheduler.step).parameters
    for t in scheduler.timesteps:
        v = velocity(scheduler.scale_model_input(x, t).double(), float(t)).float()
        x = scheduler.step(v, t, x, **({"generator": generator} if draws else {})).prev_sample
    return float(scheduler.timesteps[0]), float(x.mean())


@pytest.mark.parametrize("row", SCHEDULERS, ids=lambda row: row["scheduler"].replace("`", ""))
def test_what_the_page_says_of_a_scheduler(random_nano: Path, row: Mapping[str, str]):
    scheduler = scheduler_of(random_nano, row)
    terminal = float(scheduler.alphas_cumprod[-1])
    assert terminal == pytest.approx(float(row["ᾱ at T − 1"]), rel=0.01)
    assert scheduler.config["rescale_betas_zero_snr"] is True, "what the config says is no evidence"
    first, mean = sample(scheduler)
    assert first == float(row["first timestep"])
    assert mean == pytest.approx(float(row["mean of 1.5"]), abs=0.003)

    right = terminal <= 2**-24 and first == SCHEDULE.timesteps - 1 and abs(mean - MEAN) < 0.005
    assert row["use it"].split()[0].rstrip(":") == ("yes" if right else "**no**")
    assert ("drops the flag" in row["use it"]) is (terminal > 1e-3)


@pytest.mark.parametrize("steps", [25, 40, 50])
def test_ddim_is_right_where_its_steps_divide_the_timesteps(random_nano: Path, steps: int):
    _, mean = sample(scheduler_of(random_nano, {"scheduler": "`DDIMScheduler`"}), steps)
    assert mean == pytest.approx(MEAN, abs=0.001)
    assert str(steps) in next(row["use it"] for row in SCHEDULERS if row["scheduler"] == "`DDIMScheduler`")


def test_the_page_names_every_scheduler_that_users_may_swap_in(random_nano: Path):
    """Those that can be made here: two need libraries that we do not bring, and one has no such schedule at all."""
    ours: Any = EulerDiscreteScheduler.from_pretrained(random_nano, subfolder="scheduler", local_files_only=True)
    elsewhere = {"EDMEulerScheduler", "LMSDiscreteScheduler", "DPMSolverSDEScheduler"}
    swappable = {kind.__name__ for kind in ours.compatibles}
    assert {named(row)[0] for row in SCHEDULERS} == (swappable | {"EulerDiscreteScheduler"}) - elsewhere


def test_karras_sigmas_waste_their_steps(random_nano: Path):
    """Above the largest sigma of an ordinary schedule, 14.6, there is nothing but noise to see."""
    counts: list[int] = []
    for changes in ({}, {"use_karras_sigmas": True}):
        ours: Any = EulerDiscreteScheduler.from_pretrained(random_nano, subfolder="scheduler", local_files_only=True)
        scheduler: Any = EulerDiscreteScheduler.from_config(ours.config, **changes)
        scheduler.set_timesteps(STEPS)
        counts.append(int((scheduler.sigmas > 14.6).sum()))
    sentence = f"of {STEPS} steps, {counts[1]} lie above the largest sigma of an ordinary schedule (14.6) with Karras's"
    assert f"{sentence}, in place of {counts[0]} with ours" in " ".join(PAGE.split())


def test_without_a_dtype_all_parts_are_float32_and_draw():
    """diffusers makes its parts float32, transformers does what a text encoder's configuration says: ours says
    float32.
    """
    pipeline: Any = DiffusionPipeline.from_pretrained(SHIPPED["nano"], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    text_encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, *text_encoders)} == {torch.float32}
    assert load_file(SHIPPED["nano"] / "text_encoder" / "model.safetensors").popitem()[1].dtype == torch.float16
    drawn = pipeline("a red apple", num_inference_steps=2, output_type="np").images
    assert np.isfinite(drawn).all()
    half: Any = DiffusionPipeline.from_pretrained(SHIPPED["nano"], local_files_only=True, dtype=torch.float16)
    assert {part.dtype for part in (half.unet, half.text_encoder, half.text_encoder_2)} == {torch.float16}


def test_without_that_word_transformers_keeps_what_is_stored(tmp_path: Path):
    """The reason for it: then the first multiplication of a pipeline would be of two precisions."""
    folder = Path(shutil.copytree(SHIPPED["nano"] / "text_encoder", tmp_path / "text_encoder"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "dtype"}))
    for place, dtype in ((folder, torch.float16), (SHIPPED["nano"] / "text_encoder", torch.float32)):
        assert CLIPTextModel.from_pretrained(place, local_files_only=True).dtype == dtype


def test_diffusers_reads_no_marker_of_a_single_file():
    from diffusers.loaders import single_file, single_file_utils

    for module in (single_file, single_file_utils):
        source = inspect.getsource(module).lower()
        assert not [marker for marker in ("ztsnr", "zsnr", 'v_pred"', "modelspec") if marker in source]


@pytest.fixture(scope="module")
def controlnet(random_nano: Path) -> ControlNetModel:
    unet = diffusers.UNet2DConditionModel.from_pretrained(random_nano / "unet", local_files_only=True)
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96)).eval()


SNIPPETS = [
    block.text
    for block in blocks()
    if (block.page, block.language, block.reason) == ("docs/interop.md", "python", None)
]


def test_there_are_snippets():
    assert len(SNIPPETS) >= 5


@pytest.mark.parametrize("code", SNIPPETS, ids=[f"{index}" for index in range(len(SNIPPETS))])
def test_a_snippet_runs(random_nano: Path, controlnet: ControlNetModel, code: str):
    """With what the page says of its names."""
    size = (32, 32)
    names: dict[str, Any] = {
        "folder": random_nano,
        "prompt": "a 3d render of a red apple on a black background",
        "image": Image.new("RGB", size, "red"),
        "mask": Image.new("L", size, 255),
        "outline": Image.new("RGB", size, "white"),
        "controlnet": controlnet,
    }
    exec(compile(code, "docs/interop.md", "exec"), names)
    drawn = names["drawn"]
    assert drawn.size == size
    assert drawn.getextrema() != ((0, 0),) * 3
