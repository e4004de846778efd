"""What every solver owes its callers, whatever the network."""

import pytest
import torch

from terminus.diffusion.schedule import NoiseSchedule
from terminus.sampling.denoiser import Prediction, velocity_denoiser
from terminus.sampling.grid import distilled, tail, timesteps
from terminus.sampling.solvers import SOLVERS, Step

ZTSNR = NoiseSchedule.scaled_linear().with_zero_terminal_snr()
STOCHASTIC = ["euler_ancestral", "dpmpp_2m_sde", "lcm", "tcd"]


def images(seeds: list[int], step: int = -1) -> torch.Tensor:
    """One latent per seed, the same whichever batch it is in."""
    one = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1000 * seed + step + 1)) for seed in seeds]
    return torch.stack(one)


def run(name: str, seeds: list[int], grid: list[int], start: torch.Tensor | None = None) -> list[Step]:
    denoise = velocity_denoiser(lambda x, t: torch.tanh(1.7 * x) - 0.2 * x, ZTSNR)
    x = images(seeds) if start is None else start
    return list(SOLVERS[name](denoise, ZTSNR, x, grid, lambda i: images(seeds, i)))


@pytest.mark.parametrize("steps", [1, 2, 4, 61])
@pytest.mark.parametrize("name", SOLVERS)
def test_steps_follow_the_grid_and_end_on_the_image(name: str, steps: int):
    grid = timesteps(steps)
    trajectory = run(name, [0, 1], grid)
    assert [step.index for step in trajectory] == list(range(steps))
    assert [step.t for step in trajectory] == grid
    assert all(bool(step.x.isfinite().all()) and step.x.dtype == torch.float32 for step in trajectory)
    assert torch.equal(trajectory[-1].x, trajectory[-1].x0)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_does_not_depend_on_its_batch(name: str):
    together = run(name, [3, 1, 2], timesteps(12))[-1].x
    alone = run(name, [2], timesteps(12))[-1].x
    assert torch.equal(together[2:], alone)


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_asked_for_once_per_step_by_the_stochastic_solvers_only(name: str):
    asked: list[int] = []

    def noise(index: int) -> torch.Tensor:
        asked.append(index)
        return images([0], index)

    denoise = velocity_denoiser(lambda x, t: torch.zeros_like(x), ZTSNR)
    list(SOLVERS[name](denoise, ZTSNR, images([0]), timesteps(6), noise))
    assert asked == (list(range(5)) if name in STOCHASTIC else [])  # the last step lands on the image


@pytest.mark.parametrize("name", SOLVERS)
def test_an_exact_network_returns_the_image_it_knows(name: str):
    """If the network always sees the true x0, every solver must return it, from any start on the grid."""
    known = images([7])

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = ZTSNR.at(t, x.ndim)
        return (alpha * x - known) / sigma

    for strength in (0.2, 1.0):
        grid = tail(timesteps(20), strength)
        alpha, sigma = float(ZTSNR.alpha[grid[0]]), float(ZTSNR.sigma[grid[0]])
        start = alpha * known + sigma * images([8])
        *_, last = SOLVERS[name](velocity_denoiser(network, ZTSNR), ZTSNR, start, grid, lambda i: images([9], i))
        torch.testing.assert_close(last.x, known, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("first_order", "second_order"), [("ddim", "dpmpp_2m"), ("euler_ancestral", "dpmpp_2m_sde")])
def test_second_order_starts_as_first_order(first_order: str, second_order: str):
    """The first step has no history; the second has one at λ = −infinity, which says nothing of slope."""
    grid = timesteps(10)
    low, high = run(first_order, [0], grid), run(second_order, [0], grid)
    for index in (0, 1):
        torch.testing.assert_close(low[index].x, high[index].x, rtol=0, atol=1e-6)
    assert float((low[3].x - high[3].x).abs().max()) > 1e-3


def test_dpmpp_2m_converges_faster_than_ddim_on_the_interior():
    """Halving the step divides the error by 2 (first order) or 4 (second), away from both infinite ends."""

    def error(name: str, steps: int) -> float:
        def end(count: int) -> torch.Tensor:
            # t 700 → 300; the last hop of a grid goes to the image, so look at the state before it.
            grid = [round(700 - 400 * i / count) for i in range(count + 1)]
            return run(name, [0], grid, start=images([0]))[-2].x.double()

        return float((end(steps) - end(400)).abs().mean())

    assert 1.6 < error("ddim", 10) / error("ddim", 20) < 2.6
    assert error("dpmpp_2m", 10) / error("dpmpp_2m", 20) > 2.8
    assert error("dpmpp_2m", 20) < 0.3 * error("ddim", 20)


def test_unipc_corrects_the_step_of_dpmpp_2m_and_gains_an_order():
    """With one call of the network per step all the same."""
    calls: list[int] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(int(t[0]))
        return torch.tanh(1.7 * x) - 0.2 * x

    def end(name: str, count: int) -> torch.Tensor:
        grid = [round(700 - 400 * i / count) for i in range(count + 1)]
        denoise = velocity_denoiser(network, ZTSNR)
        return list(SOLVERS[name](denoise, ZTSNR, images([0]), grid, lambda i: images([0], i)))[-2].x.double()

    exact = end("dpmpp_2m", 400)
    calls.clear()
    coarse = end("unipc", 10)
    assert len(calls) == 11
    errors = [float((end("unipc", count) - exact).abs().mean()) for count in (10, 20)]
    assert errors[0] == float((coarse - exact).abs().mean())
    assert errors[1] < 0.5 * float((end("dpmpp_2m", 20) - exact).abs().mean())
    assert errors[0] / errors[1] > 4.5  # between the second order of the last, uncorrected step and the third


def test_a_correction_out_of_pure_noise_is_the_trapezoid_in_alpha_over_sigma():
    """x' = alpha' (x0 + x0_after) / 2 + sigma' epsilon, and its consequence one step on, where history is infinite."""
    grid, x = timesteps(10), images([0])
    denoise = velocity_denoiser(lambda x, t: torch.tanh(1.7 * x) - 0.2 * x, ZTSNR)
    first, second = run("unipc", [0], grid)[:2]
    alpha, sigma = (table[grid[1]].item() for table in (ZTSNR.alpha, ZTSNR.sigma))
    start, there = denoise(x, grid[0]), denoise(first.x, grid[1])
    torch.testing.assert_close(first.x, alpha * start.x0 + sigma * start.epsilon)
    corrected = alpha * (start.x0 + there.x0) / 2 + sigma * start.epsilon
    alpha_2, sigma_2 = (table[grid[2]].item() for table in (ZTSNR.alpha, ZTSNR.sigma))
    expected = sigma_2 / sigma * corrected + (alpha_2 - sigma_2 / sigma * alpha) * there.x0
    torch.testing.assert_close(second.x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_part_whose_x0_and_noise_are_known_stays_on_its_path(name: str):
    """As in inpainting, where the denoiser answers for that part whatever x it is given."""
    known, noise_of_it = images([7]), images([8])

    def denoise(x: torch.Tensor, t: int) -> Prediction:
        return Prediction(known, noise_of_it)

    grid = timesteps(12)
    states = list(SOLVERS[name](denoise, ZTSNR, images([3]), grid, lambda i: noise_of_it))
    assert torch.allclose(states[-1].x, known, rtol=0, atol=1e-4)
    for step, t in zip(states, grid[1:], strict=False):
        if name not in STOCHASTIC:
            alpha, sigma = (table[t].item() for table in (ZTSNR.alpha, ZTSNR.sigma))
            torch.testing.assert_close(step.x, alpha * known + sigma * noise_of_it, rtol=0, atol=1e-5)


def test_tcd_goes_below_the_next_timestep_and_back():
    """Variances: what is left of the noise at s, and the fresh noise, make up sigma'² at t'."""
    known, epsilon, fresh = torch.zeros(1, 1), torch.full((1, 1), 1.0), torch.full((1, 1), 1.0)
    grid = distilled(4)

    def noises(old: float, new: float) -> list[float]:
        return [
            step.x.item()
            for step in SOLVERS["tcd"](
                lambda x, t: Prediction(known, old * epsilon), ZTSNR, epsilon, grid, lambda i: new * fresh
            )
        ]

    for old, new, t in zip(noises(1, 0), noises(0, 1), grid[1:], strict=False):
        s = t * 7 // 10
        assert old == pytest.approx(float(ZTSNR.alpha[t] * ZTSNR.sigma[s] / ZTSNR.alpha[s]), rel=1e-5)
        assert old**2 + new**2 == pytest.approx(float(ZTSNR.sigma[t]) ** 2, rel=1e-5)


def test_lcm_is_x_itself_at_timestep_0():
    """The boundary condition of a consistency model: what is (almost) clean is left alone."""
    denoise = velocity_denoiser(lambda x, t: torch.full_like(x, 9.0), ZTSNR)
    *_, last = SOLVERS["lcm"](denoise, ZTSNR, images([0]), [0], lambda i: images([0], i))
    assert torch.equal(last.x, images([0]))


def test_euler_and_ddim_are_the_same_step():
    """k-diffusion's Euler step, in sigma / alpha, wherever that is finite."""
    grid = timesteps(10)[1:]
    x, trajectory = images([0]), run("euler", [0], grid)
    for step, t_next in zip(trajectory, [*grid[1:], None], strict=True):
        alpha, sigma = float(ZTSNR.alpha[step.t]), float(ZTSNR.sigma[step.t])
        s = sigma / alpha
        alpha_next = 1.0 if t_next is None else float(ZTSNR.alpha[t_next])
        s_next = 0.0 if t_next is None else float(ZTSNR.sigma[t_next]) / alpha_next
        y = x / alpha
        expected = alpha_next * (y + (y - step.x0) / s * (s_next - s))
        torch.testing.assert_close(step.x, expected, rtol=0, atol=1e-4)
        x = step.x
