"""Words about images that several rooms share, and that need no image library."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[int, int, int]
"""sRGB, each 0..255."""


def parse_color(text: str) -> Color:
    """ "#ff000a" is (255, 0, 10)."""
    value = int(text[1:], 16)
    return value >> 16, (value >> 8) & 255, value & 255


@dataclass(frozen=True)
class Dropped:
    """Why an image is not used: a reason out of a short list, and the particulars of this image."""

    reason: str
    detail: str = ""
