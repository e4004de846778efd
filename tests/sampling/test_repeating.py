"""A picture's own words, and the files that it began from, draw it again: nothing that decides is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from terminus import Terminus
from terminus.conditioning import Crop, MicroConditioning, Size
from terminus.sampling.canvas import Repaint
from terminus.sampling.edits import Hires
from terminus.sampling.guides import Guide
from terminus.sampling.metadata import read, save, settings_of
from terminus.sampling.origin import Origin


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


def drawn_again(model: Terminus, origin: Origin, files: Path, guides: list[Guide]) -> Image.Image:
    """From the origin alone; which file has which hash is for the user to know."""
    image, mask = files / "image.png", files / "mask.png"
    how = {
        **{"steps": origin.steps, "guidance": origin.guidance, "rescale": origin.rescale, "solver": origin.solver},
        **{"spacing": origin.spacing, "interval": origin.interval or (0.0, 1.0), "precision": origin.precision},
        **{"conditioning": origin.conditioning, "negative_conditioning": origin.negative_conditioning},
        **{"negative": origin.negative, "seed": origin.seed, "guides": guides},
    }
    if origin.variation:  # variations are numbered from 0
        how |= {"variation": origin.variation.strength, "count": origin.variation.seed + 1}
    if origin.task == "text2img":
        grown = origin.enlargement
        second = Hires(grown.factor, origin.strength) if grown and origin.strength else None
        return model.text2img(origin.prompt, size=grown.source if grown else origin.size, hires=second, **how)[-1]
    if origin.task == "img2img":
        return model.img2img(origin.prompt, image, strength=origin.strength, size=origin.size, **how)[-1]
    if origin.task == "upscale":
        return model.upscale(image, origin.enlargement.factor, origin.prompt, strength=origin.strength, **how)[-1]
    use = origin.mask
    how |= {"repaint": Repaint(use.fill, use.feather, use.crop_padding), "size": use.crop_size}
    if origin.task == "inpaint":
        return model.inpaint(origin.prompt, image, mask, strength=origin.strength, **how)[-1]
    return model.outpaint(origin.prompt, image, origin.margins, **how)[-1]


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
def test_what_a_picture_says_draws_it_again(model: Terminus, files: Path, steering: Path, tmp_path: Path, name: str):
    task, how = CASES[name]
    how = {"seed": 4, "steps": 3, "negative": "{blurry|(dark:1.2)}, noise"} | how
    guides = [Guide("controlnet", steering / "edges", files / "image.png", 0.8)] if how.pop("guided", False) else []
    prompt, image = "a {red|green|blue} (apple:1.3) on {black|white}", files / "image.png"
    given = {
        "text2img": (prompt,),
        "img2img": (prompt, image),
        "inpaint": (prompt, image, files / "mask.png"),
        "outpaint": (prompt, image, (0, 3, 14, 0)),
        "upscale": (image, 1.5, prompt),
    }[task]
    drawn = getattr(model, task)(*given, guides=guides, **how)[-1]
    save(drawn, tmp_path / "drawn.png")
    origin = settings_of(read(tmp_path / "drawn.png"))
    assert origin.task == task
    again = drawn_again(model, origin, files, guides)
    if how.get("count", 1) != 1 or isinstance(how["seed"], list):
        # sums in a batch differ in their last bits from those of one picture
        assert np.abs(np.asarray(again).astype(int) - np.asarray(drawn)).max() <= 1
    else:
        assert np.array_equal(np.asarray(again), np.asarray(drawn))
    said = settings_of_image(again, tmp_path)
    assert replace(said, template=origin.template) == origin


def settings_of_image(image: Image.Image, folder: Path) -> Origin:
    save(image, folder / "again.png")
    return settings_of(read(folder / "again.png"))
