"""Which held-out images measure a run, and what is said of each source."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from terminus.data.batch import Batch
from terminus.training.step import StepLoss
from terminus.training.validation import build_validation

from ..data.counted import Table

TABLE = Table(({"web": 900, "anchor": 1}, {"web": 90, "anchor": 2, "art": 7}))


def test_each_source_has_its_part_and_none_is_left_out():
    chosen = build_validation(TABLE, 100, 8)
    keys = [key for batch in chosen.batches for key in batch.keys]
    assert [key.split("/")[2] for key in keys] == list(chosen.sources)
    assert Counter(chosen.sources) == {"web": 99, "anchor": 1, "art": 1}
    assert len(set(keys)) == chosen.count == 101
    assert [place for batch in chosen.batches for place in batch.positions] == list(range(101))
    assert {batch.captions[0][0].text for batch in chosen.batches} == {"a"}
    rows = [int(key.split("/")[1]) for key in keys if key.startswith("0/")]
    assert rows == sorted(rows)
    assert max(b - a for a, b in pairwise(rows)) <= 11, "evenly spaced"
    assert build_validation(TABLE, 10_000, 8).count == 1000
    assert build_validation(Table(({"a": 3},)), 1, 8).sources == ("a",)


class Known:
    """A step whose error depends on the source alone."""

    trained = torch.nn.Linear(1, 1)
    errors: ClassVar = {"web": 1.0, "anchor": 2.0, "art": 4.0}

    def loss(self, batch: Batch, step: int) -> StepLoss:
        error = torch.tensor([self.errors[key.split("/")[2]] for key in batch.keys])
        return StepLoss(error, error)

    def seeded(self, seed: int) -> Known:
        return self


def test_the_error_of_each_source_is_the_mean_over_its_images():
    assert build_validation(TABLE, 1000, 8).measure(Known()) == {
        "all": pytest.approx((990 + 2 * 3 + 4 * 7) / 1000), "source anchor": 2.0, "source art": 4.0, "source web": 1.0,
    }  # fmt: skip
    alone = build_validation(Table(({"web": 20},)), 1000, 8)
    assert alone.measure(Known()) == {"all": 1.0}, "one source is all there is"
