"""Image to image, inpainting, outpainting, enlarging: what may change, and what must not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from terminus import Terminus, runtime
from terminus.errors import UserError
from terminus.sampling.canvas import Margins, Repaint
from terminus.sampling.edits import Hires, strength_for
from terminus.sampling.solvers import SOLVERS
from terminus.sampling.tasks import latents


def image(height: int = 32, width: int = 32, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def mask(height: int = 32, width: int = 32, box: tuple[int, int, int, int] = (8, 8, 24, 24)) -> Image.Image:
    image = Image.new("L", (width, height), 0)
    image.paste(255, box)
    return image


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def painted(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) > 127


def test_the_lower_the_strength_the_nearer_the_image(model: Terminus):
    start = image()
    vae_only = array(model.img2img("a dog", start, strength=0.01, steps=8)[0])
    distances = [
        np.abs(array(model.img2img("a dog", start, strength=s, steps=8, solver="ddim")[0]) - vae_only).mean()
        for s in (0.125, 0.5, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1]


def test_strength_1_does_not_look_at_the_image(model: Terminus):
    drawn = [array(model.img2img("a dog", image(seed=s), strength=1.0, steps=3)[0]) for s in (0, 1)]
    assert np.array_equal(*drawn)
    assert np.array_equal(drawn[0], array(model.text2img("a dog", steps=3)[0]))


def test_image_to_image_takes_the_steps_of_its_strength(model: Terminus):
    steps: list[int] = []
    handle = model.components.unet.register_forward_pre_hook(lambda _, inputs: steps.append(int(inputs[1][0])))
    model.img2img("a dog", image(), strength=0.5, steps=10)
    handle.remove()
    assert steps == [499, 399, 299, 199, 99]


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_pixels_stay_to_the_bit(model: Terminus, solver: str):
    start, hole = image(), mask()
    drawn = model.inpaint("a dog", start, hole, count=2, steps=4, solver=solver)
    for one in drawn:
        assert np.array_equal(array(one)[~painted(hole)], array(start)[~painted(hole)])
        assert not np.array_equal(array(one)[painted(hole)], array(start)[painted(hole)])
    assert not np.array_equal(array(drawn[0]), array(drawn[1]))


@pytest.mark.parametrize("how", [Repaint(), Repaint(feather=5), Repaint(padding=3), Repaint(padding=40, feather=2)])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "euler_ancestral"])
def test_what_the_mask_hides_has_no_influence(model: Terminus, how: Repaint, solver: str):
    """Not a small one: none. Black, white and noise behind the mask give the same bytes."""
    hole, start = mask(), array(image()).astype(np.uint8)
    drawn = []
    for hidden in (np.zeros_like(start), np.full_like(start, 255), array(image(seed=9)).astype(np.uint8)):
        canvas = Image.fromarray(np.where(painted(hole)[..., None], hidden, start))
        drawn.append(array(model.inpaint("a dog", canvas, hole, steps=4, repaint=how, solver=solver)[0]))
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


@pytest.fixture(scope="module")
def inpainter(model: Terminus, random_nano: Path) -> Terminus:
    """The same with a UNet of nine channels, which reads mask and image: random weights, so only its manners."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = type(model.components.unet).from_config({**model.components.unet.config, "in_channels": 9}).eval()
    return Terminus(replace(model.components, unet=unet), random_nano)


@pytest.mark.parametrize("how", [Repaint(), Repaint(feather=5), Repaint("grey", padding=3)])
@pytest.mark.parametrize("solver", ["unipc", "dpmpp_2m_sde"])
def test_an_inpainting_unet_keeps_what_is_known_and_learns_nothing_of_what_is_hidden(
    inpainter: Terminus, how: Repaint, solver: str
):
    hole, start = mask(), array(image()).astype(np.uint8)
    images = [Image.fromarray(np.where(painted(hole)[..., None], v, start).astype(np.uint8)) for v in (0, 255)]
    dark, bright = (inpainter.inpaint("a dog", one, hole, steps=3, repaint=how, solver=solver)[0] for one in images)
    assert np.array_equal(array(dark), array(bright))
    assert np.array_equal(array(dark)[~painted(hole)], start[~painted(hole)])
    kept = Image.fromarray(np.where(painted(hole)[..., None], start, 255 - start).astype(np.uint8))
    (other,) = inpainter.inpaint("a dog", kept, hole, steps=3, repaint=how, solver=solver)
    assert not np.array_equal(array(other)[painted(hole)], array(dark)[painted(hole)])  # it does read what is kept


@pytest.mark.parametrize("which", ["model", "inpainter"])
def test_at_strength_1_inpainting_starts_at_the_end_from_pure_noise(which: str, request: pytest.FixtureRequest):
    one: Terminus = request.getfixturevalue(which)
    seen: list[tuple[int, torch.Tensor]] = []
    handle = one.components.unet.register_forward_pre_hook(
        lambda _, inputs: seen.append((int(inputs[1][0]), inputs[0].clone()))
    )
    one.inpaint("a dog", image(), mask(), steps=5, seed=3)
    handle.remove()
    assert [t for t, _ in seen] == [999, 799, 599, 399, 199]
    noise = torch.randn(4, 8, 8, generator=runtime.rng(3, 0, "sampling"))
    assert torch.equal(seen[0][1][:, :4], noise.expand(2, 4, 8, 8))


def test_an_inpainting_unet_reads_the_mask_and_the_image_with_grey_behind_it(inpainter: Terminus):
    seen: list[torch.Tensor] = []
    handle = inpainter.components.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 4:]))
    start, hole = image(), mask(box=(9, 8, 24, 21))
    inpainter.inpaint("a dog", start, hole, steps=2)
    handle.remove()
    cells = torch.zeros(8, 8)
    cells[2:6, 2:6] = 1  # a cell that is masked in part is masked
    signal = torch.from_numpy(array(start)).permute(2, 0, 1)[None] / 127.5 - 1
    grey = latents(inpainter.components, (signal * ~torch.from_numpy(painted(hole))).float())
    for channels in seen:
        for row in channels:
            assert torch.equal(row[0], cells)
            torch.testing.assert_close(row[1:], grey[0])


def test_an_inpainting_unet_outpaints_and_starts_part_way(inpainter: Terminus):
    start = image()
    (larger,) = inpainter.outpaint("a dog", start, Margins(16, 0, 5, 11), steps=2)
    assert larger.size == (53, 43)
    assert np.array_equal(array(larger)[0:32, 16:48], array(start))
    half, again = (array(inpainter.inpaint("a dog", start, mask(), strength=s, steps=4)[0]) for s in (0.5, 1.0))
    assert np.array_equal(half[~painted(mask())], array(start)[~painted(mask())])
    assert not np.array_equal(half, again)


@pytest.mark.parametrize(("task", "arguments"), [("text2img", ()), ("img2img", (image(),)), ("upscale", (image(),))])
def test_an_inpainting_unet_needs_a_mask(inpainter: Terminus, task: str, arguments: tuple[Image.Image, ...]):
    given = (*arguments, 2.0, "a dog") if task == "upscale" else ("a dog", *arguments)
    with pytest.raises(UserError, match="This UNet reads 9 channels"):
        getattr(inpainter, task)(*given)


def test_below_strength_1_the_hidden_part_is_where_it_starts(model: Terminus):
    hole, start = mask(), array(image()).astype(np.uint8)
    images = [Image.fromarray(np.where(painted(hole)[..., None], v, start).astype(np.uint8)) for v in (0, 255)]
    drawn = [array(model.inpaint("a dog", one, hole, strength=0.5, steps=4)[0]) for one in images]
    assert not np.array_equal(*drawn)
    hidden = [
        array(model.inpaint("a dog", one, hole, strength=0.5, steps=4, repaint=Repaint(fill="grey"))[0])
        for one in images
    ]
    assert np.array_equal(*hidden)


@pytest.mark.parametrize("size", [(32, 32), (30, 45), (50, 33)])
@pytest.mark.parametrize("how", [Repaint(), Repaint(feather=3, padding=2)])
def test_images_of_any_size_keep_it(model: Terminus, size: tuple[int, int], how: Repaint):
    start, hole = image(*size), mask(*size, box=(3, 5, 20, 21))
    (one,) = model.inpaint("a dog", start, hole, steps=2, repaint=how)
    assert one.size == start.size
    assert np.array_equal(array(one)[~painted(hole)], array(start)[~painted(hole)])


def test_a_large_image_is_painted_around_its_mask(model: Terminus):
    start, hole = image(300, 400), mask(300, 400, box=(250, 10, 390, 90))
    with pytest.raises(UserError, match="Give a padding"):
        model.inpaint("a dog", start, hole)
    (one,) = model.inpaint("a dog", start, hole, steps=2, repaint=Repaint(padding=8))
    assert one.size == (400, 300)
    assert np.array_equal(array(one)[~painted(hole)], array(start)[~painted(hole)])
    (square,) = model.inpaint("a dog", start, hole, steps=2, repaint=Repaint(padding=8), size="32x32")
    assert np.array_equal(array(square)[~painted(hole)], array(start)[~painted(hole)])


def test_the_soft_edge_lies_within_the_mask(model: Terminus):
    start, hole = image(), mask()
    hard, soft = (array(model.inpaint("a dog", start, hole, steps=2, repaint=Repaint(feather=f))[0]) for f in (0, 4))
    inner = painted(mask(box=(12, 12, 20, 20)))
    assert np.array_equal(hard[inner], soft[inner])
    assert not np.array_equal(hard, soft)


def test_outpainting_keeps_the_image_and_adds_its_margins(model: Terminus):
    start = image()
    (one,) = model.outpaint("a dog", start, Margins(16, 0, 5, 11), steps=2)
    assert one.size == (53, 43)
    assert np.array_equal(array(one)[0:32, 16:48], array(start))
    said = json.loads(one.info["terminus"])
    assert (said["task"], said["margins"]) == ("outpaint", [16, 0, 5, 11])


@pytest.mark.parametrize("factor", [1.0, 1.5, 3.0])
def test_enlarging_gives_the_asked_size(model: Terminus, factor: float):
    (one,) = model.upscale(image(30, 20), factor, "a dog", steps=4)
    assert one.size == (round(20 * factor), round(30 * factor))


def test_large_images_are_drawn_in_tiles_of_the_models_size(model: Terminus):
    seen: set[tuple[int, ...]] = set()
    handle = model.components.unet.register_forward_pre_hook(lambda _, inputs: seen.add(tuple(inputs[0].shape[-2:])))
    model.upscale(image(), 3.0, steps=2)
    handle.remove()
    assert seen == {(8, 8)}


def test_more_tiles_change_less_and_it_is_said(model: Terminus, caplog: pytest.LogCaptureFixture):
    """Each tile is drawn from the whole prompt: enough strength would draw a grid of little images."""

    def strength(factor: float, asked: float | None = None) -> float:
        caplog.clear()
        (one,) = model.upscale(image(), factor, "a dog", strength=asked, steps=1)
        return json.loads(one.info["terminus"])["strength"]

    assert strength(1.0) == 0.3  # one look
    assert caplog.messages == []
    assert strength(2.0) == strength_for(9) < 0.3
    assert caplog.messages[0].startswith("drawn in 9 tiles, each from the whole prompt: strength is lowered from 0.3")
    assert strength(4.0) == strength_for(25) < strength_for(9)
    assert "25 tiles" in caplog.text
    assert strength(2.0, 0.05) == 0.05
    assert caplog.messages == []
    assert strength(2.0, 0.5) == 0.5  # what is asked for is done, and its danger said
    assert "at strength 0.5 each of them may become an image of its own" in caplog.text


def test_a_second_pass_ends_larger_with_the_same_steps_counted(model: Terminus):
    drawings = list(model.stream("a dog", count=2, hires=Hires(2.0, 0.5)))
    assert [one.step for one in drawings if len(one.requests) == 2] == list(range(1, 29))
    assert drawings[-1].steps == 42
    assert [one.finished for one in drawings].count(True) == 2
    (one, _) = model.text2img("a dog", count=2, steps=4, hires=2.0)
    assert one.size == (64, 64)
    assert json.loads(one.info["terminus"])["enlargement"]["factor"] == 2.0


def test_variations_are_neighbours_of_a_seed(model: Terminus):
    own = array(model.text2img("a dog", seed=4, steps=4)[0])
    near, far = (model.text2img("a dog", seed=4, count=2, steps=4, variation=v) for v in (0.1, 1.0))
    assert 0 < np.abs(array(near[0]) - own).mean() < np.abs(array(far[0]) - own).mean()
    assert not np.array_equal(array(near[0]), array(near[1]))
    assert [json.loads(one.info["terminus"])["seed"] for one in near] == [4, 4]


def test_initial_noise_is_normal_at_every_variation(model: Terminus):
    from terminus.sampling.settings import ImageRequest
    from terminus.sampling.tasks import _noise

    for strength in (0.0, 0.3, 0.7, 1.0):
        noise = _noise([ImageRequest("", 1)], strength, (4, 96, 96), torch.device("cpu"))(-1)
        assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
        assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("img2img", ("a dog", image()), {"strength": float("nan")}),
        ("img2img", ("a dog", image()), {"strength": 0.0}),
        ("img2img", ("a dog", image()), {"strength": 1.0001}),
        ("inpaint", ("a dog", image(), mask(16, 16)), {}),
        ("inpaint", ("a dog", image(), mask(box=(0, 0, 0, 0))), {}),
        ("inpaint", ("a dog", image(), mask()), {"size": "48x48"}),
        ("outpaint", ("a dog", image(), (0, 0, 0, 0)), {}),
        ("outpaint", ("a dog", image(), (-1, 5, 0, 0)), {}),
        ("upscale", (image(), 0.5), {}),
        ("upscale", (image(), float("nan")), {}),
        ("upscale", (image(8000, 8000), 4.0), {}),
        ("text2img", ("a dog",), {"hires": 0.5}),
        ("text2img", ("a dog",), {"variation": 2.0}),
        ("text2img", ("a dog",), {"interval": (0.5, 0.2)}),
        ("text2img", ("a dog",), {"spacing": "trialing"}),
        ("img2img", ("a dog", "nowhere.png"), {}),
    ],
)
def test_what_cannot_be_done_is_said(model: Terminus, name: str, arguments, message):
    with pytest.raises(UserError):
        getattr(model, name)(*arguments, **message)


@pytest.mark.parametrize(("fill", "near"), [("orignal", "original"), ("gray", "grey")])
def test_an_unknown_fill_is_answered_with_the_nearest(fill: str, near: str):
    with pytest.raises(UserError, match=f"Did you mean `{near}`"):
        Repaint(fill)


def test_files_that_are_no_images(model: Terminus, tmp_path: Path):
    (tmp_path / "x.png").write_text("<svg/>")
    with pytest.raises(UserError, match=r"x\.png: This image cannot be used: not a JPEG, PNG or WebP"):
        model.img2img("a dog", tmp_path / "x.png")


def test_transparent_parts_lie_on_white(model: Terminus):
    from terminus.sampling.canvas import open_image

    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert int(open_image(clear).min()) == 255
