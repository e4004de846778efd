"""Pixels and masks of curated rows: the same plan for both."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from terminus.conditioning import Crop, Size
from terminus.data.geometry import CropPlan, cut
from terminus.data.pixels import latent_mask, resized, resized_mask, training_pixels
from terminus.data.record import ImageRow


def png(pixels: UInt8[np.ndarray, "height width ..."]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def row(way: CropPlan, data: bytes, mask: bytes | None = None, background: str | None = None) -> ImageRow:
    return ImageRow(
        "k", "", "", "", "train", (), (), (), data, background, way, 0.0, "", b"", None, "", "", "", mask=mask
    )


WAY = CropPlan(Size(96, 128), Size(48, 64), Crop(5, 9), Size(32, 32))


def test_render_is_the_cut_of_the_resized_image():
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    whole = resized(row(WAY, png(pixels)), WAY)
    assert whole.shape == (48, 64, 3)
    assert np.array_equal(training_pixels(row(WAY, png(pixels))), whole[5:37, 9:41])


@pytest.mark.parametrize("scale", [1, 2])
def test_a_mask_goes_the_way_of_its_image(scale: int):
    """The image is its own mask, also at another size: where it is white after all, the mask is."""
    white = np.zeros((96 * scale, 128 * scale), np.uint8)
    white[30 * scale : 60 * scale, 40 * scale : 90 * scale] = 255
    image = np.repeat(white[::scale, ::scale, None], 3, axis=2)
    one = row(WAY, png(image), png(white))
    whole = resized_mask(one, WAY)
    assert whole is not None
    mask = cut(whole, WAY)
    assert mask.shape == (32, 32)
    assert np.abs(mask.astype(int) - training_pixels(one)[..., 0]).max() <= 40, "two filters at the same edges"
    assert ((mask > 127) == (training_pixels(one)[..., 0] > 127)).all()


def test_a_latent_counts_as_much_as_the_pixels_that_it_stands_for():
    mask = np.zeros((16, 24), np.uint8)
    mask[:8, 8:16] = 255
    mask[8:16, :4] = 255
    assert latent_mask(mask, 8).tolist() == [[0, 255, 0], [128, 0, 0]]


def test_what_shows_through_a_mask_does_not_count():
    mask = np.full((96, 128, 4), 255, np.uint8)
    mask[:48, :, 3] = 0
    whole = resized_mask(row(WAY, b"", png(mask)), WAY)
    assert whole is not None
    assert whole[:22].max() == 0
    assert whole[26:].min() == 255
    assert resized_mask(row(WAY, b""), WAY) is None
