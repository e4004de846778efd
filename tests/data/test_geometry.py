from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from terminus.conditioning import Crop, Size
from terminus.data.geometry import (
    CropPlan,
    CropPosition,
    Transform,
    buckets,
    cover,
    crop_and_resize,
    cuts,
    nearest_bucket,
    plan,
    position,
    specs,
)

sides = st.integers(32, 3000)
units = st.floats(0, 1, exclude_max=True)


@given(sides, sides, units, units, st.sampled_from(["center", "random", "native"]), st.sampled_from([None, 32]))
def test_a_plan_never_enlarges_and_its_crop_lies_inside(height, width, vertical, horizontal, crop, step):
    original = Size(height, width)
    way = plan(original, Transform(256, crop, step), CropPosition(vertical, horizontal))
    if way is None:
        assert nearest_bucket(original, buckets(256, step)) is None
        return
    assert way.original == original
    assert way.resized.height <= height
    assert way.resized.width <= width
    assert 0 <= way.crop.top <= way.resized.height - way.target.height
    assert 0 <= way.crop.left <= way.resized.width - way.target.width
    if crop == "native":
        assert way.resized == original
    else:
        assert way.resized.height == way.target.height or way.resized.width == way.target.width


def test_random_positions_reach_both_ends():
    transform = Transform(64, "native")
    first = plan(Size(100, 90), transform, CropPosition(0.0, 0.0))
    last = plan(Size(100, 90), transform, CropPosition(0.999999, 0.999999))
    assert first is not None
    assert first.crop == Crop(0, 0)
    assert last is not None
    assert last.crop == Crop(36, 26)


def test_buckets_are_those_of_sdxl():
    # Podell et al., appendix I: 40 shapes; their list has 704x1344 but not its transpose.
    short_side = {512: 4, 576: 3, 640: 2, 704: 3, 768: 2, 832: 2, 896: 2, 960: 2, 1024: 1}
    found = buckets(1024, 64)
    assert len(found) == 41
    for side, count in short_side.items():
        assert sum(size.height == side <= size.width for size in found) == count
    assert {Size(size.width, size.height) for size in found} == set(found)


def test_the_bucket_has_the_nearest_shape_that_fits():
    choices = buckets(1024, 64)
    assert nearest_bucket(Size(2000, 3000), choices) == Size(832, 1216)
    assert nearest_bucket(Size(1023, 1160), choices) == Size(960, 1088)
    assert nearest_bucket(Size(400, 4000), choices) is None


def test_the_spec_names_what_can_change_the_pixels():
    specs = {
        Transform(64).spec, Transform(128).spec, Transform(64, "random").spec, Transform(64, "random", seed=1).spec,
        Transform(64, "native").spec, Transform(64, step=16).spec,
    }  # fmt: skip
    assert len(specs) == 6
    assert Transform(64, seed=1).spec == Transform(64).spec, "a centred crop has nothing random"


@pytest.mark.parametrize("size", [(301, 402), (1200, 900), (257, 2000)])
def test_lanczos_is_pillows(size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    original = Size(*size)
    resized = cover(original, Size(96, 96))
    ours = crop_and_resize(pixels, CropPlan(original, resized, Crop(0, 0), resized)).astype(int)
    pillow = Image.fromarray(pixels).resize((resized.width, resized.height), Image.Resampling.LANCZOS)
    difference = np.abs(ours - np.asarray(pillow).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("crop", ["center", "random", "native"])
def test_pixels_come_from_where_the_conditioning_says(crop):
    """An image whose colours are its coordinates: each pixel tells where it was cut."""
    height, width = 200, 240
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8)
    pixels = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    way = plan(Size(height, width), Transform(96, crop, 32), CropPosition(0.3, 0.8))
    assert way is not None
    cut = crop_and_resize(pixels, way).astype(float)
    told = way.conditioning
    assert cut.shape[:2] == told.target
    # The centre of resized pixel i shows the original at (i + 1/2)·scale − 1/2.
    axes = ((0, told.crop.top, height, way.resized.height), (1, told.crop.left, width, way.resized.width))
    for axis, corner, full, small in axes:
        length = cut.shape[axis]
        shown = cut[:, length // 2, 0] if axis == 0 else cut[cut.shape[0] // 2, :, 1]
        expected = (np.arange(length) + corner + 0.5) * full / small - 0.5
        inner = slice(4, -4)  # LANCZOS is not linear where its window meets the border
        assert np.abs(shown - expected)[inner].max() <= 1.0


def test_a_plan_for_another_image_is_refused():
    way = plan(Size(100, 100), Transform(64), CropPosition(0, 0))
    assert way is not None
    with pytest.raises(ValueError, match="the plan is for"):
        crop_and_resize(np.zeros((100, 101, 3), np.uint8), way)


@given(
    st.integers(64, 90), st.integers(64, 90), st.integers(1, 20), st.text("0123456789abcdef", min_size=64, max_size=64)
)
def test_cuts_differ_lie_inside_and_do_not_depend_on_how_many_are_asked_for(height, width, count, image_hash):
    transform = Transform(64, "native")
    first = plan(Size(height, width), transform, position(image_hash, transform))
    assert first is not None
    found = cuts(first, image_hash, transform.spec, count)
    assert found[0] == first
    assert found == cuts(first, image_hash, transform.spec, 64)[:count]
    assert len({way.crop for way in found}) == len(found) == min(count, (height - 63) * (width - 63))
    for way in found:
        assert (way.original, way.resized, way.target) == (first.original, first.resized, first.target)
        assert 0 <= way.crop.top <= height - 64
        assert 0 <= way.crop.left <= width - 64


def test_cuts_cover_all_places_and_follow_the_image():
    transform = Transform(64, "native")
    first = plan(Size(66, 67), transform, CropPosition(0.4, 0.4))
    assert first is not None
    found = cuts(first, "ab" * 32, transform.spec, 100)
    assert {tuple(way.crop) for way in found} == {(top, left) for top in range(3) for left in range(4)}
    assert cuts(first, "cd" * 32, transform.spec, 100) != found


@pytest.mark.parametrize(("crop", "step"), [("native", None), ("native", 16), ("random", None), ("center", None)])
def test_an_image_of_the_size_of_its_bucket_stays_as_it_is(crop, step):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    way = plan(Size(64, 64), Transform(64, crop, step), CropPosition(0.7, 0.2))
    assert way is not None
    assert np.array_equal(crop_and_resize(pixels, way), pixels)
    assert (way.original, way.resized, way.crop, way.target, way.room) == (*[Size(64, 64)] * 2, (0, 0), (64, 64), 1)
    assert cuts(way, "ab" * 32, "spec", 8) == (way,)


def test_the_first_cut_bears_the_name_of_the_transform():
    assert specs("spec", 1) == ("spec",)
    assert specs("spec", 3) == ("spec", "spec cut 1", "spec cut 2")
