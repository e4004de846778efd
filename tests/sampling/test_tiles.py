"""Tiles cover everything, and agree with one look where one look would do."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terminus.model.tiling import starts
from terminus.sampling.tiles import tiled


@given(length=st.integers(1, 300), tile=st.integers(1, 64), overlap=st.integers(0, 63))
def test_tiles_cover_the_length_and_overlap_enough(length: int, tile: int, overlap: int):
    overlap = min(overlap, tile - 1)
    places = starts(length, tile, overlap)
    assert places[0] == 0
    assert places[-1] == max(0, length - tile)
    for before, after in pairwise(places):
        assert 0 < after - before <= tile - overlap


@pytest.mark.parametrize("size", [(8, 8), (8, 20), (21, 13)])
@pytest.mark.parametrize("overlap", [0, 2, 7])
def test_a_network_that_looks_at_one_place_is_unchanged(size: tuple[int, int], overlap: int):
    x, t = torch.randn(2, 4, *size), torch.tensor([3, 3])
    torch.testing.assert_close(tiled(lambda x, t: x**2 + t[0], 8, overlap)(x, t), x**2 + 3, rtol=1e-5, atol=1e-5)


def test_a_network_sees_tiles_of_its_own_size():
    seen: list[torch.Size] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return x

    tiled(network, 8, 2)(torch.zeros(1, 4, 14, 8), torch.tensor([0]))
    assert seen == [torch.Size([1, 4, 8, 8])] * 2


def test_seams_are_mixed():
    """Tiles that disagree meet in a slope, not in a step."""
    values = iter([0.0, 1.0])
    row = tiled(lambda x, t: torch.full_like(x, next(values)), 8, 4)(torch.zeros(1, 1, 1, 12), torch.tensor([0]))[
        0, 0, 0
    ]
    assert row[:4].tolist() == [0.0] * 4
    assert row[8:].tolist() == [1.0] * 4
    assert bool((row[4:8].diff() > 0).all())
