"""The grid starts at pure noise, never rises, and never falls off the table."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.sampling.grid import SPACINGS, beta_cdf, distilled, for_solver, karras, tail, timesteps
from terminus.sampling.solvers import DISTILLED, SOLVERS

SDXL = NoiseSchedule.scaled_linear()
ZTSNR = SDXL.with_zero_terminal_snr()
RATIO = SDXL.sigma / SDXL.alpha
RAMPS = [name for name in SPACINGS if name != "trailing"]


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
    assert tail(timesteps(10), 0.3) == [299, 199, 99]
    assert tail(timesteps(30), 1.0) == timesteps(30)
    assert tail(timesteps(10), 0.9999) == timesteps(10)  # truncation would drop the step from pure noise
    assert tail(timesteps(10), 0.001) == [99]


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_strength_outside_its_range_is_refused(strength: float):
    with pytest.raises(UserError, match="Strength is above 0 and at most 1"):
        tail(timesteps(10), strength)


def test_strength_keeps_the_end_of_any_grid():
    for spacing in SPACINGS:
        grid = for_solver("euler", spacing, 20, SDXL)
        assert tail(grid, 0.25) == grid[15:]
        assert tail(grid, 1.0) == grid
        assert tail(grid, 0.01) == grid[19:]
    assert tail(distilled(8), 0.5) == distilled(8)[4:]


def test_known_ramps():
    assert for_solver("euler", "karras", 8, SDXL) == [999, 890, 746, 549, 299, 90, 12, 0]
    assert for_solver("euler", "exponential", 8, SDXL) == [999, 835, 622, 359, 133, 31, 5, 0]
    assert for_solver("euler", "beta", 8, SDXL) == [999, 942, 823, 670, 500, 329, 176, 57]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_starts_at_the_end_and_falls_at_any_step_count(spacing: str):
    for steps in [*range(1, 102), 250, 499, 500, 998, 999, 1000]:
        grid = for_solver("dpmpp_2m", spacing, steps, SDXL)
        assert (len(grid), grid[0]) == (steps, 999)
        assert all(a > b for a, b in pairwise([*grid, -1]))


@pytest.mark.parametrize("steps", [2, 5, 10, 30])
def test_karras_is_its_equation_to_the_nearest_timestep(steps: int):
    grid = karras(steps, SDXL)
    for i, t in enumerate(grid):
        wanted = (RATIO[-1] ** (1 / 7) + i / (steps - 1) * (RATIO[0] ** (1 / 7) - RATIO[-1] ** (1 / 7))) ** 7
        assert int((RATIO.log() - wanted.log()).abs().argmin()) == t
    assert grid[-1] == 0


@pytest.mark.parametrize(
    ("shape", "closed_form"), [(0.5, lambda x: 2 / torch.pi * x.sqrt().asin()), (1.0, lambda x: x)]
)
def test_the_distribution_of_the_beta_spacing_where_it_is_elementary(shape: float, closed_form):
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(beta_cdf(x, shape), closed_form(x), rtol=0, atol=1e-12)


def test_the_distribution_of_the_beta_spacing_is_the_integral_of_its_density():
    """With x = sin²(theta) the density is (sin theta cos theta)^0.2 up to a constant, which a sum handles."""
    theta = torch.linspace(0, torch.pi / 2, 100_001, dtype=torch.float64)
    sums = torch.cumulative_trapezoid((theta.sin() * theta.cos()).clamp(min=0) ** 0.2, theta)
    x = theta[1:].sin().square()
    torch.testing.assert_close(beta_cdf(x, 0.6), sums / sums[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 28, 30, 100])
def test_beta_timesteps_are_the_quantiles_of_the_distribution(steps: int):
    """Their share of the distribution is even, to the rounding of a timestep, and both ends are denser."""
    grid = for_solver("euler", "beta", steps, SDXL)
    near = [beta_cdf(((torch.tensor(grid, dtype=torch.float64) + d) / 999).clamp(0, 1), 0.6) for d in (-0.5, 0.5)]
    for i in range(steps):
        assert near[0][i] - 1e-9 <= 1 - i / steps <= near[1][i] + 1e-9
    gaps = [a - b for a, b in pairwise(grid)]
    assert gaps[0] < max(gaps) > gaps[-1]


@pytest.mark.parametrize(("spacing", "crowded"), [("karras", 19), ("exponential", 13), ("beta", 6)])
def test_ramps_are_refused_where_the_end_is_pure_noise(spacing: str, crowded: int):
    with pytest.raises(UserError) as refusal:
        for_solver("dpmpp_2m", spacing, 28, ZTSNR)
    said = str(refusal.value)
    assert f"Spacing `{spacing}` with a zero-terminal-SNR model" in said
    assert f"{crowded} of 28 steps are spent above sigma 14.6" in said
    assert "(trailing: 4)" in said
    assert "Use `trailing`" in said


def test_where_sdxls_own_schedule_ends():
    assert float(RATIO[-1]) == pytest.approx(14.6146, abs=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_gets_the_grid_it_needs(solver: str):
    expected = [999, 879, 759, 639, 499, 379, 259, 139] if solver in DISTILLED else timesteps(8)
    assert for_solver(solver, "trailing", 8, ZTSNR) == expected


def test_distilled_grids():
    assert distilled(1) == [999]
    assert distilled(4) == [999, 759, 499, 259]
    assert distilled(50) == [20 * i - 1 for i in range(50, 0, -1)]
    assert distilled(4, 500) == [499, 379, 249, 129]
    assert distilled(3, 10) == [9, 6, 3]
    for steps in range(1, 51):
        assert set(distilled(steps)) <= set(distilled(50))
        assert distilled(steps)[0] == 999


@pytest.mark.parametrize("steps", [0, 51])
def test_more_steps_than_a_distilled_model_knows_are_refused(steps: int):
    with pytest.raises(UserError, match="Use 1 to 50 steps; 4 to 8 are usual"):
        for_solver("lcm", "trailing", steps, ZTSNR)


def test_choices_that_contradict_each_other_or_do_not_exist():
    with pytest.raises(UserError, match="Leave the spacing at `trailing`"):
        for_solver("tcd", "karras", 4, SDXL)
    with pytest.raises(UserError, match="Did you mean `karras`"):
        for_solver("euler", "karas", 4, SDXL)
    for ramp in RAMPS:
        with pytest.raises(UserError, match="Use 1 to 1000 steps"):
            for_solver("euler", ramp, 1001, SDXL)
        with pytest.raises(UserError):
            for_solver("euler", ramp, 0, ZTSNR)
