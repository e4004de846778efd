"""What every solver owes its callers, whatever the network."""

import pytest
import torch

from terminus.diffusion.schedule import NoiseSchedule
from terminus.sampling.denoiser import velocity_denoiser
from terminus.sampling.grid import from_strength, timesteps
from terminus.sampling.solvers import SOLVERS, Step

ZTSNR = NoiseSchedule.scaled_linear().with_zero_terminal_snr()
STOCHASTIC = ["euler_ancestral", "dpmpp_2m_sde"]


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
def test_steps_follow_the_grid_and_end_on_the_picture(name: str, steps: int):
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
    assert asked == (list(range(5)) if name in STOCHASTIC else [])  # the last step lands on the picture


@pytest.mark.parametrize("name", SOLVERS)
def test_an_exact_network_returns_the_image_it_knows(name: str):
    """If the network always sees the true x0, every solver must return it, from any start on the grid."""
    known = images([7])

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = ZTSNR.at(t, x.ndim)
        return (alpha * x - known) / sigma

    for strength in (0.2, 1.0):
        grid = from_strength(20, strength)
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
            # t 700 → 300; the last hop of a grid goes to the picture, so look at the state before it.
            grid = [round(700 - 400 * i / count) for i in range(count + 1)]
            return run(name, [0], grid, start=images([0]))[-2].x.double()

        return float((end(steps) - end(400)).abs().mean())

    assert 1.6 < error("ddim", 10) / error("ddim", 20) < 2.6
    assert error("dpmpp_2m", 10) / error("dpmpp_2m", 20) > 2.8
    assert error("dpmpp_2m", 20) < 0.3 * error("ddim", 20)


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
