"""The sizes that a model draws, known without loading it: what a page offers, and what its fields allow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from terminus.sampling.shapes import ASPECTS

_SDXL = 32
"""Pixels: the VAE halves three times and the UNet twice."""
_SIDES = 4
"""Sides from a quarter of the model's own to four times it, as in `sampling.settings`."""


def folder_size_multiple(path: Path | None) -> int:
    """The pixels that sides are multiples of: what VAE and UNet of a folder halve to; a single file is SDXL's."""
    if path is None or not path.is_dir():
        return _SDXL
    levels = [_levels(path / network / "config.json") for network in ("vae", "unet")]
    return _SDXL if None in levels else 2 ** sum(level - 1 for level in levels if level is not None)


def drawable(path: Path | None, native: int, rescaled: object) -> dict[str, Any]:
    """Shapes in pixels, the limits of a side, and the guidance rescale that is the model's own."""
    multiple = folder_size_multiple(path)
    low, high = max(multiple, native // _SIDES), native * _SIDES
    grid = multiple * max(1, native // 16 // multiple)

    def near(side: float) -> int:
        return min(max(round(side / grid) * grid, low), high)

    shapes: list[dict[str, Any]] = []
    for name, aspect in ASPECTS.items():
        ratio = math.sqrt(aspect.width / aspect.height)
        shapes.append({"name": name, "width": near(native * ratio), "height": near(native / ratio)})
    sizes = {"multiple": multiple, "smallest": low, "largest": high}
    return {"shapes": shapes, "sizes": sizes, "rescale": 0.7 if rescaled else 0.0}


def _levels(config: Path) -> int | None:
    try:
        channels = json.loads(config.read_text(encoding="utf-8")).get("block_out_channels")
    except (OSError, ValueError, AttributeError):
        return None
    return len(channels) if isinstance(channels, list) and 1 <= len(channels) <= 8 else None
