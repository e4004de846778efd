"""Guiding images and adapters through every task: that they act, what they are called, and that they leave."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from terminus import Terminus, cli, runtime
from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.control import ControlInterval, combined
from terminus.model.unet import predict
from terminus.sampling.canvas import Margins, Repaint, redraw, scaled
from terminus.sampling.controls import ControlInput, ControlInputs, LoadedControls
from terminus.sampling.edits import Hires, image_to_image, inpainting, upscaling
from terminus.sampling.generation_metadata import from_text
from terminus.sampling.guidance import rescaled
from terminus.sampling.metadata import read_image_metadata, settings_of
from terminus.sampling.settings import ImageRequest, Settings
from terminus.sampling.tasks import generate

# diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = {"controlnet": "edges", "t2i": "sketch", "ip": "likeness.safetensors"}
QUICK = {"steps": 2, "seed": 3}


def image(height: int = 32, width: int = 32, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def mask(height: int = 32, width: int = 32, box: tuple[int, int, int, int] = (8, 8, 24, 24)) -> Image.Image:
    image = Image.new("L", (width, height), 0)
    image.paste(255, box)
    return image


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def control_input(steering: Path, kind: str, seed: int = 7, **more: object) -> ControlInput:
    return ControlInput(kind, steering / KINDS[kind], image(seed=seed), **more)


def snapshot(components: Components) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in components.unet.state_dict().items()}


def unchanged(components: Components, before: dict[str, Tensor], processors: dict[str, object]) -> bool:
    after, unet = components.unet.state_dict(), components.unet
    return (
        after.keys() == before.keys()
        and all(torch.equal(value, after[key]) for key, value in before.items())
        and all(unet.attn_processors[name] is one for name, one in processors.items())
        and unet.encoder_hid_proj is None
        and unet.config.encoder_hid_dim_type is None
    )


Task = Callable[..., list[Image.Image]]
TASKS: dict[str, Callable[[Terminus], Task]] = {
    "text2img": lambda model: lambda **how: model.text2img("a dog", **QUICK, **how),
    "wide": lambda model: lambda **how: model.text2img("a dog", **QUICK, size="48x16", **how),
    "hires": lambda model: lambda **how: model.text2img("a dog", **QUICK, hires=1.5, **how),
    "img2img": lambda model: lambda **how: model.img2img("a dog", image(30, 40), **QUICK, **how),
    "inpaint": lambda model: lambda **how: model.inpaint("a dog", image(30, 40), mask(30, 40), **QUICK, **how),
    "padded": lambda model: (
        lambda **how: model.inpaint("a dog", image(50, 70), mask(50, 70), repaint=Repaint(padding=3), **QUICK, **how)
    ),
    "outpaint": lambda model: lambda **how: model.outpaint("a dog", image(), Margins(0, 5, 16, 0), **QUICK, **how),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_a_guide_acts_is_named_and_leaves_no_trace(model: Terminus, steering: Path, task: str, kind: str):
    before, processors = snapshot(model.components), dict(model.components.unet.attn_processors)
    run, one = TASKS[task](model), control_input(steering, kind, scale=0.9)
    (plain,), (guided,) = run(), run(control_inputs=[one])
    assert guided.size == plain.size
    assert not np.array_equal(array(guided), array(plain))
    (use,) = from_text(guided.info["terminus"]).controls
    assert (use.kind, use.name, use.scale, use.interval) == (kind, KINDS[kind].removesuffix(".safetensors"), 0.9, None)
    assert use.image_sha256 == hashlib.sha256(np.asarray(image(seed=7)).tobytes()).hexdigest()
    file = steering / KINDS[kind]
    file = file / "diffusion_pytorch_model.safetensors" if file.is_dir() else file
    assert use.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert from_text(plain.info["terminus"]).controls == ()
    (again,) = run()
    assert np.array_equal(array(again), array(plain))
    assert unchanged(model.components, before, processors)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_zero_is_no_guide(model: Terminus, steering: Path, kind: str):
    (plain,), (none,) = (
        model.text2img("a dog", **QUICK, control_inputs=g) for g in ([], [control_input(steering, kind, scale=0.0)])
    )
    assert np.abs(array(none) - array(plain)).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_another_image_is_another_drawing(model: Terminus, steering: Path, kind: str):
    first, other = (
        model.text2img("a dog", **QUICK, control_inputs=[control_input(steering, kind, seed=s)])[0] for s in (7, 8)
    )
    assert not np.array_equal(array(first), array(other))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_is_its_images_one_by_one(model: Terminus, steering: Path, kind: str, guidance: float):
    how = {"steps": 2, "guidance": guidance, "control_inputs": [control_input(steering, kind)]}
    together = model.text2img("a dog", seed=3, count=3, **how)
    for seed, one in zip((3, 4, 5), together, strict=True):
        (alone,) = model.text2img("a dog", seed=seed, **how)
        assert np.abs(array(alone) - array(one)).max() <= 1
        assert alone.info == one.info


def test_a_stream_that_is_left_half_way_leaves_the_unet_as_it_was(model: Terminus, steering: Path):
    """Also while the generator is still alive: another image may be drawn before it goes on."""
    before, processors = snapshot(model.components), dict(model.components.unet.attn_processors)
    (plain,) = model.text2img("a dog", **QUICK)
    control_inputs = [control_input(steering, kind) for kind in KINDS]
    (expected,) = model.text2img("a dog", **QUICK, control_inputs=control_inputs)
    stream = model.stream("a dog", seed=3, settings=Settings(steps=2), control_inputs=control_inputs)
    next(stream)
    assert unchanged(model.components, before, processors)
    (between,) = model.text2img("a dog", **QUICK)
    assert np.array_equal(array(between), array(plain))
    *_, last = stream
    assert np.array_equal(array(last.images()[0]), array(expected))
    del stream
    assert unchanged(model.components, before, processors)


def test_networks_that_fail_inside_the_unet_are_taken_off(model: Terminus, steering: Path):
    before, processors = snapshot(model.components), dict(model.components.unet.attn_processors)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.components.unet.mid_block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.text2img("a dog", **QUICK, control_inputs=[control_input(steering, "ip")])
    handle.remove()
    assert unchanged(model.components, before, processors)


def test_networks_are_read_once_for_all_batches(model: Terminus, steering: Path, monkeypatch: pytest.MonkeyPatch):
    from terminus.sampling import controls as module

    read_from: list[Path] = []
    load = module.load_control
    monkeypatch.setattr(
        module, "load_control", lambda kind, path, *more: read_from.append(path) or load(kind, path, *more)
    )
    monkeypatch.setattr("terminus.sampling.api._BATCH_IMAGES", 1)
    model.text2img("a dog", count=3, steps=1, hires=1.5, control_inputs=[control_input(steering, "controlnet")])
    assert len(read_from) == 1


def test_two_guides_act_together_and_are_told_in_order(model: Terminus, steering: Path):
    control_inputs = [
        control_input(steering, "ip"),
        control_input(steering, "controlnet", span=ControlInterval(0.0, 0.5)),
        control_input(steering, "ip", seed=9),
    ]
    (drawn,) = model.text2img("a dog", **QUICK, control_inputs=control_inputs)
    uses = from_text(drawn.info["terminus"]).controls
    assert [(use.kind, use.interval) for use in uses] == [("ip", None), ("controlnet", (0.0, 0.5)), ("ip", None)]
    (fewer,) = model.text2img("a dog", **QUICK, control_inputs=control_inputs[:2])
    assert not np.array_equal(array(drawn), array(fewer))


def test_images_say_what_they_were_drawn_with_and_not_what_is_there_later(
    model: Terminus, steering: Path, tmp_path: Path
):
    image(seed=7).save(tmp_path / "control_input.png")
    model.adapters.attach(steering / "ink.safetensors", 0.5)
    one = ControlInput("controlnet", steering / "edges", tmp_path / "control_input.png")
    drawings = list(model.stream("a dog", settings=Settings(steps=1), control_inputs=[one]))
    model.adapters.clear()
    (tmp_path / "control_input.png").unlink()
    (drawn,) = drawings[-1].images()
    generation = from_text(drawn.info["terminus"])
    assert [use.name for use in generation.adapters] == ["ink"]
    assert [use.image_sha256 for use in generation.controls] == [
        hashlib.sha256(np.asarray(image(seed=7)).tobytes()).hexdigest()
    ]


# The guiding image lies where the drawn image lies


def lies(components: Components, place: Callable[[Tensor], Tensor], whole: Image.Image) -> Tensor:
    return place(torch.from_numpy(np.array(whole)))


def test_the_guide_of_a_padded_repaint_is_cut_like_its_image(model: Terminus):
    """An image that guides itself lies exactly under the canvas, outside the mask."""
    start, hole = image(90, 120), mask(90, 120, box=(60, 30, 90, 50))
    for how in (Repaint(padding=4), Repaint(padding=0)):
        edit = inpainting(start, hole, 1.0, replace(how, fill="original"), Settings(), model.components)
        assert torch.equal(lies(model.components, edit.canvas.place, start), edit.canvas.pixels)
    odd, hole = image(30, 45), mask(30, 45)
    edit = inpainting(odd, hole, 1.0, Repaint("original"), Settings(), model.components)
    assert edit.canvas.size == Size(32, 48)
    assert torch.equal(lies(model.components, edit.canvas.place, odd), edit.canvas.pixels)


def test_the_guide_of_a_redrawn_or_enlarged_image_is_scaled_like_it(model: Terminus):
    start = image(30, 45)
    pixels = torch.from_numpy(np.array(start))
    canvas = redraw(pixels, Settings(size=Size(32, 32)), model.components)
    assert torch.equal(canvas.place(pixels), canvas.pixels)
    edit = upscaling(start, 2.0, 0.3, Settings(), model.components)
    assert torch.equal(edit.canvas.place(pixels), edit.canvas.pixels)


# Against diffusers, and by hand


SEEDS, STEPS, SIZE = [1, 2], 6, Size(height=32, width=48)


def noise() -> Tensor:
    return torch.stack([torch.randn(4, 8, 12, generator=runtime.rng(seed, 0, "sampling")) for seed in SEEDS])


def latents(model: Terminus, control_inputs: list[ControlInput], **settings: object) -> Tensor:
    how = Settings(**{"steps": STEPS, "solver": "euler", "size": SIZE} | settings)
    seen = (
        ControlInputs(control_inputs, model.components).on(lambda other: scaled(other, SIZE))
        if control_inputs
        else None
    )
    requests = [ImageRequest("a red apple", seed, "blurry") for seed in SEEDS]
    *_, last = generate(model.components, requests, how, control_inputs=seen)
    return last.x


def test_controlnet_draws_what_the_pipeline_of_diffusers_draws(model: Terminus, random_nano: Path, steering: Path):
    base = StableDiffusionXLPipeline.from_pretrained(random_nano, local_files_only=True, dtype=torch.float32)
    parts = {key: value for key, value in base.components.items() if key not in ("image_encoder", "feature_extractor")}
    network = ControlNetModel.from_pretrained(steering / "edges", local_files_only=True)
    pipe = StableDiffusionXLControlNetPipeline(**parts, controlnet=network, force_zeros_for_empty_prompt=False)
    pipe.set_progress_bar_config(disable=True)
    control = image(32, 48, seed=5)
    expected = pipe(
        ["a red apple"] * 2,
        image=control,
        negative_prompt=["blurry"] * 2,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        controlnet_conditioning_scale=0.7,
        latents=noise(),
        output_type="latent",
        height=SIZE.height,
        width=SIZE.width,
    ).images
    ours = latents(model, [ControlInput("controlnet", steering / "edges", control, 0.7)], rescale=0.0)
    # theirs starts at a largest sigma of 4096, ours at (alpha, sigma) = (0, 1)
    torch.testing.assert_close(ours, expected, rtol=5e-4, atol=5e-4)
    assert (ours - latents(model, [], rescale=0.0)).abs().max() > 0.05


def test_guidance_rescale_acts_with_a_controlnet(model: Terminus, steering: Path):
    """One step from pure noise, where the velocity v gives x0 = −v: by hand, from the two predictions."""
    components = model.components
    one = ControlInput("controlnet", steering / "edges", image(32, 48, seed=5))
    seen = ControlInputs([one], components).on(lambda other: scaled(other, SIZE))
    text = components.text_encoders.encode(["a red apple"] * 2 + ["blurry"] * 2)
    ids = time_ids([MicroConditioning.uncropped(SIZE)] * 4, torch.device("cpu"))
    x, t = noise().repeat(2, 1, 1, 1), torch.full((4,), 999)
    with torch.no_grad():
        controls = combined(seen.controls, x, 999, text, ids)
        cond, uncond = predict(components.unet, x, t, text, ids, controls).chunk(2)
    guided = uncond + 4.0 * (cond - uncond)
    torch.testing.assert_close(latents(model, [one], steps=1, rescale=0.7), -rescaled(guided, cond, 0.7))
    torch.testing.assert_close(latents(model, [one], steps=1, rescale=0.0), -guided)


# Adapters


def test_adapters_act_are_named_and_go(model: Terminus, steering: Path):
    before, processors = snapshot(model.components), dict(model.components.unet.attn_processors)
    (plain,) = model.text2img("a dog", **QUICK)
    with model.adapters as adapters:
        adapters.attach(steering / "ink.safetensors", 0.5, text=0.0)
        (inked,) = model.text2img("a dog", **QUICK)
    assert not np.array_equal(array(inked), array(plain))
    (use,) = from_text(inked.info["terminus"]).adapters
    assert (use.name, use.weight, use.text_weight) == ("ink", 0.5, 0.0)
    (after,) = model.text2img("a dog", **QUICK)
    assert np.array_equal(array(after), array(plain))
    assert after.info == plain.info
    assert unchanged(model.components, before, processors)


def test_adapters_and_guides_from_the_command_line(random_nano: Path, steering: Path, tmp_path: Path):
    image(seed=7).save(tmp_path / "control_input.png")
    ink, out = steering / "ink.safetensors", tmp_path / "out"
    options = ["--prompt", "a dog", "--steps", "2", "--lora", f"{ink}:0.5"]
    for kind, name in KINDS.items():
        options += ["--control", f"{kind}:{steering / name}:{tmp_path / 'control_input.png'}:0.8"]
    assert cli.main(["sample", str(random_nano), "--out", str(out), *options]) == 0
    generation = settings_of(read_image_metadata(out / "00001-0.png"))
    assert [(one.name, one.weight) for one in generation.adapters] == [("ink", 0.5)]
    assert [(one.kind, one.scale) for one in generation.controls] == [(kind, 0.8) for kind in KINDS]
    model = Terminus.load(random_nano, device="cpu")
    model.adapters.attach(ink, 0.5)
    (expected,) = model.text2img(
        "a dog", steps=2, control_inputs=[control_input(steering, kind, scale=0.8) for kind in KINDS]
    )
    with Image.open(out / "00001-0.png") as drawn:
        assert np.array_equal(array(drawn), array(expected))
        assert drawn.info["terminus"] == expected.info["terminus"]


# What is wrong


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_guides_are_refused(model: Terminus, steering: Path, kind: str):
    with pytest.raises(UserError, match="Control images cannot be combined with upscaling in tiles"):
        model.upscale(image(), 2.0, control_inputs=[control_input(steering, kind)])
    (small,) = model.upscale(
        image(16, 16), 2.0, steps=4, control_inputs=[control_input(steering, kind)]
    )  # all of it in one look
    assert small.size == (32, 32)


def test_a_second_pass_on_a_changed_image_is_refused(model: Terminus):
    edit = image_to_image(image(), 0.5, Settings(), model.components)
    with pytest.raises(UserError, match="second pass"):
        next(model.stream("a dog", edit=edit, hires=Hires()))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("controlnet", "sketch"),
        ("t2i", "edges"),
        ("ip", "ink.safetensors"),
        ("ip", "edges"),
        ("controlnet", "likeness.safetensors"),
        ("controlnet", "nowhere"),
        ("t2i", "nowhere"),
        ("ip", "nowhere.safetensors"),
        ("ip", "~nobody-of-this-name/x.safetensors"),
    ],
)
def test_wrong_networks_are_users_errors(model: Terminus, steering: Path, kind: str, name: str):
    before, processors = snapshot(model.components), dict(model.components.unet.attn_processors)
    source = name if name.startswith("~") else steering / name
    with pytest.raises(UserError):
        model.text2img(
            "a dog", **QUICK, control_inputs=[control_input(steering, "ip"), ControlInput(kind, source, image())]
        )
    assert unchanged(model.components, before, processors)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_scales_that_are_no_numbers(model: Terminus, steering: Path, kind: str, scale: float):
    with pytest.raises(UserError, match="scale"):
        model.text2img("a dog", **QUICK, control_inputs=[control_input(steering, kind, scale=scale)])


def test_a_guiding_image_that_is_not_there(model: Terminus, steering: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.png"):
        model.text2img(
            "a dog", **QUICK, control_inputs=[ControlInput("controlnet", steering / "edges", tmp_path / "gone.png")]
        )


def test_an_ip_adapter_without_its_text_encoder(random_nano: Path, steering: Path, tmp_path: Path):
    blind = Terminus.load(shutil.copytree(random_nano, tmp_path / "blind", ignore=shutil.ignore_patterns("vision")))
    with pytest.raises(UserError, match="No vision encoder"):
        blind.text2img("a dog", **QUICK, control_inputs=[control_input(steering, "ip")])
    shutil.copytree(random_nano / "vision", tmp_path / "image_encoder")
    shutil.copy(steering / "likeness.safetensors", tmp_path)
    (drawn,) = blind.text2img(
        "a dog", **QUICK, control_inputs=[ControlInput("ip", tmp_path / "likeness.safetensors", image(seed=7))]
    )
    seeing = Terminus.load(random_nano)
    (expected,) = seeing.text2img("a dog", **QUICK, control_inputs=[control_input(steering, "ip")])
    assert np.array_equal(array(drawn), array(expected))


def test_without_guides_nothing_is_loaded():
    assert not LoadedControls()
