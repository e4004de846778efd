"""One request per image: whose seeds they are."""

from __future__ import annotations

import numpy as np
import pytest

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.sampling.requests import requests_for
from terminus.sampling.settings import Settings
from terminus.sampling.shapes import Aspect, parse_size


@pytest.mark.parametrize(
    ("seed", "count", "expected"),
    [(5, 1, [5]), (5, 3, [5, 6, 7]), ([9, 2], 1, [9, 2]), ([9, 2], 2, [9, 2]), (2**63 - 2, 2, [2**63 - 2, 2**63 - 1])],
)
def test_seeds_are_consecutive_or_listed(seed: int | list[int], count: int, expected: list[int]):
    assert [one.seed for one in requests_for("a dog", "", seed, count, Settings())] == expected


def test_the_integers_of_numpy_are_seeds():
    """As the ones of Python, which JSON can say."""
    drawn = np.random.default_rng(0).integers(0, 100, 2)
    for seed, count in ((drawn[0], 2), (list(drawn), 1)):
        requests = requests_for("a {red|green} dog", "", seed, count, Settings(variation=0.5))
        assert [type(one.seed) for one in requests] == [int, int]
        assert requests[0].seed == drawn[0]


@pytest.mark.parametrize(
    ("seed", "count", "message"),
    [
        (0, 0, "count 0"),
        (0, 100_001, "count 100001"),
        (-1, 1, "seed -1"),
        (2**63 - 1, 2, "seed 9223372036854775807"),
        ([1, -2], 1, "seed -2"),
        ([1, 2], 3, "count 3 and 2 seeds"),
        ([], 1, "count 1 and 0 seeds"),
    ],
)
def test_seeds_that_cannot_be(seed: int | list[int], count: int, message: str):
    with pytest.raises(UserError, match=message):
        requests_for("a dog", "", seed, count, Settings())


def test_a_shape_has_a_longest_side():
    """Beyond it the sides would be those of another shape. What is too large for a size, the model says."""
    assert parse_size("16:1") == Aspect(16, 1)
    assert parse_size("0:1") == Aspect(0, 1)  # which the model refuses
    for text in ("17:1", "1:17", "1:1000000"):
        with pytest.raises(UserError, match=f"shape {text}.*at most 16 times"):
            parse_size(text)
    assert parse_size("999999x1") == Size(height=1, width=999_999)
