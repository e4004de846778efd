"""The sheet: every image whole and in its place, and captions that are there and stay in their column."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from terminus.sampling.sheet import sheet

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]


def plain(count: int, width: int = 32, height: int = 32) -> list[Image.Image]:
    return [Image.new("RGB", (width, height), colour) for colour in COLOURS[:count]]


def boxes(page: Image.Image, count: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of each colour."""
    array = np.asarray(page)
    found = []
    for colour in COLOURS[:count]:
        rows, columns = np.nonzero((array == colour).all(axis=2))
        found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return found


def ink(page: Image.Image) -> np.ndarray:
    """Where there is neither paper nor an image."""
    array = np.asarray(page).astype(int)
    return (array.max(axis=2) - array.min(axis=2) < 30) & (array.max(axis=2) < 150)


def test_small_images_are_enlarged_by_whole_pixels_and_stay_in_order():
    found = boxes(sheet(plain(5), columns=3), 5)
    assert all((right - left, bottom - top) == (128, 128) for left, top, right, bottom in found)
    assert found[0][1] == found[1][1] == found[2][1] < found[3][1] == found[4][1]
    assert found[0][0] == found[3][0] < found[1][0] == found[4][0] < found[2][0]


def test_enlarging_invents_no_colour():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    page = np.asarray(sheet([image], scale=2))
    assert page[6:86, 6:86].tolist() == np.asarray(image).repeat(2, 0).repeat(2, 1).tolist()


def test_large_images_are_reduced_and_keep_their_shape():
    (left, top, right, bottom), *_ = boxes(sheet(plain(1, width=2048, height=1024)), 1)
    assert (right - left, bottom - top) == (512, 256)


def test_captions_stand_below_their_own_image():
    page = sheet(plain(2), ["first words", ""], columns=2)
    first, second = boxes(page, 2)
    marks = ink(page)
    assert marks[first[3] :, first[0] : first[2]].any()
    assert not marks[:, second[0] :].any()
    assert not marks[: first[3]].any()


@pytest.mark.parametrize("caption", ["word " * 500, "x" * 5000, "犬" * 300, "a\nb\tc"])
def test_a_long_caption_stays_in_its_column(caption: str):
    page = sheet(plain(2), [caption, ""], columns=2)
    _, second = boxes(page, 2)
    assert not ink(page)[:, second[0] - 2 :].any()
    assert page.height < 128 + 5 * 16 + 20


def test_rows_have_titles_above_them():
    with_titles, without = sheet(plain(4), columns=2, row_titles=["before", "after"]), sheet(plain(4), columns=2)
    first, _, third, _ = boxes(with_titles, 4)
    marks = ink(with_titles)
    assert marks[: first[1]].any()
    assert marks[first[3] : third[1]].any()
    assert not ink(without).any()


def test_images_of_several_sizes_share_a_grid():
    found = boxes(sheet([*plain(1, 32, 32), *plain(2, 64, 16)[1:]], columns=2), 2)
    assert [(r - l, b - t) for l, t, r, b in found] == [(64, 64), (128, 32)]  # noqa: E741


def test_nothing_to_show_is_our_own_mistake():
    with pytest.raises(ValueError, match="0 images"):
        sheet([])
    with pytest.raises(ValueError, match="2 images and 1 captions"):
        sheet(plain(2), ["one"])
