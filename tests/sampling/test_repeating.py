"""An image's own words, and the files that it began from, draw it again: nothing that decides is left out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from terminus import Terminus
from terminus.conditioning import Crop, MicroConditioning, Size
from terminus.errors import UserError
from terminus.sampling.canvas import Repaint
from terminus.sampling.controls import ControlInput
from terminus.sampling.edits import Hires
from terminus.sampling.generation_metadata import GenerationMetadata
from terminus.sampling.metadata import read_image_metadata, save_image, settings_of


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`image.png`, 38 × 50 pixels, and `mask.png` for it."""
    folder = tmp_path_factory.mktemp("files")
    pixels = torch.randint(0, 256, (50, 38, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(folder / "image.png")
    mask = Image.new("L", (38, 50), 0)
    mask.paste(255, (5, 9, 25, 40))
    mask.save(folder / "mask.png")
    return folder


CROPPED = MicroConditioning(Size(64, 64), Crop(8, 0), Size(32, 32))
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("text2img", {}),
    "shape": ("text2img", {"size": "16:9"}),
    "wildcards": ("text2img", {"count": 3}),
    "variation": ("text2img", {"variation": 0.3, "count": 3}),
    "variation of listed seeds": ("text2img", {"variation": 0.3, "seed": [5, 9]}),
    "interval": ("text2img", {"interval": (0.2, 0.9), "solver": "euler_ancestral"}),
    "rescale": ("text2img", {"rescale": 0.35, "guidance": 7.5, "solver": "dpmpp_2m_sde"}),
    "no guidance": ("text2img", {"guidance": 1.0}),
    "conditioning": ("text2img", {"conditioning": CROPPED, "negative_conditioning": CROPPED}),
    "precision": ("text2img", {"precision": "bf16"}),
    "hires": ("text2img", {"hires": Hires(1.5, 0.7), "size": "48x16"}),
    "hires as a number": ("text2img", {"hires": 2.0, "count": 2}),
    "guided": ("text2img", {"guided": True}),
    "img2img": ("img2img", {"strength": 0.4}),
    "img2img of a size": ("img2img", {"size": "2:1", "strength": 1.0}),
    "inpaint": ("inpaint", {}),
    "inpaint, feather": ("inpaint", {"repaint": Repaint("grey", feather=5), "strength": 0.7}),
    "inpaint, padding": ("inpaint", {"repaint": Repaint("original", padding=2)}),
    "inpaint, padding and size": ("inpaint", {"repaint": Repaint(padding=6, feather=2), "size": "48x48"}),
    "inpaint, padding and shape": ("inpaint", {"repaint": Repaint(padding=0), "size": "wide"}),
    "outpaint": ("outpaint", {"repaint": Repaint(feather=3)}),
    "outpaint, padding and size": ("outpaint", {"repaint": Repaint(padding=4), "size": "32x48"}),
    "upscale": ("upscale", {"strength": 0.6}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_image_says_draws_it_again(model: Terminus, files: Path, steering: Path, tmp_path: Path, name: str):
    task, how = CASES[name]
    how = {"seed": 4, "steps": 3, "negative": "{blurry|(dark:1.2)}, noise"} | how
    control_inputs = (
        [ControlInput("controlnet", steering / "edges", files / "image.png", 0.8)] if how.pop("guided", False) else []
    )
    prompt, image = "a {red|green|blue} (apple:1.3) on {black|white}", files / "image.png"
    given = {
        "text2img": (prompt,),
        "img2img": (prompt, image),
        "inpaint": (prompt, image, files / "mask.png"),
        "outpaint": (prompt, image, (0, 3, 14, 0)),
        "upscale": (image, 1.5, prompt),
    }[task]
    drawn = getattr(model, task)(*given, control_inputs=control_inputs, **how)[-1]
    save_image(drawn, tmp_path / "drawn.png")
    generation = settings_of(read_image_metadata(tmp_path / "drawn.png"))
    assert generation.task == task
    named = {"image": image} if task != "text2img" else {}
    again = model.again(tmp_path / "drawn.png", **named, **mask_for(generation, files), control_inputs=control_inputs)
    if how.get("count", 1) != 1 or isinstance(how["seed"], list):
        # sums in a batch differ in their last bits from those of one image
        assert np.abs(np.asarray(again).astype(int) - np.asarray(drawn)).max() <= 1
    else:
        assert np.array_equal(np.asarray(again), np.asarray(drawn))
    assert again.info == drawn.info


def mask_for(generation: GenerationMetadata, files: Path) -> dict[str, Path]:
    return {"mask": files / "mask.png"} if generation.task == "inpaint" else {}


def test_what_a_image_does_not_hold_has_to_be_what_it_was(model: Terminus, files: Path, steering: Path, tmp_path: Path):
    """Named before anything is drawn; nothing is left out or taken instead."""
    image, mask = files / "image.png", files / "mask.png"
    Image.open(image).transpose(Image.Transpose.ROTATE_180).save(tmp_path / "other.png")
    control_input = ControlInput("controlnet", steering / "edges", image, 0.8)
    model.adapters.attach(steering / "ink.safetensors", 0.7)
    try:
        (drawn,) = model.inpaint("a dog", image, mask, steps=1, control_inputs=[control_input])
        save_image(drawn, tmp_path / "a.webp")
        (plain,) = model.text2img("a dog", steps=1)
        save_image(plain, tmp_path / "plain.jpg")
        assert np.array_equal(
            np.asarray(model.again(tmp_path / "a.webp", image, mask, [control_input])), np.asarray(drawn)
        )
        assert model.again(tmp_path / "plain.jpg").info == plain.info
        for given, message in (
            ((), "again from image and mask"),
            ((image,), "again from image and mask"),
            ((tmp_path / "other.png", mask, [control_input]), "another initial image"),
            ((image, tmp_path / "other.png", [control_input]), "another mask"),
            ((image, mask), "another set of guides"),
            ((image, mask, [replace(control_input, scale=0.5)]), "another set of guides"),
        ):
            with pytest.raises(UserError, match=message):
                model.again(tmp_path / "a.webp", *given)
        with pytest.raises(UserError, match="neither image nor mask"):
            model.again(tmp_path / "plain.jpg", image)
    finally:
        model.adapters.clear()
    with pytest.raises(UserError, match=r"another set of adapters.*ink at 0\.7"):
        model.again(tmp_path / "a.webp", image, mask, [control_input])
    save_image(drawn, tmp_path / "private.png", private=True)
    with pytest.raises(UserError, match=r"private\.png: This image does not say how to draw it again"):
        model.again(tmp_path / "private.png")


def test_neither_order_nor_names_of_adapters_decide(model: Terminus, steering: Path, tmp_path: Path):
    other = {name: 0.5 * value for name, value in load_file(steering / "ink.safetensors").items()}
    save_file(other, tmp_path / "chalk.safetensors")
    shutil.copy(steering / "ink.safetensors", tmp_path / "renamed.safetensors")
    try:
        model.adapters.attach(steering / "ink.safetensors", 0.7)
        model.adapters.attach(tmp_path / "chalk.safetensors", 0.3)
        (drawn,) = model.text2img("a dog", steps=1)
        save_image(drawn, tmp_path / "a.png")
        model.adapters.clear()
        model.adapters.attach(tmp_path / "chalk.safetensors", 0.3)
        model.adapters.attach(tmp_path / "renamed.safetensors", 0.7, text=0.7)
        assert np.array_equal(np.asarray(model.again(tmp_path / "a.png")), np.asarray(drawn))
    finally:
        model.adapters.clear()


def test_another_model_is_named(model: Terminus, random_nano: Path, tmp_path: Path):
    (image,) = model.text2img("a dog", steps=1)
    save_image(image, tmp_path / "a.png")
    shutil.copytree(random_nano, tmp_path / "other")
    weights = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] += 1
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"another model.*random-nano"):
        Terminus.load(tmp_path / "other").again(tmp_path / "a.png")
