"""Where diffusers' own schedulers are silently wrong on zero-terminal-SNR models, and that ours are not.

Each test shows both sides: what the installed diffusers really does, on the oracle of tests/sampling/test_oracle.py or
on an identity, and what we do in its place. When diffusers mends one, its half fails and says so.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

from terminus.diffusion.prediction import velocity
from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.sampling.denoiser import velocity_denoiser
from terminus.sampling.grid import for_solver
from terminus.sampling.solvers import SOLVERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ZTSNR = NoiseSchedule.scaled_linear().with_zero_terminal_snr()
MEAN, STD = 1.5, 0.5
SETTINGS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The best velocity for data N(1.5, 0.5²)."""
    alpha, sigma = ZTSNR.at(t, x.ndim)
    x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
    return velocity(x0, (x - alpha * x0) / sigma, alpha, sigma)


def noise(index: int) -> torch.Tensor:
    return torch.randn(1, 100_000, generator=torch.Generator().manual_seed(index + 1))


def theirs(scheduler: Any, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = noise(-1) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        v = perfect(scheduler.scale_model_input(x, t), torch.full((1,), max(0, int(t))))
        x = scheduler.step(v, t, x).prev_sample
    return x


def ours(name: str, steps: int) -> torch.Tensor:
    grid = for_solver(name, "trailing", steps, ZTSNR)
    *_, last = SOLVERS[name](velocity_denoiser(perfect, ZTSNR), ZTSNR, noise(-1), grid, noise)
    return last.x


@pytest.mark.parametrize(("scheduler", "name"), [(DDIMScheduler, "ddim"), (DDPMScheduler, "euler_ancestral")])
def test_samples_are_clipped_by_default(scheduler: Any, name: str):
    """x0 is clamped to −1 .. 1, where images are and latents are not."""
    assert float(theirs(scheduler(**SETTINGS), 10).mean()) < 1.0
    assert float(theirs(scheduler(**SETTINGS, clip_sample=False), 10).mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(ours(name, 10).mean()) == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("steps", [30, 60])
def test_ddim_steps_to_a_timestep_it_does_not_visit_next(steps: int):
    """It goes to t − 1000 // steps and goes on from the grid's next timestep, where another amount of noise is left."""
    scheduler = DDIMScheduler(**SETTINGS, clip_sample=False)
    scheduler.set_timesteps(steps)
    grid = scheduler.timesteps.tolist()
    assert grid == for_solver("ddim", "trailing", steps, ZTSNR)
    missed = [t for t, after in pairwise(grid) if t - 1000 // steps != after]
    assert len(missed) > steps // 4
    bias = MEAN - float(theirs(scheduler, steps).mean())
    assert bias > {30: 0.005, 60: 0.03}[steps]
    # The same step with the grid's own next timestep, which is all that is wrong.
    assert float(ours("ddim", steps).mean()) == pytest.approx(MEAN, abs=0.003)


@pytest.mark.parametrize("steps", [61, 103, 121])
def test_a_trailing_grid_grows_a_step_at_minus_1(steps: int):
    """The sum of rounded steps ends just above 0; the table is then read from its end, as pure noise."""
    scheduler = DDIMScheduler(**SETTINGS, clip_sample=False)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps + 1
    assert int(scheduler.timesteps[-1]) == -1
    assert abs(float(theirs(scheduler, steps).mean())) < 0.1
    grid = for_solver("ddim", "trailing", steps, ZTSNR)
    assert len(grid) == steps
    assert min(grid) >= 0
    assert float(ours("ddim", steps).mean()) == pytest.approx(MEAN, abs=0.01)


def test_no_step_count_of_ours_has_a_step_at_minus_1_and_62_of_theirs_have():
    scheduler = DDIMScheduler(**SETTINGS)
    grown: list[int] = []
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        if int(scheduler.timesteps[-1]) < 0:
            grown.append(steps)
        grid = for_solver("ddim", "trailing", steps, ZTSNR)
        assert (len(grid), grid[0]) == (steps, 999)
        assert grid[-1] >= 0
    assert len(grown) == 62


def test_euler_reads_its_velocity_table_backwards():
    """v = alpha epsilon − sigma x0 at the last timestep is −x0; theirs is that of t = 0, and the other way round."""
    scheduler = EulerDiscreteScheduler(**SETTINGS)
    x0, epsilon = torch.full((1, 1), 2.0), torch.full((1, 1), 1.0)
    for t in (0, 250, 999):
        wrong = scheduler.get_velocity(x0, epsilon, torch.tensor([float(t)]))  # whole numbers are refused
        alpha, sigma = ZTSNR.at(torch.tensor([999 - t]), 2)
        torch.testing.assert_close(wrong, velocity(x0, epsilon, alpha, sigma), rtol=0, atol=1e-3)
        right = DDPMScheduler(**SETTINGS).get_velocity(x0, epsilon, torch.tensor([t]))
        alpha, sigma = ZTSNR.at(torch.tensor([t]), 2)
        torch.testing.assert_close(right, velocity(x0, epsilon, alpha, sigma), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("flag", "name", "crowded"), [("karras", "karras", 22), ("exponential", "exponential", 17)])
def test_a_ramp_of_sigmas_is_spent_next_to_pure_noise(flag: str, name: str, crowded: int):
    """sigma / alpha from 4096 down, so that most of 30 steps lie above SDXL's own largest, 14.6."""
    scheduler = EulerDiscreteScheduler(**SETTINGS, **{f"use_{flag}_sigmas": True})
    scheduler.set_timesteps(30)
    assert int((scheduler.sigmas > 14.6147).sum()) == crowded
    with pytest.raises(UserError, match=f"`{name}` with a zero-terminal-SNR model") as refusal:
        for_solver("euler", name, 30, ZTSNR)
    assert "Use `trailing`" in str(refusal.value)


def test_a_karras_ramp_visits_timesteps_twice():
    scheduler = DPMSolverMultistepScheduler(**SETTINGS, use_karras_sigmas=True)
    scheduler.set_timesteps(30)
    grid = scheduler.timesteps.tolist()
    assert grid[:4] == [999, 999, 998, 998] or len(set(grid)) < 30
    assert len(set(for_solver("dpmpp_2m", "karras", 30, NoiseSchedule.scaled_linear()))) == 30
