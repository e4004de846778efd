"""A rectified flow that we write, in diffusers' own SDXL pipeline: as it is, and with Euler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline

from terminus import runtime
from terminus.conditioning import Size
from terminus.model.components import Components, load_components, save_components
from terminus.model.record import Schedule
from terminus.sampling.grid import timesteps
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img
from tests.documents.blocks import blocks

# diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS, STEPS, SHIFT = ["a red apple", ""], [1, 2], 6, 3.0


@pytest.fixture(scope="module")
def flow(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, labelled as a flow: parity must hold for any network."""
    folder = tmp_path_factory.mktemp("flow") / "model"
    components = load_components(random_nano)
    record = replace(components.record, schedule=Schedule("flow", shift=SHIFT))
    save_components(replace(components, record=record), folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def components(flow: Path) -> Components:
    return load_components(flow)


def pipeline_of(folder: Path) -> Any:
    loaded = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def ours(components: Components, solver: str) -> torch.Tensor:
    how = Settings(steps=STEPS, guidance=4.0, solver=solver, size=Size(height=32, width=48))
    *_, last = text2img(components, PROMPTS, SEEDS, how)
    return last.x


def theirs(pipeline: Any, **how: Any) -> torch.Tensor:
    noise = torch.stack([torch.randn(4, 8, 12, generator=runtime.rng(seed, 0, "sampling")) for seed in SEEDS])
    return pipeline(
        PROMPTS, height=32, width=48, guidance_scale=4.0, negative_prompt=[""] * 2, latents=noise,
        output_type="latent", **how,
    ).images  # fmt: skip


def test_the_folder_draws_in_the_pipeline_as_it_is(flow: Path, components: Components):
    """Their DPM-Solver for flows begins at sigma 0.999 and rounds the time that it tells: near, and not the same."""
    pipeline = pipeline_of(flow)
    assert isinstance(pipeline.scheduler, DPMSolverMultistepScheduler)
    drawn, expected = theirs(pipeline, num_inference_steps=STEPS), ours(components, "dpmpp_2m")
    assert float((drawn - expected).std() / expected.std()) < 0.02


def test_with_two_more_lines_euler_draws_the_same(flow: Path, components: Components):
    """The class of docs/flow.md, on the same sigmas."""
    found: dict[str, Any] = {}
    (snippet,) = [block.text for block in blocks() if block.page == "docs/flow.md" and block.language == "python"]
    exec(snippet.split("pipeline =")[0], found)
    pipeline = pipeline_of(flow)
    pipeline.scheduler = found["FlowEuler"](shift=pipeline.scheduler.config.flow_shift)
    sigmas = [(t + 1) / 1000 for t in timesteps(STEPS)]
    torch.testing.assert_close(theirs(pipeline, sigmas=sigmas), ours(components, "euler"), rtol=5e-4, atol=5e-4)


def test_their_flow_scheduler_lacks_what_the_pipeline_calls(flow: Path):
    pipeline = pipeline_of(flow)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    with pytest.raises(AttributeError, match=r"init_noise_sigma|scale_model_input"):
        theirs(pipeline, num_inference_steps=2)
