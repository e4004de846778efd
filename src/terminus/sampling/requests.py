"""What users write, made exact: sizes, shapes, intervals, and one request per picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.sampling import prompts
from terminus.sampling.settings import ASPECTS, SEEDS, Aspect, Request, Settings

MOST = 100_000
"""Pictures per prompt: every request is made and checked before the first is drawn."""


def requests_for(
    prompt: str, negative: str, seed: int | Sequence[int], count: int, settings: Settings
) -> list[Request]:
    """One per picture, with wildcards chosen by the seed; a variation chooses like another seed."""
    numbered = list(enumerate(_seeds(seed, count)))
    if settings.variation and isinstance(seed, int):
        numbered = [(number, seed) for number, _ in numbered]
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
    for sign in "x:":
        width, found, height = text.lower().partition(sign)
        if (
            found
            and width.isascii()
            and height.isascii()
            and width.isdecimal()
            and height.isdecimal()
            and len(text) < 13
        ):
            return Size(int(height), int(width)) if sign == "x" else Aspect(int(width), int(height))
    names = ", ".join(ASPECTS)
    rule = f"A size is WIDTHxHEIGHT in pixels, a shape WIDTH:HEIGHT, or one of {names}"
    raise UserError(f"size {text!r}", rule=rule, fix="For example 1216x832")


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


def _seeds(seed: int | Sequence[int], count: int) -> Sequence[int]:
    if not 1 <= count <= MOST:
        raise UserError(f"count {count}", rule=f"Count is the number of pictures per prompt, 1 to {MOST:,}")
    if not isinstance(seed, int):
        if count not in (1, len(seed)):
            raise UserError(f"count {count} and {len(seed)} seeds", rule="A list of seeds is the count")
        return seed
    if not 0 <= seed <= SEEDS - count:
        rule = "A seed is a whole number from 0 to 2^63 - 1, and the pictures of a prompt use consecutive ones"
        raise UserError(f"seed {seed}", rule=rule)
    return range(seed, seed + count)
