"""The grid starts at pure noise, never rises, and never falls off the table."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terminus.errors import UserError
from terminus.sampling.grid import from_strength, timesteps


def test_known_grids():
    assert timesteps(1) == [999]
    assert timesteps(4) == [999, 749, 499, 249]
    assert timesteps(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert timesteps(30)[:4] == [999, 966, 932, 899]
    assert timesteps(1000) == list(range(999, -1, -1))


def test_every_step_count_is_sound():
    for steps in range(1, 1001):
        grid = timesteps(steps)
        assert len(grid) == steps
        assert grid[0] == 999
        assert grid[-1] >= 0
        assert all(a > b for a, b in pairwise(grid))


@given(T=st.integers(1, 4000), data=st.data())
def test_spacing_is_even_to_one_timestep(T: int, data: st.DataObject):
    steps = data.draw(st.integers(1, T))
    ends = [*timesteps(steps, T), -1]
    assert all(abs((a - b) - T / steps) <= 1 for a, b in pairwise(ends))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_step_count_the_model_cannot_have_is_refused(steps: int):
    with pytest.raises(UserError, match="Use 1 to 1000 steps"):
        timesteps(steps)


def test_strength_keeps_the_end_of_the_grid():
    assert from_strength(10, 0.3) == [299, 199, 99]
    assert from_strength(30, 1.0) == timesteps(30)
    assert from_strength(10, 0.9999) == timesteps(10)  # truncation would drop the step from pure noise
    assert from_strength(10, 0.001) == [99]


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength: float):
    with pytest.raises(UserError, match="Strength is above 0 and at most 1"):
        from_strength(10, strength)
