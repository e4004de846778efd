"""Our image to image and inpainting against diffusers' pipelines, given the same latents and the same noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline

from terminus import runtime
from terminus.model.components import Components, load_components
from terminus.model.vae import to_signal
from terminus.sampling.canvas import Canvas
from terminus.sampling.settings import ImageRequest, Settings
from terminus.sampling.tasks import generate, latents

# diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEED, STEPS = 3, 6
HOW = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "guidance_rescale": 0.7, "output_type": "latent"}
SETTINGS = Settings(steps=STEPS, guidance=4.0, rescale=0.7, solver="euler")
REQUESTS = [ImageRequest("a red apple", SEED, "a dog")]
TEXTS = {"prompt": ["a red apple"], "negative_prompt": ["a dog"]}


@pytest.fixture(scope="module")
def components(random_nano: Path) -> Components:
    return load_components(random_nano)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    """On whole cells: theirs takes the nearest pixel of a cell, ours any."""
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[8:24, 4:28] = True
    return mask


def noise() -> torch.Generator:
    return runtime.rng(SEED, 0, "sampling")


def ours(components: Components, canvas: Canvas, strength: float) -> torch.Tensor:
    *_, last = generate(components, REQUESTS, SETTINGS, canvas, strength)
    return last.x


def theirs(cls: Any, folder: Path, **replaced: object) -> Any:
    pipeline = cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **replaced)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def signal(pixels: torch.Tensor) -> torch.Tensor:
    return to_signal(pixels.permute(2, 0, 1)[None])


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image(random_nano: Path, components: Components, pixels: torch.Tensor, strength: float):
    pipeline = theirs(StableDiffusionXLImg2ImgPipeline, random_nano)
    start = latents(components, signal(pixels))
    expected = pipeline(**TEXTS, image=start, strength=strength, generator=noise(), **HOW).images
    actual = ours(components, Canvas(pixels, None, lambda drawn: drawn), strength)
    torch.testing.assert_close(actual, expected, rtol=5e-4, atol=1e-3)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_with_a_plain_unet(
    random_nano: Path, components: Components, pixels: torch.Tensor, mask: torch.Tensor, strength: float
):
    pipeline = theirs(StableDiffusionXLInpaintPipeline, random_nano)
    expected = pipeline(
        **TEXTS,
        image=latents(components, signal(pixels)),
        mask_image=mask[None, None].float(),
        height=32,
        width=48,
        strength=strength,
        generator=noise(),
        **HOW,
    ).images
    actual = ours(components, Canvas(pixels, mask, lambda drawn: drawn), strength)
    torch.testing.assert_close(actual, expected, rtol=5e-4, atol=1e-3)


def test_inpainting_with_a_unet_that_reads_the_image(
    random_nano: Path, components: Components, pixels: torch.Tensor, mask: torch.Tensor
):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = type(components.unet).from_config({**components.unet.config, "in_channels": 9}).eval()
    pipeline = theirs(StableDiffusionXLInpaintPipeline, random_nano, unet=unet)
    expected = pipeline(
        **TEXTS,
        image=latents(components, signal(pixels)),
        mask_image=mask[None, None].float(),
        masked_image_latents=latents(components, signal(pixels) * ~mask),
        height=32,
        width=48,
        strength=1.0,
        generator=noise(),
        **HOW,
    ).images
    actual = ours(replace(components, unet=unet), Canvas(pixels, mask, lambda drawn: drawn), 1.0)
    torch.testing.assert_close(actual, expected, rtol=5e-4, atol=1e-3)
