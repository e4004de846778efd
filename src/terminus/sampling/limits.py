"""Names and ranges of everything that sampling can be asked for, and the errors for anything else.

No torch here: a command line is checked before networks, and what runs them, are loaded. `Settings`, `Request`, `Hires`
and their kin ask the same functions, so that Python and the command line have the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from terminus.config.errors import did_you_mean
from terminus.errors import UserError

SEEDS = 2**63
"""Seeds are 0 .. SEEDS − 1."""
SEED = "A seed is a whole number from 0 to 2^63 - 1"
MOST = 100_000
"""Images per prompt: every request is made and checked before the first is drawn."""
SOLVER_NAMES = ("euler", "euler_ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd")
"""The names in `solvers.SOLVERS`, in its order."""
SPACING_NAMES = ("trailing", "karras", "exponential", "beta")
"""The names in `grid.SPACINGS`, in its order."""
FILL_NAMES = ("surroundings", "original", "grey")
"""The names in `masks.FILLS`, in its order."""
CONTROL_KINDS = ("controlnet", "t2i", "ip")
"""The names in `controls.KINDS`, in its order."""
HIRES_STRENGTH = 0.5
"""Strength of a second pass that names none."""
_GUIDANCE = 100.0
_FACTOR = 8.0


def check_settings(
    steps: int,
    guidance: float,
    rescale: float | None,
    interval: tuple[float, float],
    solver: str,
    spacing: str,
    variation: float,
) -> None:
    """UserError for numbers that no image can be drawn by."""
    check_steps(steps)
    if not (math.isfinite(guidance) and 0 <= guidance <= _GUIDANCE):
        rule = f"Guidance is a number from 0 to {_GUIDANCE:g}; 1 leaves it out, 3 to 7 is usual"
        raise UserError(f"guidance {guidance}", rule=rule)
    if rescale is not None and not 0 <= rescale <= 1:
        raise UserError(f"rescale {rescale}", rule="Guidance rescale is a number from 0 to 1")
    low, high = interval
    if not 0 <= low < high <= 1:
        rule = "A guidance interval is two numbers, 0 <= LOW < HIGH <= 1; 1 is pure noise, 0 the finished image"
        raise UserError(f"guidance interval {low}..{high}", rule=rule)
    if not 0 <= variation <= 1:
        raise UserError(f"variation {variation}", rule="Variation is 0 (the seed's own) to 1 (another seed)")
    check_known("solver", solver, SOLVER_NAMES)
    check_known("spacing", spacing, SPACING_NAMES)


def check_steps(steps: int) -> None:
    """UserError for a number of solver steps that draws nothing."""
    if steps < 1:
        raise UserError(f"{steps} sampling steps", rule="An image needs at least one step")


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """UserError for a name that is not known, with the nearest that is."""
    if name not in known:
        raise UserError(
            f"There is no {what} `{name}`", rule=f"Known: {', '.join(known)}", fix=did_you_mean(name, known)
        )


def check_seeds(first: int, count: int) -> None:
    """UserError unless so many consecutive seeds exist."""
    if not 1 <= count <= MOST:
        raise UserError(f"count {count}", rule=f"Count is the number of images per prompt, 1 to {MOST:,}")
    if not 0 <= first <= SEEDS - count:
        raise UserError(f"seed {first}", rule=f"{SEED}, and the images of a prompt use consecutive ones")


def check_strength(strength: float) -> float:
    """UserError unless it is above 0 and at most 1."""
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength}", rule="Strength is above 0 and at most 1; 1 draws everything anew")
    return strength


def check_factor(factor: float) -> None:
    """UserError for an image that would not become larger, or too large."""
    if not (math.isfinite(factor) and 1 <= factor <= _FACTOR):
        raise UserError(f"factor {factor}", rule=f"An image is enlarged 1 to {_FACTOR:g} times along each side")


def check_hires(factor: float, strength: float) -> None:
    """UserError for a second pass that cannot be."""
    check_strength(strength)
    if not 1 < factor <= 4:
        rule = "A second pass is above 1 and at most 4 times as large"
        raise UserError(f"hires factor {factor}", rule=rule, fix="`upscale` goes further, in tiles")


def check_margins(left: int, top: int, right: int, bottom: int) -> None:
    """UserError unless something is added, and nothing taken away."""
    margins = (left, top, right, bottom)
    if min(margins) < 0 or max(margins) == 0:
        rule = "Margins are LEFT,TOP,RIGHT,BOTTOM in pixels, none negative and at least one of them above 0"
        raise UserError(f"margins {','.join(map(str, margins))}", rule=rule)


def check_repaint(fill: str | None, feather: int, padding: int | None) -> None:
    """UserError for a masked part that cannot be painted anew like this."""
    if fill is not None:
        check_known("fill", fill, FILL_NAMES)
    for name, value in (("feather", feather), ("padding", padding or 0)):
        if not 0 <= value <= 1024:
            raise UserError(f"{name} {value}", rule=f"The {name} is a number of pixels from 0 to 1024")
