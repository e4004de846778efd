from __future__ import annotations

import pytest
from PIL import Image

from terminus.conditioning import Size
from terminus.data import filters
from terminus.data.filters import Filters, measure_image


def test_luminance_is_mean_rec_601_luma():
    for color, luma in (((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114), ((255, 255, 255), 1.0)):
        assert measure_image(Image.new("RGB", (30, 30), color)).luminance == pytest.approx(luma, abs=0.002)


def test_luminance_limits_are_inclusive():
    grey = measure_image(Image.new("RGB", (8, 8), (51, 51, 51)))
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


@pytest.mark.parametrize(
    ("limits", "values", "reason"),
    [
        ({"max_watermark": 0.5}, {"watermark": 0.5}, None),
        ({"max_watermark": 0.5}, {"watermark": 0.51}, "watermark"),
        ({"max_watermark": 0.5}, {"watermark": float("nan")}, "watermark"),
        ({"max_watermark": 0.5}, {}, None),
        ({}, {"watermark": 1.0, "unsafe": 1.0, "aesthetic": 0.0, "similarity": -1.0}, None),
        ({"max_unsafe": 0.1}, {"unsafe": 0.9}, "unsafe content"),
        ({"min_aesthetic": 5.0}, {"aesthetic": 5.0}, None),
        ({"min_aesthetic": 5.0}, {"aesthetic": 4.9}, "low aesthetic score"),
        ({"min_aesthetic": 5.0}, {"aesthetic": float("nan")}, "low aesthetic score"),
        ({"min_similarity": 0.3}, {"similarity": 0.29}, "text and image differ"),
    ],
)
def test_scores_and_their_limits(limits: dict[str, float], values: dict[filters.Score, float], reason: str | None):
    dropped = filters.scores(values, Filters.model_validate(limits))
    assert (dropped.reason if dropped else None) == reason
    assert set(filters.limited_scores(Filters.model_validate(limits))) == {name.split("_")[1] for name in limits}
