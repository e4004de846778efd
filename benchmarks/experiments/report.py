"""The tables and the figure of the experiment: means over seeds with intervals, and each seed as a dot."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantiles of Student's t distribution by the number of seeds."""
COLUMNS = ("black", "white", "dark", "bright", "spread", "cmmd")


def interval(values: Sequence[float]) -> str:
    """ "0.944 ± 0.021": the mean over seeds and half of its 95 % interval; the mean alone for one seed."""
    if len(values) < 2:
        return f"{mean(values):.3f}"
    return f"{mean(values):.3f} ± {STUDENT[len(values)] * stdev(values) / sqrt(len(values)):.3f}"


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row for each arm in the order of the runs."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    lines = ["| arm | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for arm in arms:
        ours = [run for run in runs if run["arm"] == arm]
        cells = [interval([run["measured"][name] for run in ours]) for name in COLUMNS]
        lines.append(f"| {arm} | {len(ours)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bands(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: the held-out error of every arm by hundreds of timesteps, the mean over seeds."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    names = [name for name in runs[0]["validation"] if name[0].isdigit()]
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for arm in arms:
        ours = [run["validation"] for run in runs if run["arm"] == arm]
        lines.append(f"| {arm} | " + " | ".join(f"{mean(one[name] for one in ours):.3f}" for name in names) + " |")
    return "\n".join(lines)


def figure(runs: Sequence[dict[str, Any]]) -> str:
    """An SVG: for each arm, how bright the images are that were asked for on black and on white, a dot per seed."""
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    left, width, row, top = 190, 560, 34, 46
    height = top + row * len(arms) + 40

    def x(value: float) -> float:
        return left + width * min(max(value, 0.0), 1.0)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 40} {height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        f'<rect width="100%" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="22" fill="#222">Luminance of the background: asked for black (dark dots) '
        "and white (light dots)</text>",
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{top - 10}" y2="{height - 34}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick)}" y="{height - 14}" text-anchor="middle" fill="#555">{tick:g}</text>')
    for number, arm in enumerate(arms):
        y = top + row * number + row / 2
        parts.append(f'<text x="{left - 12}" y="{y + 5}" text-anchor="end" fill="#222">{arm}</text>')
        for run in runs:
            if run["arm"] == arm:
                for kind, fill in (("black", "#222"), ("white", "#fff")):
                    parts.append(
                        f'<circle cx="{x(run["measured"][kind]):.1f}" cy="{y}" r="5" fill="{fill}" stroke="#222"/>'
                    )
    return "\n".join([*parts, "</svg>\n"])
