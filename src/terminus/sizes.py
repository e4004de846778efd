"""The sizes and crops that every room speaks of. No torch here: arguments are checked before it is imported."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """(height, width) in pixels."""

    height: int
    width: int


class Crop(NamedTuple):
    """(top, left) of the crop in pixels of the resized image."""

    top: int
    left: int
