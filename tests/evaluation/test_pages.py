"""The pages of an evaluation: numbers are shown with what is known of them, and nothing more."""

from __future__ import annotations

import numpy as np
import pytest

from terminus.evaluation.luminance import mean_of
from terminus.evaluation.pages import page_environment

CELL = '{% from "evaluation_set.html.j2" import measure %}{{ measure(found) }}'


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.25], "0.250"),
        ([0.25, 0.25], "0.250 <small>± 0.000, [0.250, 0.250]</small>"),
    ],
)
def test_one_image_has_no_interval(values: list[float], shown: str):
    """A bootstrap of one image is that image again: its interval of no width would say that the mean is known."""

    assert page_environment().from_string(CELL).render(found=mean_of(np.array(values))) == shown
