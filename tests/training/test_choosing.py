"""Which caption of an image is used: by weight, and by nothing else than seed and position."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from terminus import runtime
from terminus.data.batch import Batch
from terminus.data.caption import Caption
from terminus.training.steps.captions import choose_caption, drawn_captions

CAPTIONS = ("first", "second", "third")


def weighted(*weights: float) -> tuple[Caption, ...]:
    return tuple(Caption(text, "test", weight) for text, weight in zip(CAPTIONS, weights, strict=False))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0)])
def test_equal_weights_choose_alike(weights: tuple[float, ...]):
    for position in range(300):
        expected = CAPTIONS[int(runtime.uniform(7, position, "caption") * 3)]
        assert choose_caption(weighted(*weights), 7, position) == expected


def test_captions_come_as_often_as_they_weigh():
    found = Counter(choose_caption(weighted(1.0, 0.0, 3.0), 0, position) for position in range(4000))
    assert found["second"] == 0
    assert found["third"] == pytest.approx(3000, abs=120)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (1e-30, 1e30, 1e-30)])
def test_what_weighs_nothing_is_never_chosen(weights: tuple[float, ...]):
    expected = CAPTIONS[max(range(3), key=weights.__getitem__)]
    assert {choose_caption(weighted(*weights), 1, position) for position in range(500)} == {expected}


def test_without_captions_there_is_the_empty_one_and_with_one_only_that():
    assert choose_caption((), 0, 0) == ""
    assert choose_caption(weighted(0.0), 0, 5) == "first"


def test_each_sample_has_its_own_weights():
    batch = Batch(
        (0, 1),
        ("a", "b"),
        (weighted(0.0, 0.0, 1.0), weighted(0.0, 1.0, 0.0)),
        (),
        torch.zeros(2),
        0,
    )
    assert drawn_captions(batch, 3) == ["third", "second"]
