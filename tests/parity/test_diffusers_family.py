"""A folder that we write, in every SDXL pipeline of diffusers, with the scheduler that the folder names.

What is checked of each is what a wrong default would break without an error: that the first timestep visited is the
last of the training schedule, that the first input of the UNet is noise of unit variance and nothing else, and that the
guidance rescale does something wherever it is accepted. The weights are random: nothing is said about images here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter, UNet2DConditionModel
from PIL import Image

from terminus.model.components import load_components, save_components

# diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PIXELS, STEPS = 32, 3
CONTROL_CHANNELS = (16, 32, 96)
"""Of the network that brings a control image to the size of the latents; one halving less than SDXL's."""


@dataclass(frozen=True)
class Case:
    """One pipeline, the channels of the UNet that it needs, and what it is given besides a prompt."""

    pipeline: str
    inputs: tuple[str, ...] = ()
    channels: int = 4
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.pipeline.removeprefix('StableDiffusionXL')}-{self.channels}"

    @property
    def kind(self) -> Any:
        return getattr(diffusers, self.pipeline)

    def accepts(self, argument: str) -> bool:
        return argument in inspect.signature(self.kind.__call__).parameters


SIZED = ("height", "width")
REPAINT = ("image", "mask_image", "strength", *SIZED)
CASES = [
    Case("StableDiffusionXLPipeline", SIZED),
    Case("StableDiffusionXLImg2ImgPipeline", ("image", "strength")),
    Case("StableDiffusionXLInpaintPipeline", REPAINT),
    Case("StableDiffusionXLInpaintPipeline", REPAINT, channels=9),
    Case("StableDiffusionXLInstructPix2PixPipeline", ("image", *SIZED), channels=8),
    Case("StableDiffusionXLControlNetPipeline", ("image", *SIZED), parts=("controlnet",)),
    Case("StableDiffusionXLControlNetImg2ImgPipeline", ("image", "control_image", "strength"), parts=("controlnet",)),
    Case("StableDiffusionXLControlNetInpaintPipeline", (*REPAINT, "control_image"), parts=("controlnet",)),
    Case("StableDiffusionXLControlNetUnionPipeline", ("control_images", "control_mode", *SIZED), parts=("union",)),
    Case(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        ("image", "control_images", "control_mode", "strength"),
        parts=("union",),
    ),
    Case(
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        (*REPAINT, "control_images", "control_mode"),
        parts=("union",),
    ),
    Case("StableDiffusionXLAdapterPipeline", ("image", *SIZED), parts=("adapter",)),
    Case("StableDiffusionXLPAGPipeline", SIZED),
    Case("StableDiffusionXLPAGImg2ImgPipeline", ("image", "strength")),
    Case("StableDiffusionXLPAGInpaintPipeline", REPAINT),
    Case("StableDiffusionXLControlNetPAGPipeline", ("image", *SIZED), parts=("controlnet",)),
    Case(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline", ("image", "control_image", "strength"), parts=("controlnet",)
    ),
]


def randomised(module: Any) -> Any:
    """With no parameter left at 0: control networks begin as a no-op, which would prove nothing."""
    for parameter in module.parameters():
        if not parameter.abs().sum():
            torch.nn.init.normal_(parameter, std=0.02)
    return module.eval()


@pytest.fixture(scope="module")
def folders(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Channels of the UNet → a folder that we wrote: 4 (the model), 8 (editing) and 9 (inpainting)."""
    components = load_components(random_nano)
    found = {4: random_nano}
    for channels in (8, 9):
        with torch.random.fork_rng():
            torch.manual_seed(channels)
            unet: Any = UNet2DConditionModel.from_config(components.unet.config, in_channels=channels)
        found[channels] = tmp_path_factory.mktemp("models") / f"random-{channels}-channels"
        save_components(replace(components, unet=unet.eval()), found[channels])
    return found


@pytest.fixture(scope="module")
def parts(random_nano: Path) -> Mapping[str, Mapping[str, Any]]:
    """What a pipeline is loaded with besides the folder."""
    unet = UNet2DConditionModel.from_pretrained(random_nano / "unet", local_files_only=True)
    widths = unet.config["block_out_channels"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONTROL_CHANNELS)
        union = ControlNetUnionModel.from_unet(unet, conditioning_embedding_out_channels=CONTROL_CHANNELS)
        # from_unet leaves the width of the fusing transformer at SDXL's 320; from_config obeys its list of defaults.
        config = {key: value for key, value in union.config.items() if key != "_use_default_values"}
        narrow = {"num_trans_channel": widths[0], "num_proj_channel": widths[0], "num_trans_head": 2}
        union = ControlNetUnionModel.from_config({**config, **narrow})
        adapter = T2IAdapter(
            channels=[*widths, widths[-1]], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter_xl"
        )
        made = {"controlnet": randomised(plain), "union": randomised(union), "adapter": randomised(adapter)}
    return {name: {"controlnet" if name == "union" else name: module} for name, module in made.items()}


Load = Callable[[Case], Any]


@pytest.fixture
def load(folders: Mapping[int, Path], parts: Mapping[str, Mapping[str, Any]]) -> Load:
    def loaded(case: Case) -> Any:
        extra = {key: value for part in case.parts for key, value in parts[part].items()}
        pipeline = case.kind.from_pretrained(
            folders[case.channels], local_files_only=True, dtype=torch.float32, **extra
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return loaded


def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def draw(pipeline: Any, case: Case, **settings: Any) -> torch.Tensor:
    everything = {
        "image": image(),
        "mask_image": Image.new("L", (PIXELS, PIXELS), 255),
        "control_image": image(),
        "control_images": [image()],
        "control_mode": [0],
        "strength": 1.0,
        "height": PIXELS,
        "width": PIXELS,
    }
    given = {key.replace("images", "image"): everything[key] for key in case.inputs}
    given |= {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return pipeline("a red apple", **(given | settings)).images


@dataclass(frozen=True)
class Input:
    """One call of the UNet: the timestep, and the latents without what is concatenated to them."""

    t: float
    x: torch.Tensor


def watch(pipeline: Any) -> list[Input]:
    """Fills with every input of the UNet from now on."""
    calls: list[Input] = []

    def note(_: Any, arguments: tuple[Any, ...]) -> None:
        calls.append(Input(float(arguments[1]), arguments[0][:, :4].clone()))

    pipeline.unet.register_forward_pre_hook(note)
    return calls


def test_no_pipeline_is_missing():
    """A new one in diffusers is a new row in docs/interop.md."""
    others = {"StableDiffusionXLControlNetXSPipeline", "StableDiffusionXLModularPipeline"}
    there = {name for name in dir(diffusers) if name.startswith("StableDiffusionXL") and name.endswith("Pipeline")}
    assert {case.pipeline for case in CASES} == there - others


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_draws_with_our_scheduler_from_pure_noise(load: Load, case: Case):
    pipeline = load(case)
    config = pipeline.scheduler.config
    assert type(pipeline.scheduler) is diffusers.EulerDiscreteScheduler
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert float(pipeline.scheduler.alphas_cumprod[-1]) <= 2**-24  # what it does, not what its config says
    assert pipeline.unet.config["in_channels"] == case.channels

    calls = watch(pipeline)
    drawn = draw(pipeline, case)
    assert drawn.shape[1:] == (3, PIXELS, PIXELS)
    assert torch.isfinite(drawn).all()
    assert drawn.std() > 1e-3
    assert [call.t for call in calls] == [999.0, 666.0, 332.0]
    # 256 normal numbers: their mean has the standard error 1/16, their deviation 1/23.
    assert abs(float(calls[0].x[0].mean())) < 0.25
    assert abs(float(calls[0].x[0].std()) - 1) < 0.2


@pytest.mark.parametrize("case", [case for case in CASES if case.accepts("guidance_rescale")], ids=lambda c: c.name)
def test_where_the_rescale_is_accepted_it_acts(load: Load, case: Case):
    pipeline = load(case)
    plain, rescaled = (draw(pipeline, case, guidance_rescale=rescale, output_type="latent") for rescale in (0.0, 0.7))
    assert rescaled.std() < 0.99 * plain.std()


@pytest.mark.parametrize("case", [case for case in CASES if "mask_image" in case.inputs], ids=lambda case: case.name)
def test_the_default_strength_of_inpainting_skips_the_terminal_step(load: Load, case: Case):
    """So the image below the mask shows through: at the first step visited, and to the UNet."""
    assert inspect.signature(case.kind.__call__).parameters["strength"].default == 0.9999
    pipeline = load(case)
    calls = watch(pipeline)
    draw(pipeline, case, strength=0.9999)
    assert [call.t for call in calls] == [666.0, 332.0]


def test_the_image_below_the_mask_shows_through_unless_the_strength_is_1(load: Load):
    """Two images, one mask over all of each: what is drawn may not depend on what is hidden."""
    case = Case("StableDiffusionXLInpaintPipeline", REPAINT)
    pipeline = load(case)
    hidden = [Image.new("RGB", (PIXELS, PIXELS), color) for color in ("black", "white")]
    for strength, same in ((0.9999, False), (1.0, True)):
        black, white = (draw(pipeline, case, image=image, strength=strength, output_type="latent") for image in hidden)
        assert torch.equal(black, white) is same


def test_image_to_image_at_strength_1_keeps_a_4096th_of_the_image(load: Load):
    case = Case("StableDiffusionXLImg2ImgPipeline", ("image", "strength"))
    pipeline = load(case)
    calls = watch(pipeline)
    hidden = [Image.new("RGB", (PIXELS, PIXELS), color) for color in ("black", "white")]
    black, white = (pipeline.image_processor.preprocess(image) for image in hidden)
    for image in hidden:
        draw(pipeline, case, image=image)
    with torch.no_grad():
        distance = pipeline.vae.encode(white).latent_dist.mode() - pipeline.vae.encode(black).latent_dist.mode()
    expected = float(distance.abs().max()) * pipeline.vae.config["scaling_factor"] / 4096
    seen = float((calls[STEPS].x - calls[0].x).abs().max())
    assert 0.2 * expected < seen < 5 * expected  # the VAE's own spread differs between the two images


def test_latents_and_a_strength_below_1_are_noise_4096_times_too_large(load: Load):
    case = Case("StableDiffusionXLInpaintPipeline", REPAINT)
    pipeline = load(case)
    calls = watch(pipeline)
    draw(pipeline, case, strength=0.7, latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert calls[0].t == 666.0
    assert calls[0].x.std() > 500


CONTROL = [case for case in CASES if case.parts == ("controlnet",)]


def test_a_mask_over_everything_gives_controlnet_its_rescale(load: Load):
    """The way out that docs/interop.md names: inpainting with strength 1 and nothing kept is text to image."""
    plain, repaint = CONTROL[0], CONTROL[2]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = draw(load(plain), plain, latents=noise, output_type="latent")
    pipeline = load(repaint)
    elsewhere = draw(pipeline, repaint, image=Image.new("RGB", (PIXELS, PIXELS)), latents=noise, output_type="latent")
    torch.testing.assert_close(elsewhere, expected)  # `image` is not looked at
    torch.testing.assert_close(draw(pipeline, repaint, latents=noise, output_type="latent"), expected)
    rescaled = draw(pipeline, repaint, latents=noise, output_type="latent", guidance_rescale=0.7)
    assert rescaled.std() < 0.99 * expected.std()


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_and_the_same_for_controlnet_with_a_image(load: Load, strength: float):
    """Their defaults of `controlnet_conditioning_scale` differ (0.8 and 1), which is no part of this."""
    plain, repaint = CONTROL[1], CONTROL[2]
    scales = [
        inspect.signature(case.kind.__call__).parameters["controlnet_conditioning_scale"] for case in CONTROL[1:3]
    ]
    assert [scale.default for scale in scales] == [0.8, 1.0]
    same = {"strength": strength, "controlnet_conditioning_scale": 0.8, "output_type": "latent"}
    expected = draw(load(plain), plain, **same)
    torch.testing.assert_close(draw(load(repaint), repaint, **same), expected, rtol=1e-3, atol=2e-3)


def test_modular_blocks_agree_with_the_mask_over_everything(load: Load):
    """diffusers' blocks do the guidance in one place, so that its rescale reaches every control network."""
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pipeline = load(CONTROL[2])
    expected = draw(pipeline, CONTROL[2], latents=noise, output_type="latent", guidance_rescale=0.7)
    blocks: Any = StableDiffusionXLAutoBlocks().init_pipeline()
    blocks.update_components(**{name: part for name, part in pipeline.components.items() if part is not None})
    guider = ClassifierFreeGuidance(guidance_scale=5.0, guidance_rescale=0.7)
    blocks.update_components(guider=guider, force_zeros_for_empty_prompt=False)
    settings = {"height": PIXELS, "width": PIXELS, "num_inference_steps": STEPS, "output_type": "latent"}
    drawn = blocks(prompt="a red apple", control_image=image(), latents=noise, output="images", **settings)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
