"""Sizes, shapes and intervals as people write them, made exact. No torch here: see `arguments`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from terminus.errors import UserError
from terminus.sizes import Size

_LONGEST = 16
"""Times: models draw sides from a quarter of their own to four times it (`settings`)."""


class Aspect(NamedTuple):
    """A shape without a size: the image has about as many pixels as the model learnt on."""

    width: int
    height: int


ASPECTS: Mapping[str, Aspect] = {
    "square": Aspect(1, 1),
    "portrait": Aspect(3, 4),
    "landscape": Aspect(4, 3),
    "tall": Aspect(9, 16),
    "wide": Aspect(16, 9),
}


def parse_size(text: str) -> Size | Aspect:
    """ "WIDTHxHEIGHT" in pixels, as people write it (sizes inside are (height, width)); "16:9"; or a shape's name."""
    if text in ASPECTS:
        return ASPECTS[text]
    match = re.fullmatch(r"([0-9]{1,9})([x:])([0-9]{1,9})", text.lower())
    if match and match[2] == "x":
        return Size(height=int(match[3]), width=int(match[1]))
    if match:
        return _shape(Aspect(width=int(match[1]), height=int(match[3])))
    names = ", ".join(ASPECTS)
    rule = f"A size is WIDTHxHEIGHT in pixels, a shape WIDTH:HEIGHT, or one of {names}"
    raise UserError(f"size {text!r}", rule=rule, fix="For example 1216x832")


def _shape(shape: Aspect) -> Aspect:
    """The shape; UserError for one so long that the sides which models draw would make another shape."""
    if max(shape) > _LONGEST * min(shape) > 0:
        rule = f"The longer side of a shape is at most {_LONGEST} times the shorter"
        raise UserError(f"shape {shape.width}:{shape.height}", rule=rule, fix="For example 16:9")
    return shape


def parse_pixels(text: str) -> Size:
    """ "WIDTHxHEIGHT" alone, where no model says how large a shape is."""
    size = parse_size(text)
    if isinstance(size, Aspect):
        raise UserError(f"size {text!r}", rule="Here a size is WIDTHxHEIGHT in pixels", fix="For example 1216x832")
    return size


def parse_interval(text: str) -> tuple[float, float]:
    """ "LOW:HIGH", two numbers from 0 to 1."""
    match = re.fullmatch(r"([0-9.]{1,8}):([0-9.]{1,8})", text)
    try:
        return (float(match[1]), float(match[2])) if match else _no_interval(text)
    except ValueError:
        return _no_interval(text)


def _no_interval(text: str) -> NoReturn:
    raise UserError(f"interval {text!r}", rule="It is LOW:HIGH, two numbers from 0 to 1", fix="For example 0.2:0.8")
