"""Where an image lies on its canvas: borders, odd sizes, lines of one pixel, and what would not fit anywhere."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from terminus import Terminus
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.sampling.canvas import Margins, Repaint, _box, _extent, extended, open_image, redraw, repaint, scaled
from terminus.sampling.edits import Hires
from terminus.sampling.masks import feathered, fill_masked
from terminus.sampling.settings import Settings

from ..test_decode import swapped_profile


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[torch.Tensor, int, Size]:
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : draw(st.integers(top, height - 1)) + 1, left : draw(st.integers(left, width - 1)) + 1] = True
    return mask, draw(st.integers(0, 40)), Size(draw(st.integers(1, 64)), draw(st.integers(1, 64)))


@given(boxes())
def test_a_box_lies_in_the_image_around_its_mask_in_the_shape_that_is_drawn(case: tuple[torch.Tensor, int, Size]):
    mask, padding, shape = case
    around = _extent(mask, padding)
    rows, columns = _box(around, shape, Size(*mask.shape))
    assert 0 <= rows.start < rows.stop <= mask.shape[0]
    assert 0 <= columns.start < columns.stop <= mask.shape[1]
    assert int(mask[rows, columns].sum()) == int(mask.sum())
    for side, (start, stop), whole in zip((rows, columns), around, mask.shape, strict=True):
        assert side.stop - side.start >= min(stop - start, whole)
    if rows.stop - rows.start < mask.shape[0] and columns.stop - columns.start < mask.shape[1]:
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        assert abs(tall * shape.width - wide * shape.height) <= max(shape)  # to a pixel on either side


@pytest.mark.parametrize("size", [None, Size(16, 48)])
def test_what_is_drawn_around_a_mask_is_not_stretched(model: Terminus, size: Size | None):
    mask = torch.zeros(200, 300, dtype=torch.bool)
    mask[90:110, 100:145] = True
    canvas = repaint(noise(200, 300), mask, Repaint(padding=0), 1.0, Settings(size=size), model.components)
    # a square of the image, laid on the canvas, is as much stretched upwards as sideways
    probe = torch.zeros(200, 300, 3, dtype=torch.uint8)
    probe[95:105, 115:125] = 255
    seen = canvas.place(probe)[..., 0] > 127
    tall, wide = int(seen.any(1).sum()), int(seen.any(0).sum())
    assert abs(tall - wide) <= 1
    # and finishing brings what is drawn back to where it was
    back = canvas.finish(canvas.place(probe)[None])[0]
    assert bool((back[97:103, 117:123] > 200).all())


def test_what_is_far_from_a_mask_has_no_part_in_its_canvas(model: Terminus):
    """So a large photograph costs what its mask costs; the soft edge is that of the whole mask all the same."""
    mask = torch.zeros(400, 500, dtype=torch.bool)
    mask[150:200, 300:360] = torch.rand(50, 60, generator=torch.Generator().manual_seed(2)) > 0.01
    near = torch.zeros_like(mask)
    near[70:280, 220:440] = True
    other = torch.where(near[..., None], noise(400, 500), 255 - noise(400, 500))
    how = Repaint(padding=4, feather=6)
    one, two = (repaint(p, mask, how, 1.0, Settings(), model.components) for p in (noise(400, 500), other))
    assert torch.equal(one.pixels, two.pixels)
    pixels = torch.where(mask[..., None], 0, noise(400, 500)).to(torch.uint8)  # what is hidden does not count
    backdrop, weight = fill_masked(pixels, mask, "grey"), feathered(mask, 6)[..., None]
    canvas = repaint(pixels, mask, Repaint("grey", 6, 0), 1.0, Settings(), model.components)
    (finished,) = canvas.finish(torch.full((1, *canvas.size, 3), 255, dtype=torch.uint8))
    assert torch.equal(finished, (weight * 255 + (1 - weight) * backdrop.float()).round().to(torch.uint8))


def test_a_part_of_a_photograph_is_repainted_in_the_time_of_that_part(model: Terminus):
    photograph, mask = torch.zeros(4000, 6000, 3, dtype=torch.uint8), torch.zeros(4000, 6000, dtype=torch.bool)
    mask[1000:1400, 2000:2500] = True
    start = time.process_time()
    repaint(photograph, mask, Repaint(padding=32, feather=16), 1.0, Settings(), model.components)
    assert time.process_time() - start < 2  # the whole takes 14


@pytest.mark.parametrize("shape", [(1, 16_000), (16_000, 1), (1, 1), (3, 5)])
def test_lines_and_points_become_images_at_once(model: Terminus, shape: tuple[int, int]):
    """Scaled before they are cropped, they would be images of gigabytes on the way."""
    start = time.process_time()
    canvas = redraw(noise(*shape), Settings(), model.components)
    assert canvas.pixels.shape[:2] == canvas.size
    assert scaled(noise(*shape), Size(1024, 1024)).shape == (1024, 1024, 3)
    assert time.process_time() - start < 2


def test_scaling_takes_the_centre():
    image = torch.zeros(10, 40, 3, dtype=torch.uint8)
    image[:, 15:25] = 255
    assert int(scaled(image, Size(10, 10)).min()) == 255
    assert torch.equal(scaled(image, Size(10, 40)), image)


def test_images_that_nothing_could_read_again_are_refused_before_they_are_made(model: Terminus):
    for margins in (Margins(20_000), Margins(9_000, 9_000), Margins(0, 0, 10**12)):
        with pytest.raises(UserError, match="89,478,485"):
            extended(noise(2_000, 2_000), margins)
    with pytest.raises(UserError, match="16000x16000"):
        model.upscale(Image.new("RGB", (2000, 2000)), 8.0)


def test_an_upscaled_image_has_no_size_of_its_own(model: Terminus):
    with pytest.raises(UserError, match="Upscaling takes no size"):
        model.upscale(Image.new("RGB", (16, 16)), 2.0, size="32x32")


def test_a_second_pass_that_is_too_large_is_refused_before_the_first(model: Terminus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("terminus.sampling.canvas._LARGEST", 100)
    calls: list[int] = []
    handle = model.components.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(UserError, match="128x128"):
        model.text2img("a dog", steps=1, hires=Hires(4.0))
    handle.remove()
    assert calls == []


# Pillow images as they come


def test_a_photograph_is_turned_upright(tmp_path: Path):
    image = Image.fromarray(noise(4, 6).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    expected = torch.from_numpy(np.rot90(noise(4, 6).numpy(), -1).copy())
    assert torch.equal(open_image(tmp_path / "turned.png"), expected)
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(open_image(opened), expected)


def test_sixteen_bits_are_scaled(tmp_path: Path):
    levels = np.array([[0, 257 * 10], [257 * 200, 65_535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    for source in (tmp_path / "deep.png", Image.fromarray(levels)):
        assert open_image(source)[..., 0].tolist() == [[0, 10], [200, 255]]


TURNED = Image.Exif()
TURNED[0x0112] = 6
PROFILE = swapped_profile().getvalue()
SAVED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "profile": ("RGB", "png", {"icc_profile": PROFILE}),
    "profile and transparency": ("RGBA", "webp", {"icc_profile": PROFILE, "lossless": True}),
    "profile, turned": ("RGB", "jpg", {"icc_profile": PROFILE, "exif": TURNED}),
    "turned": ("RGB", "jpg", {"exif": TURNED}),
    "four inks": ("CMYK", "jpg", {}),
    "four inks, and a profile of three": ("CMYK", "jpg", {"icc_profile": PROFILE}),
    "sixteen bits, turned": ("I;16", "png", {"exif": TURNED}),
    "palette": ("P", "png", {"transparency": 3}),
}
"""Mode, kind of file, and what it is saved with."""


@pytest.mark.parametrize("name", SAVED)
def test_an_opened_image_draws_what_its_file_draws(name: str, model: Terminus, tmp_path: Path):
    mode, kind, how = SAVED[name]
    plain, path = Image.fromarray(noise(32, 48).numpy()), tmp_path / f"a.{kind}"
    deep = Image.fromarray(noise(32, 48).numpy()[..., 0].astype(np.uint16) * 251)
    image = deep if mode == "I;16" else plain.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path, **how)
    with Image.open(path) as opened:
        of_file, of_image = (model.img2img("a dog", source, steps=2)[0] for source in (path, opened))
    assert np.array_equal(np.asarray(of_file), np.asarray(of_image))
    assert of_file.info == of_image.info  # the hash of the initial image is in it


def test_an_image_whose_file_is_cut_off(tmp_path: Path):
    Image.fromarray(noise(64, 64).numpy()).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    with Image.open(BytesIO(data[: len(data) // 2])) as opened, pytest.raises(UserError, match="cannot be used: trunc"):
        open_image(opened)


def test_an_image_without_pixels():
    with pytest.raises(UserError, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "HSV", "LAB", "YCbCr", "F", "I;16"])
def test_every_mode_of_pillow_is_an_image(mode: str):
    assert open_image(Image.new(mode, (3, 2))).shape == (2, 3, 3)
