"""What users write, made exact: sizes, shapes, intervals, and one request per picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral
from typing import NoReturn, SupportsIndex

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.sampling import prompts
from terminus.sampling.settings import ASPECTS, SEEDS, Aspect, Request, Settings

MOST = 100_000
"""Pictures per prompt: every request is made and checked before the first is drawn."""
_LONGEST = 16
"""Times: models draw sides from a quarter of their own to four times it (`settings`)."""
_SEED = "A seed is a whole number from 0 to 2^63 - 1"


def requests_for(
    prompt: str, negative: str, seed: SupportsIndex | Sequence[SupportsIndex], count: int, settings: Settings
) -> list[Request]:
    """One per picture, with wildcards chosen by the seed; a variation chooses like another seed."""
    numbered = list(enumerate(_seeds(seed, count)))
    if settings.variation and not isinstance(seed, Sequence):
        numbered = [(number, numbered[0][1]) for number, _ in numbered]
    # Without a brace there is nothing to choose, and what is refused is refused whatever the seed.
    same = None if "{" in prompt + negative else (prompts.expand(prompt, 0), prompts.expand(negative, 0))
    requests: list[Request] = []
    for number, own in numbered:
        text, against = same or (prompts.expand(prompt, own), prompts.expand(negative, own))
        requests.append(Request(text, own, against, number, None if text == prompt else prompt))
    return requests


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
    """Of what is longer, the sides that models draw would make another shape."""
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


def _seeds(seed: SupportsIndex | Sequence[SupportsIndex], count: int) -> Sequence[int]:
    if not 1 <= count <= MOST:
        raise UserError(f"count {count}", rule=f"Count is the number of pictures per prompt, 1 to {MOST:,}")
    if isinstance(seed, Sequence):
        if not len(seed) or count not in (1, len(seed)):
            raise UserError(f"count {count} and {len(seed)} seeds", rule="A list of seeds, one or more, is the count")
        return [_whole(one) for one in seed]
    first = _whole(seed)
    if not 0 <= first <= SEEDS - count:
        raise UserError(f"seed {first}", rule=f"{_SEED}, and the pictures of a prompt use consecutive ones")
    return range(first, first + count)


def _whole(seed: object) -> int:
    """NumPy's integers too, as Python's own: a picture's metadata is JSON."""
    if not isinstance(seed, Integral):
        raise UserError(f"seed {seed!r}", rule=_SEED)
    return int(seed)
