from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from terminus.conditioning import Size
from terminus.data import filters
from terminus.data.filters import Filters, NearDuplicates, measure


def picture(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def test_luminance_is_mean_rec_601_luma():
    for color, luma in (((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114), ((255, 255, 255), 1.0)):
        assert measure(Image.new("RGB", (30, 30), color)).luminance == pytest.approx(luma, abs=0.002)


def test_luminance_limits_are_inclusive():
    grey = measure(Image.new("RGB", (8, 8), (51, 51, 51)))
    assert filters.luminance(grey, Filters(min_luminance=0.2, max_luminance=0.2)) is None
    dark = filters.luminance(grey, Filters(min_luminance=0.21))
    bright = filters.luminance(grey, Filters(max_luminance=0.19))
    assert dark is not None
    assert dark.reason == "too dark"
    assert bright is not None
    assert bright.reason == "too bright"


def test_shape():
    assert filters.shape(Size(100, 400), Filters()) is None
    long = filters.shape(Size(100, 401), Filters())
    small = filters.shape(Size(99, 200), Filters(min_edge=100))
    assert long is not None
    assert long.reason == "too elongated"
    assert small is not None
    assert small.reason == "edge too short"


def test_near_duplicates_are_found_in_shape_and_colour():
    known = NearDuplicates()
    for seed in range(50):
        measures = measure(picture(seed))
        assert known.find(measures.dhash, measures.thumbprint) is None
        known.add(str(seed), measures.dhash, measures.thumbprint)
    for seed in range(50):
        copy = measure(picture(seed).resize((150, 120), Image.Resampling.LANCZOS))
        assert known.find(copy.dhash, copy.thumbprint) == str(seed)


def test_the_same_drawing_on_another_background_is_no_duplicate():
    known = NearDuplicates()
    drawing = Image.new("RGBA", (128, 128))
    drawing.paste(picture(0, (60, 60)), (34, 34))
    for color in ((255, 255, 255), (0, 0, 0), (200, 30, 30), (30, 30, 200)):
        canvas = Image.new("RGB", (128, 128), color)
        canvas.paste(drawing, mask=drawing.getchannel("A"))
        measures = measure(canvas)
        assert known.find(measures.dhash, measures.thumbprint) is None
        known.add(str(color), measures.dhash, measures.thumbprint)
