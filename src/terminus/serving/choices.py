"""What can be chosen, with a sentence on each, for pages and clients."""

from __future__ import annotations

from typing import Any

from terminus.sampling.limits import FILL_NAMES, HIRES_STRENGTH, SOLVER_NAMES, SPACING_NAMES
from terminus.sampling.shapes import ASPECTS
from terminus.serving.limits import ServeLimits

SOLVERS = {
    "euler": ("Euler", "The plainest: one step along the slope. Reliable, needs 25 steps or more."),
    "euler_ancestral": ("Euler a", "Adds fresh noise at each step: lively, and different with every number of steps."),
    "ddim": ("DDIM", "Deterministic and smooth; the field's reference since 2021."),
    "dpmpp_2m": ("DPM++ 2M", "Remembers the last step: sharp images in 20 to 30 steps. The default."),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", "The same with fresh noise: fine texture, best from 30 steps on."),
    "unipc": ("UniPC", "Predicts and corrects: good images in as few as 10 to 15 steps."),
    "lcm": ("LCM", "For distilled models alone: 4 to 8 steps, guidance near 1."),
    "tcd": ("TCD", "For distilled models alone: as LCM, with more detail."),
}
"""Title and sentence, by name."""
SPACINGS = {
    "trailing": ("Trailing", "Begins at the very last timestep, as zero-terminal-SNR models need it."),
    "karras": ("Karras", "More steps where the noise is low; refused on zero-terminal-SNR models."),
    "exponential": ("Exponential", "Equal ratios of noise; refused on zero-terminal-SNR models."),
    "beta": ("Beta", "More steps at both ends; refused on zero-terminal-SNR models."),
}
FILLS = {
    "surroundings": ("Surroundings", "Their colours, continued under the mask: nothing hidden has an influence."),
    "original": ("Original", "What was there; for a strength below 1."),
    "grey": ("Grey", "Middle grey."),
}
TASKS = ("text", "image", "inpaint", "outpaint", "upscale")


def offered_choices(limits: ServeLimits) -> dict[str, Any]:
    """The answer of `/api/v1/options`."""
    return {
        "solvers": _titled(SOLVERS, SOLVER_NAMES),
        "spacings": _titled(SPACINGS, SPACING_NAMES),
        "fills": _titled(FILLS, FILL_NAMES),
        "shapes": [{"name": name, "width": shape.width, "height": shape.height} for name, shape in ASPECTS.items()],
        "tasks": list(TASKS),
        "defaults": {
            # Those of the command line, so that the same request draws the same image by any way.
            "steps": 28, "guidance": 4.0, "rescale": None, "interval": [0.0, 1.0], "solver": "dpmpp_2m",
            "spacing": "trailing", "strength": 0.6, "inpaint_strength": 1.0, "factor": 2.0, "feather": 0,
            "padding": 32, "hires": {"factor": 1.5, "strength": HIRES_STRENGTH}, "variation": 0.0, "count": 1,
        },
        "limits": limits.public(),
    }  # fmt: skip


def _titled(table: dict[str, tuple[str, str]], names: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"name": name, "title": table[name][0], "sentence": table[name][1]} for name in names]
