"""Which timesteps a sampler visits.

The first must be T−1, where a zero-terminal-SNR model was taught that there is no image yet: a grid that
starts lower hands it noise where it expects a trace of the image, and the image's mean comes out grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from terminus.config.errors import did_you_mean
from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.sampling.limits import check_strength
from terminus.sampling.solvers import DISTILLED

Spacing = Callable[[int, NoiseSchedule], list[int]]
"""(steps, schedule) → as many timesteps, T−1 first, strictly falling. UserError where that cannot be had."""

_DISTILLED_STEPS = 50
"""LCM and TCD models are distilled on every 20th of 1000 timesteps."""
_RHO = 7.0
_BETA = 0.6
_STAND_IN = 2.0**-24
"""ᾱ that other programs put for the 0 at the end of the schedule; sigma / alpha is then 4096."""
_SDXL_END = 14.6147
"""Sigma / alpha where SDXL's own schedule ends."""


def for_solver(solver: str, spacing: str, steps: int, schedule: NoiseSchedule) -> list[int]:
    """The timesteps that `solver` visits in `steps` steps: its own if it has such, else those of `spacing`.

    UserError for a spacing that does not exist or does not suit the solver or the schedule, and for a number of
    steps that cannot be had.
    """
    if spacing not in SPACINGS:
        near = did_you_mean(spacing, SPACINGS)
        raise UserError(f"There is no spacing `{spacing}`", rule=f"Spacings: {', '.join(SPACINGS)}", fix=near)
    if solver not in DISTILLED:
        return SPACINGS[spacing](steps, schedule)
    if spacing != "trailing":
        raise UserError(
            f"Solver `{solver}` with spacing `{spacing}`",
            rule="A distilled model knows only the timesteps that it was distilled on",
            fix="Leave the spacing at `trailing`, or choose another solver",
        )
    return distilled(steps, schedule.timesteps)


def timesteps(steps: int, T: int = 1000) -> list[int]:
    """`steps` timesteps from T−1 downwards, evenly spaced: round(T − i T / steps) − 1.

    "Trailing" of Lin et al. 2305.08891, table 2, computed in one division, so that no rounding drift adds a
    stray step at −1 (which a table lookup would read as pure noise).
    """
    if not 1 <= steps <= T:
        raise UserError(f"{steps} sampling steps", rule=f"The model has {T} timesteps.", fix=f"Use 1 to {T} steps.")
    return [round(T * (steps - i) / steps) - 1 for i in range(steps)]


def distilled(steps: int, T: int = 1000) -> list[int]:
    """`steps` of the 50 timesteps that LCM and TCD models are distilled on (Luo et al. 2310.04378, section 4.3).

    Evenly spaced among those, T−1 first; at T = 1000 the 50 are 19, 39 .. 999.
    """
    known = timesteps(min(_DISTILLED_STEPS, T), T)
    if not 1 <= steps <= len(known):
        raise UserError(
            f"{steps} sampling steps with a distilled model",
            rule=f"It was distilled on {len(known)} timesteps",
            fix=f"Use 1 to {len(known)} steps; 4 to 8 are usual",
        )
    return [known[i * len(known) // steps] for i in range(steps)]


def karras(steps: int, schedule: NoiseSchedule) -> list[int]:
    """Even in the seventh root of sigma / alpha: Karras et al. 2206.00364, eq. 5, at the nearest timesteps."""
    _refuse_zero_terminal("karras", karras, steps, schedule)
    largest, smallest = (ratio ** (1 / _RHO) for ratio in _ends(schedule))
    return _nearest([(largest + f * (smallest - largest)) ** _RHO for f in _fractions(steps, schedule)], schedule)


def exponential(steps: int, schedule: NoiseSchedule) -> list[int]:
    """Even in log(sigma / alpha), at the nearest timesteps."""
    _refuse_zero_terminal("exponential", exponential, steps, schedule)
    largest, smallest = _ends(schedule)
    return _nearest([largest ** (1 - f) * smallest**f for f in _fractions(steps, schedule)], schedule)


def beta(steps: int, schedule: NoiseSchedule) -> list[int]:
    """Timesteps at even quantiles of Beta(0.6, 0.6), denser at both ends: Lee et al. 2407.12173.

    Beta(1, 1) would be `timesteps`. The quantile needs no inverse: timestep k is the nearest to the quantile of u
    where u lies between the distribution's values half a timestep below k and half a timestep above.
    """
    _refuse_zero_terminal("beta", beta, steps, schedule)
    T = schedule.timesteps
    halves = (torch.arange(T - 1, dtype=torch.float64) + 0.5) / (T - 1)
    quantiles = 1 - torch.arange(len(timesteps(steps, T)), dtype=torch.float64) / steps
    return _falling(torch.searchsorted(beta_cdf(halves, _BETA), quantiles).tolist())


SPACINGS: Mapping[str, Spacing] = {
    "trailing": lambda steps, schedule: timesteps(steps, schedule.timesteps),
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
}
"""By the names that users know. All but the first are refused on a zero-terminal-SNR schedule."""


def tail(grid: Sequence[int], strength: float) -> list[int]:
    """The end of `grid` that redraws an image by `strength`, in 0 (excluded) to 1 (all of it).

    The number of steps kept is the nearest to len(grid) × strength, at least one.
    """
    return list(grid[len(grid) - max(1, round(len(grid) * check_strength(strength))) :])


def beta_cdf(x: Float64[Tensor, "count"], shape: float) -> Float64[Tensor, "count"]:
    """P(X ≤ x) for X of Beta(shape, shape), x in 0 .. 1.

    The power series of the incomplete beta function (DLMF 8.17.7) up to 1/2, where each term is at most about half
    the one before; beyond, the symmetry of the density.
    """
    low = torch.minimum(x, 1 - x)
    # Terms (1 - shape)_n x^n / n!, each divided by shape + n.
    term, total = torch.ones_like(low), torch.full_like(low, 1 / shape)
    for n in range(1, 60):
        term = term * low * (n - shape) / n
        total = total + term / (shape + n)
    # B(shape, shape), the integral over all of 0 .. 1.
    whole = math.exp(2 * math.lgamma(shape) - math.lgamma(2 * shape))
    below = low**shape * total / whole
    return torch.where(x <= 0.5, below, 1 - below)


def _refuse_zero_terminal(name: str, spacing: Spacing, steps: int, schedule: NoiseSchedule) -> None:
    """UserError on a zero-terminal-SNR schedule, with what the spacing would do on other programs' stand-in for it."""
    if not schedule.is_zero_terminal:
        return
    # Counted on the stand-in, for the error to say what it would come to.
    table = schedule.alphas_cumprod.clone()
    table[-1] = _STAND_IN
    finite = NoiseSchedule(table)
    ratio = finite.sigma / finite.alpha
    crowd, even = (int((ratio[grid(steps, finite)] > _SDXL_END).sum()) for grid in (spacing, SPACINGS["trailing"]))
    raise UserError(
        f"Spacing `{name}` with a zero-terminal-SNR model",
        rule="Such ramps are made for schedules that end in a trace of the image; here sigma / alpha is infinite at "
        f"the end. With 4096 in its place, as elsewhere, {crowd} of {steps} steps are spent above sigma 14.6, where "
        f"SDXL's own schedule ends and hardly any image is left (trailing: {even})",
        fix="Use `trailing`",
    )


def _ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """The largest and the smallest sigma / alpha."""
    ratio = schedule.sigma / schedule.alpha
    return float(ratio[-1]), float(ratio[0])


def _fractions(steps: int, schedule: NoiseSchedule) -> list[float]:
    """`steps` numbers from 0 to 1, evenly spaced; UserError for a number of steps that cannot be had."""
    return [i / max(1, steps - 1) for i in range(len(timesteps(steps, schedule.timesteps)))]


def _nearest(ratios: Sequence[float], schedule: NoiseSchedule) -> list[int]:
    """The timesteps nearest to these falling sigma / alpha, in the logarithm."""
    table = (schedule.sigma / schedule.alpha).log()
    wanted = torch.tensor(ratios, dtype=torch.float64).log()
    return _falling((table[None, :] - wanted[:, None]).abs().argmin(dim=1).tolist())


def _falling(grid: Sequence[int]) -> list[int]:
    """The same, where those that coincide move down to the next free timestep, or up where none is left below."""
    result: list[int] = []
    for i, t in enumerate(grid):
        # Below the one before, and high enough for those that follow.
        highest = result[-1] - 1 if result else t
        result.append(max(min(t, highest), len(grid) - 1 - i))
    return result
