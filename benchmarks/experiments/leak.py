"""How much of the leak a network uses: the same arm trained on schedules that leave more and more of the mean.

The mean m of N latents has a variance s² over images (0.32 on the drawings, of nano's scaled latents, averaged over
channels). The last input shows it as alpha_T m + sigma_T ε / √N, so the share of its variance that stays unknown is

    1 / (1 + N SNR_T s²)

(the posterior variance of a Gaussian mean). A network that takes the brightness from there, and is then given pure
noise, has that share left for the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any

VARIANCE = 0.32
"""s² of the experiment's 4,096 training latents: 0.56, 0.19, 0.35, 0.17 by channel."""
LATENTS = 16 * 16
_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 44, 560, 300
_FIRST, _LAST = -0.3, 2.3
"""Decades of N SNR_T that are shown."""


def unknown(leak: float) -> float:
    """The share of the mean's variance, 0..1, that the last input leaves open at N SNR_T = `leak`."""
    return 1 / (1 + leak * VARIANCE)


def leak_figure(runs: Sequence[dict[str, Any]], leaks: dict[str, float]) -> str:
    """An SVG: luminance asked for white minus that asked for black, a dot per run of the arms in `leaks`
    (name to N SNR_T), and the closed form as a line."""

    def x(leak: float) -> float:
        return _LEFT + _WIDTH * (log10(leak) - _FIRST) / (_LAST - _FIRST)

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - value)

    bottom = y(0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 30} {_TOP + _HEIGHT + 60}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="22" fill="#222">Background asked for white minus black (dots); '
        "share of the mean that x_T leaves open (line)</text>",
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(tick)}" y2="{y(tick)}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 10}" y="{y(tick) + 5}" text-anchor="end" fill="#555">{tick:g}</text>')
    for leak in leaks.values():
        parts.append(f'<text x="{x(leak):.1f}" y="{bottom + 22}" text-anchor="middle" fill="#555">{leak:.2g}</text>')
    parts.append(
        f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 46}" text-anchor="middle" fill="#222">'
        "N SNR_T, the signal-to-noise ratio of the latents' mean in the last input</text>"
    )
    steps = [10 ** (_FIRST + (_LAST - _FIRST) * step / 100) for step in range(101)]
    line = " ".join(f"{x(leak):.1f},{y(unknown(leak)):.1f}" for leak in steps)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#888" stroke-width="2"/>')
    for run in runs:
        if run["arm"] in leaks:
            contrast = run["measured"]["white"] - run["measured"]["black"]
            parts.append(f'<circle cx="{x(leaks[run["arm"]]):.1f}" cy="{y(contrast):.1f}" r="5" fill="#222"/>')
    return "\n".join([*parts, "</svg>\n"])
