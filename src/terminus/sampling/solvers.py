"""The solvers: how a latent is moved from pure noise to a picture, given a denoiser.

Each is a generator over the steps of a grid, written in (alpha, sigma). The usual coordinate, sigma / alpha,
is infinite at the first step of a zero-terminal-SNR schedule; here only the ratio

    decay = (alpha sigma') / (alpha' sigma) = exp(−h),   h = λ' − λ,   λ = log(alpha / sigma)

of a step from (alpha, sigma) to (alpha', sigma') is needed. It is 0 out of pure noise, 0 into the finished
picture, and below 1 between. Every update is the DDIM step alpha' x0 + sigma' epsilon, changed in up to
two ways:

    fresh noise      epsilon becomes decay epsilon + sqrt(1 − decay²) noise
    second order     x0 moves on by h / (2 h_before) (x0 − x0_before)

docs/math.md derives them from their papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from terminus.diffusion.schedule import NoiseSchedule

from .denoiser import Denoiser

Noise = Callable[[int], Tensor]
"""Step index → standard normal noise of x's shape: seeded per image, whatever the batch."""


@dataclass(frozen=True, eq=False)
class Step:
    """The state after step `index`: `x` the latent, `x0` what the model saw in the one before, at `t`."""

    index: int
    t: int
    x: Float[Tensor, "batch *shape"]
    x0: Float[Tensor, "batch *shape"]


class Solver(Protocol):
    """`x` is the latent at grid[0], standard normal if that is the end of a zero-terminal-SNR schedule.

    The last step lands on (alpha, sigma) = (1, 0), so its `x` is the picture. States are float32.
    """

    def __call__(
        self, denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise
    ) -> Iterator[Step]: ...


def ddim(denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise) -> Iterator[Step]:
    """Song et al. 2010.02502, eq. 12 with no noise.

    Also the Euler solver of Karras et al. 2206.00364 (algorithm 1 without churn and its correction): in
    y = x / alpha and s = sigma / alpha, y' = y + (s' − s) epsilon = x0 + s' epsilon. Times alpha', that is
    this step, at s = infinity too.
    """
    x = x.float()
    for hop in _hops(schedule, grid):
        model = denoise(x, hop.t)
        x = hop.alpha * model.x0 + hop.sigma * model.epsilon
        yield Step(hop.index, hop.t, x, model.x0)


def euler_ancestral(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise
) -> Iterator[Step]:
    """Ho et al. 2006.11239, algorithm 2, on a coarser grid (Song et al. 2010.02502, eq. 12 with eta = 1).

    k-diffusion writes it as an Euler step to s_down = s'² / s followed by noise s_up = s' sqrt(1 − s'²/s²);
    with s' / s = decay these are s' decay and s' sqrt(1 − decay²).
    """
    x = x.float()
    for hop in _hops(schedule, grid):
        model = denoise(x, hop.t)
        x = hop.alpha * model.x0 + hop.sigma * hop.decay * model.epsilon
        if hop.sigma > 0:
            x = x + hop.sigma * math.sqrt(1 - hop.decay**2) * noise(hop.index)
        yield Step(hop.index, hop.t, x, model.x0)


def dpmpp_2m(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise
) -> Iterator[Step]:
    """DPM-Solver++(2M): Lu et al. 2211.01095, algorithm 2.

    x' = (sigma' / sigma) x − alpha' (exp(−h) − 1) D,  D = x0 + h / (2 h_before) (x0 − x0_before)
    """
    x, before = x.float(), None
    for hop in _hops(schedule, grid):
        model = denoise(x, hop.t)
        x = hop.alpha * model.x0 + hop.sigma * model.epsilon
        if before is not None and hop.slope > 0:
            x = x + hop.alpha * (1 - hop.decay) * hop.slope * (model.x0 - before)
        before = model.x0
        yield Step(hop.index, hop.t, x, model.x0)


def dpmpp_2m_sde(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M): Lu et al. 2211.01095, section 5 (the midpoint form).

    x' = (sigma' / sigma) exp(−h) x + alpha' (1 − exp(−2h)) D + sigma' sqrt(1 − exp(−2h)) noise, D as in 2M
    """
    x, before = x.float(), None
    for hop in _hops(schedule, grid):
        model = denoise(x, hop.t)
        x = hop.alpha * model.x0 + hop.sigma * hop.decay * model.epsilon
        if hop.sigma > 0:
            x = x + hop.sigma * math.sqrt(1 - hop.decay**2) * noise(hop.index)
        if before is not None and hop.slope > 0:
            x = x + hop.alpha * (1 - hop.decay**2) * hop.slope * (model.x0 - before)
        before = model.x0
        yield Step(hop.index, hop.t, x, model.x0)


SOLVERS: Mapping[str, Solver] = {
    "euler": ddim,
    "euler_ancestral": euler_ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
}
"""By the names that users know; Euler and DDIM are the same step."""


@dataclass(frozen=True)
class _Hop:
    """One step of the grid, from timestep `t` to (alpha, sigma)."""

    index: int
    t: int
    alpha: float
    sigma: float
    decay: float
    """exp(−h), in 0 .. 1."""
    slope: float
    """h / (2 h_before); 0 where no earlier step has a finite λ to extrapolate from, and at the end."""


def _hops(schedule: NoiseSchedule, grid: Sequence[int]) -> Iterator[_Hop]:
    alphas, sigmas = [*schedule.alpha[list(grid)].tolist(), 1.0], [*schedule.sigma[list(grid)].tolist(), 0.0]
    h_before = math.inf
    for index, t in enumerate(grid):
        decay = alphas[index] * sigmas[index + 1] / (alphas[index + 1] * sigmas[index])
        # h is infinite out of pure noise and into the picture. After the first kind the correction vanishes
        # with 1 / h_before; before the second it would be infinite, and the papers drop it.
        h = -math.log(decay) if decay > 0 else math.inf
        slope = h / (2 * h_before) if h < math.inf else 0.0
        yield _Hop(index, t, alphas[index + 1], sigmas[index + 1], decay, slope)
        h_before = h
