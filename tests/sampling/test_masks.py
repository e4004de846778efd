"""Masks on pixels and latents, soft edges, and what stands behind them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from terminus.sampling.masks import FILLS, cells, feathered, fill_masked


def square(side: int, low: int, high: int) -> torch.Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[low:high, low:high] = True
    return mask


def test_a_cell_with_one_masked_pixel_is_painted_anew():
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[3, 4] = True
    assert cells(mask, 4)[0, 0].tolist() == [[0, 1, 0], [0, 0, 0]]


@given(width=st.integers(0, 12), low=st.integers(0, 10), high=st.integers(11, 24))
def test_the_soft_edge_lies_inside_the_mask(width: int, low: int, high: int):
    mask = square(24, low, high)
    weights = feathered(mask, width)
    assert bool((weights[~mask] == 0).all())
    assert bool((weights[mask] > 0).all())
    assert float(weights.max()) <= 1.0


def test_the_soft_edge_rises_evenly_to_1():
    weights = feathered(square(24, 4, 20), 3)[12]
    assert weights[3:9].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("width", [3, 8, 64, 1024])
def test_an_edge_wider_than_its_mask_still_shows_what_is_drawn(width: int):
    """The mask is three pixels deep: there the image is the new one, however wide the edge was asked to be."""
    assert feathered(square(24, 9, 15), width)[12, 8:16].tolist() == pytest.approx(
        [0, 1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3, 0]
    )
    point = torch.zeros(9, 9, dtype=torch.bool)
    point[4, 4] = True
    assert torch.equal(feathered(point, width), point.float())


def test_the_border_of_the_image_is_no_edge():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True
    assert feathered(mask, 2)[0].tolist() == pytest.approx([1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0])
    assert bool((feathered(torch.ones(8, 8, dtype=torch.bool), 5) == 1).all())


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [(16, 16), (17, 5), (1, 9)])
def test_nothing_outside_the_mask_changes(fill, size: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
    mask = torch.rand(size, generator=generator) > 0.6
    after = fill_masked(pixels, mask, fill)
    assert torch.equal(after[~mask], pixels[~mask])
    assert torch.equal(after, pixels) == (fill == "original")


@pytest.mark.parametrize("fill", ["surroundings", "grey"])
def test_what_is_hidden_leaves_no_trace(fill):
    pixels, mask = torch.full((16, 16, 3), 200, dtype=torch.uint8), square(16, 4, 12)
    dark, bright = (torch.where(mask[..., None], torch.tensor(v, dtype=torch.uint8), pixels) for v in (0, 255))
    assert torch.equal(fill_masked(dark, mask, fill), fill_masked(bright, mask, fill))


def test_surroundings_are_continued():
    """A plain colour stays plain; between two colours every value lies between them."""
    mask = square(16, 3, 13)
    plain = torch.full((16, 16, 3), 90, dtype=torch.uint8)
    assert torch.equal(fill_masked(torch.where(mask[..., None], 7, plain).to(torch.uint8), mask, "surroundings"), plain)
    halves = torch.full((16, 16, 3), 50, dtype=torch.uint8)
    halves[:, 8:] = 150
    middle = fill_masked(halves, mask, "surroundings")[8, 3:13, 0].int()
    assert 50 <= int(middle.min()) < 75
    assert 125 < int(middle.max()) <= 150


@pytest.mark.parametrize("side", [64, 100, 512])
def test_only_the_edge_of_a_mask_is_continued(side: int):
    """A square within a red disc on white: nothing of the white behind the disc gets in."""
    rows = torch.arange(side) - side / 2
    disc = rows[:, None].square() + rows.square() < (0.45 * side) ** 2
    pixels = torch.full((side, side, 3), 255, dtype=torch.uint8)
    pixels[disc] = torch.tensor([200, 20, 40], dtype=torch.uint8)
    mask = square(side, side // 4, side - side // 4)
    continued = fill_masked(pixels, mask, "surroundings")[mask].int()
    assert (continued - torch.tensor([200, 20, 40])).abs().max() <= 2


def test_an_image_that_is_all_hidden_is_grey():
    pixels = torch.zeros(5, 4, 3, dtype=torch.uint8)
    assert int(fill_masked(pixels, torch.ones(5, 4, dtype=torch.bool), "surroundings").float().mean()) in (127, 128)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 1), (30, 47)])
@pytest.mark.parametrize("width", [0, 1, 2, 3, 7, 8, 100])
def test_a_soft_edge_counts_the_squares_that_lie_in_the_mask(
    shape: tuple[int, int], width: int, monkeypatch: pytest.MonkeyPatch
):
    """As if the mask were eaten away pixel by pixel, which takes minutes on a large image."""
    monkeypatch.setattr("terminus.sampling.masks._AT_ONCE", 100)
    for share in (0.002, 0.1, 1.1, -1.0):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > share
        outside = (~mask)[None, None].float()
        total = 1.0 - outside
        for _ in range(width):
            outside = functional.max_pool2d(outside, 3, stride=1, padding=1)
            total = total + (1.0 - outside)
        torch.testing.assert_close(feathered(mask, width), total[0, 0] / total.max().clamp(min=1.0))
