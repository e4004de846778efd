"""Words about images that several rooms share, and that need no image library."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[int, int, int]
"""sRGB, each 0..255."""


@dataclass(frozen=True)
class Dropped:
    """Why an image is not used: a reason out of a short list, and the particulars of this image."""

    reason: str
    detail: str = ""
