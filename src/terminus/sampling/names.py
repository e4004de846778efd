"""What other programs call our solvers and timestep spacings. No torch here: servers and readers of metadata ask."""

from __future__ import annotations

import re

SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
"""Solvers by the names that others know."""
SPACINGS = {"trailing": "SGM Uniform", "karras": "Karras", "exponential": "Exponential", "beta": "Beta"}
"""Timestep spacings by the names that others know."""
_USUAL = ("automatic", "normal", "simple", "uniform")
"""A1111's names for leaving the spacing to the model."""


def solver_of(name: str) -> str | None:
    """Our solver of A1111's or ComfyUI's name; None where there is none."""
    plain = _plain(name)
    for suffix in ("karras", "exponential", "sgmuniform", "beta"):
        plain = plain.removesuffix(suffix)
    return (
        {_plain(theirs): ours for ours, theirs in SAMPLERS.items()} | {_plain(ours): ours for ours in SAMPLERS}
    ).get(plain)


def spacing_of(name: str) -> str | None:
    """Our spacing of A1111's name; None where there is none."""
    plain = _plain(name)
    if plain in _USUAL:
        return "trailing"
    return {_plain(theirs): ours for ours, theirs in SPACINGS.items()}.get(plain, plain if plain in SPACINGS else None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
