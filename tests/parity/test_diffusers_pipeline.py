"""A folder that we write, in diffusers' own SDXL pipeline: it loads, and it draws what we draw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from terminus import runtime
from terminus.conditioning import Size
from terminus.model.components import load_components
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img

# diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS, STEPS = ["a red apple", ""], [1, 2], 6


@pytest.fixture
def pipeline(random_nano: Path) -> StableDiffusionXLPipeline:
    loaded = StableDiffusionXLPipeline.from_pretrained(random_nano, local_files_only=True, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_pipeline_reads_our_schedule(pipeline: StableDiffusionXLPipeline):
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert config.rescale_betas_zero_snr is True
    assert pipeline.config.force_zeros_for_empty_prompt is False


@pytest.mark.parametrize(("guidance", "rescale"), [(1.0, 0.0), (4.0, 0.0), (4.0, 0.7)])
def test_both_draw_the_same_latents(random_nano: Path, pipeline, guidance: float, rescale: float):
    """Text, pooling, padding, micro-conditioning, guidance, schedule and Euler, all at once.

    Ours starts in (alpha, sigma) = (0, 1); theirs has a largest sigma of 4096 in its place.
    """
    components = load_components(random_nano)
    how = Settings(steps=STEPS, guidance=guidance, rescale=rescale, solver="euler", size=Size(height=32, width=48))
    *_, last = text2img(components, PROMPTS, SEEDS, how)
    noise = torch.stack([torch.randn(4, 8, 12, generator=runtime.rng(seed, 0, "sampling")) for seed in SEEDS])
    theirs = pipeline(
        PROMPTS,
        height=32,
        width=48,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        guidance_rescale=rescale,
        negative_prompt=[""] * 2,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(last.x, theirs, rtol=5e-4, atol=5e-4)


def test_the_pipeline_draws_images(pipeline: StableDiffusionXLPipeline):
    (image,) = pipeline("a red apple", height=32, width=32, num_inference_steps=2).images
    assert image.size == (32, 32)
    assert image.getextrema() != ((0, 0),) * 3
