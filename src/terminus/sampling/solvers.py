"""The solvers: how a latent is moved from pure noise to an image, given a denoiser.

Each is a generator over the steps of a grid, written in (alpha, sigma). The usual coordinate, sigma / alpha,
is infinite at the first step of a zero-terminal-SNR schedule; here only the ratio

    decay = (alpha sigma') / (alpha' sigma) = exp(−h),   h = λ' − λ,   λ = log(alpha / sigma)

of a step from (alpha, sigma) to (alpha', sigma') is needed. It is 0 out of pure noise, 0 into the finished
image, and below 1 between. Every update is the DDIM step alpha' x0 + sigma' epsilon, changed in up to
three ways:

    fresh noise      epsilon becomes decay epsilon + sqrt(1 − decay²) noise
    second order     x0 moves on by h / (2 h_before) (x0 − x0_before)
    correction       the step is done again with the x0 that the model sees where it led

`lcm` and `tcd` are for networks distilled to few steps, on the timesteps of `grid.distilled`.
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

    The last step lands on (alpha, sigma) = (1, 0), so its `x` is the image. States are float32.
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
        # New noise makes up for what the old has lost: together their variance is hop.sigma squared.
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
        # Second order: D instead of x0.
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


def unipc(denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise) -> Iterator[Step]:
    """UniPC-2 with B(h) = e^h − 1 on x0: Zhao et al. 2302.04867, section 3.

    The predictor is the step of `dpmpp_2m`. When the model has been asked where it led, the corrector does that
    step again with what it said there: no further call of the network, one more order of accuracy. What the
    correction moves x by shrinks with the noise, by sigma' / sigma, over the next step.
    """
    x, before, correction = x.float(), None, None
    for hop in _hops(schedule, grid):
        model = denoise(x, hop.t)
        x = hop.alpha * model.x0 + hop.sigma * model.epsilon
        # UniC: the last hop, with what the model says of where it led.
        if correction is not None and hop.sigma > 0:
            x = x + correction(model.x0, hop.ratio)
        change = None if before is None else model.x0 - before
        correction = _corrector(hop, model.x0, change)
        # UniP: the hop of 2M.
        if change is not None and hop.slope > 0:
            x = x + hop.alpha * (1 - hop.decay) * hop.slope * change
        before = model.x0
        yield Step(hop.index, hop.t, x, model.x0)


def lcm(denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise) -> Iterator[Step]:
    """Latent consistency models: Luo et al. 2310.04378. To the image in one step, then noised anew.

    f = c_skip x + c_out x0 is x itself at t = 0; the scalings are those that such models are distilled with
    (sigma_data 0.5, t counted ten times).
    """
    x = x.float()
    for hop in _hops(schedule, grid):
        model = denoise(x, hop.t)
        c_skip = 0.5**2 / ((10 * hop.t) ** 2 + 0.5**2)
        x0 = c_skip * x + math.sqrt(1 - c_skip) * model.x0
        x = hop.alpha * x0 + hop.sigma * noise(hop.index) if hop.sigma > 0 else x0
        yield Step(hop.index, hop.t, x, x0)


def tcd(denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, grid: Sequence[int], noise: Noise) -> Iterator[Step]:
    """Trajectory consistency distillation: Zheng et al. 2402.19159, strategic stochastic sampling.

    Down past the next timestep t' to s = (1 − gamma) t', then back up to t' with fresh noise; gamma = 0.3.
    """
    x = x.float()
    for hop, t_next in zip(_hops(schedule, grid), [*grid[1:], None], strict=True):
        model = denoise(x, hop.t)
        if t_next is None:
            x = model.x0
        else:
            # 0.7 t' may come out just below a whole number.
            s = math.floor((1 - _GAMMA) * t_next + 1e-9)
            keep = hop.alpha / float(schedule.alpha[s])
            x = hop.alpha * model.x0 + keep * float(schedule.sigma[s]) * model.epsilon
            # What is missing of the variance at t'; 1 - keep² where alpha² + sigma² = 1.
            missing = hop.sigma**2 - (keep * float(schedule.sigma[s])) ** 2
            x = x + math.sqrt(missing) * noise(hop.index)
        yield Step(hop.index, hop.t, x, model.x0)


# A name here stands in `limits.SOLVER_NAMES` too, where commands check it without torch.
SOLVERS: Mapping[str, Solver] = {
    "euler": ddim,
    "euler_ancestral": euler_ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "lcm": lcm,
    "tcd": tcd,
}
"""By the names that users know; Euler and DDIM are the same step."""

DISTILLED = frozenset({"lcm", "tcd"})
"""Solvers for networks distilled to few steps, which know only the timesteps that they were distilled on."""

_GAMMA = 0.3
"""TCD's gamma as its authors recommend it: 0 draws no noise, 1 is all of it, as in LCM."""


@dataclass(frozen=True)
class _Hop:
    """One step of the grid, from timestep `t` to (alpha, sigma)."""

    index: int
    t: int
    alpha: float
    sigma: float
    ratio: float
    """sigma' / sigma."""
    decay: float
    """exp(−h), in 0 .. 1."""
    h: float
    """λ' − λ; infinite out of pure noise and into the image."""
    slope: float
    """h / (2 h_before); 0 where no earlier step has a finite λ to extrapolate from, and at the end."""


def _hops(schedule: NoiseSchedule, grid: Sequence[int]) -> Iterator[_Hop]:
    # The points of the grid, and the image at their end: (1, 0).
    alphas, sigmas = [*schedule.alpha[list(grid)].tolist(), 1.0], [*schedule.sigma[list(grid)].tolist(), 0.0]
    h_before = math.inf
    for index, t in enumerate(grid):
        decay = alphas[index] * sigmas[index + 1] / (alphas[index + 1] * sigmas[index])
        # h is infinite out of pure noise and into the image. After the first kind the correction vanishes
        # with 1 / h_before; before the second it would be infinite, and the papers drop it.
        h = -math.log(decay) if decay > 0 else math.inf
        slope = h / (2 * h_before) if h < math.inf else 0.0
        yield _Hop(index, t, alphas[index + 1], sigmas[index + 1], sigmas[index + 1] / sigmas[index], decay, h, slope)
        h_before = h


def _corrector(hop: _Hop, x0: Tensor, change: Tensor | None) -> Callable[[Tensor, float], Tensor]:
    """UniC for one hop: the x0 that the model sees where it led → how far that is from where it should have led.

    Times a ratio, which is that of the next hop. `change` is x0 less the one before. In the paper's symbols, with
    r = −h_before / h: rho_1 + rho_2 = b_1 and r rho_1 + rho_2 = b_2, where b_1 and b_2 are the first two moments of
    the hop's weight e^λ, over its length. A first hop has no history, and the paper's a_1 = 1/2: the trapezoid in
    alpha / sigma, which is finite out of pure noise too.
    """
    scale = hop.alpha * (1 - hop.decay)
    # A first hop: the trapezoid.
    if change is None:
        return lambda after, ratio: ratio * scale / 2 * (after - x0)
    h, gap = hop.h, 1 - hop.decay
    b_1, b_2 = 1 / gap - 1 / h, (1 - 2 / h + 2 * gap / h**2) / gap
    # Of slope = −1 / (2 r), which is 0 where the hop before was infinite and so has nothing to say.
    rho_1 = (b_1 - b_2) * 2 * hop.slope / (1 + 2 * hop.slope)
    again, new = scale * (2 * rho_1 - 1) * hop.slope, scale * (b_1 - rho_1)  # −1: what the predictor has done already
    return lambda after, ratio: ratio * again * change + ratio * new * (after - x0)
