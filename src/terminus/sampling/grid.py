"""Which timesteps a sampler visits.

The first must be T−1, where a zero-terminal-SNR model was taught that there is no image yet: a grid that
starts lower hands it noise where it expects a trace of the picture, and the picture's mean comes out grey.
"""

from __future__ import annotations

from terminus.errors import UserError


def timesteps(steps: int, T: int = 1000) -> list[int]:
    """`steps` timesteps from T−1 downwards, evenly spaced: round(T − i T / steps) − 1.

    "Trailing" of Lin et al. 2305.08891, table 2, computed in one division, so that no rounding drift adds a
    stray step at −1 (which a table lookup would read as pure noise).
    """
    if not 1 <= steps <= T:
        raise UserError(f"{steps} sampling steps", rule=f"The model has {T} timesteps.", fix=f"Use 1 to {T} steps.")
    return [round(T * (steps - i) / steps) - 1 for i in range(steps)]


def from_strength(steps: int, strength: float, T: int = 1000) -> list[int]:
    """The end of `timesteps(steps)` that redraws an image by `strength`, in 0 (excluded) to 1 (all of it).

    The number of steps kept is the nearest to steps × strength, at least one.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength}", rule="Strength is above 0 and at most 1.", fix="1 ignores the image.")
    kept = max(1, round(steps * strength))
    return timesteps(steps, T)[steps - kept :]
