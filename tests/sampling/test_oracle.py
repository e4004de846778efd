"""The oracle: data N(1.5, 0.5²) has a best velocity in closed form, so any error left is the sampler's own.

A wrong schedule, start or grid moves the mean away from 1.5, which in an image is lost contrast; the last
tests show that it does, so that the first ones could fail.
"""

from collections.abc import Callable, Sequence

import pytest
import torch

from terminus.diffusion.objective import Network
from terminus.diffusion.prediction import velocity
from terminus.diffusion.schedule import NoiseSchedule
from terminus.sampling.denoiser import Prediction, epsilon_denoiser, velocity_denoiser
from terminus.sampling.grid import beta, distilled, exponential, karras, timesteps
from terminus.sampling.solvers import DISTILLED, SOLVERS

MEAN, STD, PIXELS = 1.5, 0.5, 100_000
SDXL = NoiseSchedule.scaled_linear()
ZTSNR = SDXL.with_zero_terminal_snr()
FLOW = NoiseSchedule.rectified_flow()
STEPS = [1, 2, 3, 4, 10, 28, 30, 60, 61]


def posterior_mean(schedule: NoiseSchedule, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x0 | x_t = x]: linear in x, since everything is Gaussian."""
    alpha, sigma = schedule.at(t, x.ndim)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def perfect_network(schedule: NoiseSchedule) -> Network:
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.at(t, x.ndim)
        x0 = posterior_mean(schedule, x, t)
        return velocity(x0, (x - alpha * x0) / sigma, *schedule.rates(alpha, sigma))

    return network


def perfectly_distilled(schedule: NoiseSchedule) -> Network:
    """The consistency function: the end of the deterministic path through x, which keeps x's place in the spread."""

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.at(t, x.ndim)
        x0 = MEAN + STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
        return velocity(x0, (x - alpha * x0) / sigma, *schedule.rates(alpha, sigma))

    return network


def standard_normal(seed: int, pixels: int = PIXELS) -> torch.Tensor:
    return torch.randn(1, pixels, generator=torch.Generator().manual_seed(seed))


def sample(
    name: str,
    schedule: NoiseSchedule,
    grid: Sequence[int],
    of: Callable[[NoiseSchedule], Network] = perfect_network,
    pixels: int = PIXELS,
) -> torch.Tensor:
    """The image that a solver makes of pure noise with the perfect network."""
    denoise, start = velocity_denoiser(of(schedule), schedule), standard_normal(0, pixels)
    for step in SOLVERS[name](denoise, schedule, start, grid, lambda i: standard_normal(i + 1, pixels)):
        assert bool(step.x.isfinite().all())
    return step.x


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_returns_the_mean_of_the_data(name: str, steps: int):
    assert float(sample(name, ZTSNR, timesteps(steps)).mean()) == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("steps", [1, 2, 4, 28, 61])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_returns_the_mean_of_the_data_on_a_flow(name: str, steps: int):
    for schedule in (FLOW, NoiseSchedule.rectified_flow(shift=3.0)):
        assert float(sample(name, schedule, timesteps(steps)).mean()) == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_velocity_model_draws_the_same_as_the_flow_that_it_is(name: str):
    """Solvers know of the SNR alone: on the same curve with alpha + sigma = 1 every latent is x / (alpha + sigma)."""
    flow, grid = NoiseSchedule(ZTSNR.alphas_cumprod, flow=True), timesteps(12)
    denoise = velocity_denoiser(perfect_network(ZTSNR), ZTSNR)
    total = [*(ZTSNR.alpha + ZTSNR.sigma)[grid].tolist(), 1.0]

    def as_flow(x: torch.Tensor, t: int) -> Prediction:
        return denoise(x * float(ZTSNR.alpha[t] + ZTSNR.sigma[t]), t)

    def noise(i: int) -> torch.Tensor:
        return standard_normal(i + 1, 1000)

    own = SOLVERS[name](denoise, ZTSNR, noise(-1), grid, noise)
    other = SOLVERS[name](as_flow, flow, noise(-1), grid, noise)
    for mine, theirs, scale in zip(own, other, total[1:], strict=True):
        torch.testing.assert_close(theirs.x * scale, mine.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("name", sorted(DISTILLED))
def test_distilled_solvers_return_the_mean_on_their_own_grid(name: str, steps: int):
    for of in (perfect_network, perfectly_distilled):
        assert float(sample(name, ZTSNR, distilled(steps), of).mean()) == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_of_a_perfectly_distilled_network_returns_the_whole_distribution(steps: int):
    """One step is enough, and more do no harm: the spread is the data's at any number."""
    assert float(sample("lcm", ZTSNR, distilled(steps), perfectly_distilled).std()) == pytest.approx(STD, abs=0.005)


@pytest.mark.parametrize("spacing", [karras, exponential, beta])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_ramps_serve_the_schedules_they_are_made_for(name: str, spacing: Callable[[int, NoiseSchedule], list[int]]):
    """From the data's own x_T on a leaky schedule, every solver returns the mean and nearly all of the spread."""
    alpha, sigma = float(SDXL.alpha[-1]), float(SDXL.sigma[-1])
    start = alpha * (MEAN + STD * standard_normal(98)) + sigma * standard_normal(99)
    denoise = velocity_denoiser(perfect_network(SDXL), SDXL)
    *_, last = SOLVERS[name](denoise, SDXL, start, spacing(30, SDXL), standard_normal)
    assert float(last.x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(last.x.std()) == pytest.approx(STD, abs=0.04 if name == "ddim" else 0.01)


@pytest.mark.parametrize(
    ("name", "at_28", "at_60"),
    # How much of the spread of 0.5 is missing: the last step returns a mean, not a draw, and an even grid
    # makes that step long. Measured 0.053, 0.028 | 0.076, 0.045 | 0.031, 0.014 | 0.027, 0.009 | 0.031, 0.014.
    [
        ("ddim", 0.056, 0.030),
        ("euler_ancestral", 0.080, 0.048),
        ("dpmpp_2m", 0.034, 0.016),
        ("dpmpp_2m_sde", 0.030, 0.012),
        ("unipc", 0.034, 0.016),
    ],
)
def test_the_spread_of_the_data_returns_as_steps_are_added(name: str, at_28: float, at_60: float):
    assert 0 < STD - float(sample(name, ZTSNR, timesteps(28)).std()) < at_28
    assert 0 < STD - float(sample(name, ZTSNR, timesteps(60)).std()) < at_60


@pytest.mark.parametrize(
    ("name", "at_28", "at_60"),
    # Measured: 0.025, 0.012 | 0.052, 0.026 | -0.005, -0.002 | -0.017, -0.006 | -0.003, -0.001.
    [
        ("ddim", 0.028, 0.014),
        ("euler_ancestral", 0.056, 0.029),
        ("dpmpp_2m", 0.008, 0.004),
        ("dpmpp_2m_sde", 0.020, 0.009),
        ("unipc", 0.006, 0.004),
    ],
)
def test_the_spread_of_the_data_returns_on_a_flow(name: str, at_28: float, at_60: float):
    assert float(sample(name, FLOW, timesteps(28)).std()) == pytest.approx(STD, abs=at_28)
    assert float(sample(name, FLOW, timesteps(60)).std()) == pytest.approx(STD, abs=at_60)


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_with_every_timestep_visited_the_spread_is_the_data_s(name: str):
    drawn = sample(name, ZTSNR, timesteps(1000), pixels=20_000)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(drawn.std()) == pytest.approx(STD, abs=0.008)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_multiplies_deviations_as_computed_by_hand(steps: int):
    """A deviation d from the mean obeys d' = (alpha' gain + sigma' (1 − alpha gain) / sigma) d."""
    grid = timesteps(steps)
    alphas, sigmas = [*ZTSNR.alpha[grid].tolist(), 1.0], [*ZTSNR.sigma[grid].tolist(), 0.0]
    factor = 1.0
    for i in range(steps):
        gain = alphas[i] * STD**2 / (alphas[i] ** 2 * STD**2 + sigmas[i] ** 2)
        factor *= alphas[i + 1] * gain + sigmas[i + 1] * (1 - alphas[i] * gain) / sigmas[i]
    expected = MEAN + factor * standard_normal(0)
    torch.testing.assert_close(sample("ddim", ZTSNR, grid), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", STEPS[1:])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_a_leaky_start_loses_contrast(name: str, steps: int):
    """SDXL's own schedule ends with a trace of the image, which pure noise lacks (one step hardly looks at it)."""
    assert float(sample(name, SDXL, timesteps(steps)).mean()) < MEAN - 0.01


@pytest.mark.parametrize("steps", [10, 28, 30, 60])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_leading_spacing_loses_contrast(name: str, steps: int):
    """The default of SDXL checkpoints: the first timestep is well below T−1."""
    leading = [1000 // steps * i + 1 for i in reversed(range(steps))]
    assert float(sample(name, ZTSNR, leading).mean()) < MEAN - 0.01


@pytest.mark.parametrize("name", SOLVERS)
def test_an_epsilon_model_is_sampled_through_the_same_interface(name: str):
    """A plain SDXL schedule, begun from its own x_T rather than from pure noise."""

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = SDXL.at(t, x.ndim)
        return (x - alpha * posterior_mean(SDXL, x, t)) / sigma

    alpha, sigma = float(SDXL.alpha[-1]), float(SDXL.sigma[-1])
    start = alpha * (MEAN + STD * standard_normal(98)) + sigma * standard_normal(99)
    denoise = epsilon_denoiser(network, SDXL)
    *_, last = SOLVERS[name](denoise, SDXL, start, timesteps(30), lambda i: standard_normal(i + 1))
    assert float(last.x.mean()) == pytest.approx(MEAN, abs=0.01)


def test_an_epsilon_model_on_a_zero_terminal_schedule_is_refused():
    with pytest.raises(ValueError, match="zero-terminal-SNR"):
        epsilon_denoiser(perfect_network(ZTSNR), ZTSNR)
