"""One request per image, out of a prompt, a seed and a count."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import SupportsIndex

from terminus.errors import UserError
from terminus.sampling import prompts
from terminus.sampling.limits import SEED, check_seeds
from terminus.sampling.settings import ImageRequest, Settings


def requests_for(
    prompt: str, negative: str, seed: SupportsIndex | Sequence[SupportsIndex], count: int, settings: Settings
) -> list[ImageRequest]:
    """One per image, with wildcards chosen by the seed; a variation chooses like another seed."""
    numbered = list(enumerate(_seeds(seed, count)))
    # Neighbours share the first seed, and differ by their number.
    if settings.variation and not isinstance(seed, Sequence):
        numbered = [(number, numbered[0][1]) for number, _ in numbered]
    # Without a brace there is nothing to choose, and what is refused is refused whatever the seed.
    same = None if "{" in prompt + negative else (prompts.expand(prompt, 0), prompts.expand(negative, 0))
    requests: list[ImageRequest] = []
    for number, own in numbered:
        text, against = same or (prompts.expand(prompt, own), prompts.expand(negative, own))
        requests.append(ImageRequest(text, own, against, number, None if text == prompt else prompt))
    return requests


def _seeds(seed: SupportsIndex | Sequence[SupportsIndex], count: int) -> Sequence[int]:
    if isinstance(seed, Sequence):
        check_seeds(0, count)
        if not len(seed) or count not in (1, len(seed)):
            raise UserError(f"count {count} and {len(seed)} seeds", rule="A list of seeds, one or more, is the count")
        return [_whole(one) for one in seed]
    first = _whole(seed)
    check_seeds(first, count)
    return range(first, first + count)


def _whole(seed: object) -> int:
    """NumPy's integers too, as Python's own: an image's metadata is JSON."""
    if not isinstance(seed, Integral):
        raise UserError(f"seed {seed!r}", rule=SEED)
    return int(seed)
