"""Which caption of an image is trained: a function of the seed and of the sample's running number."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

from terminus import runtime
from terminus.data.batch import Batch
from terminus.data.caption import Caption


def drawn_captions(batch: Batch, seed: int) -> list[str]:
    """One caption for each sample."""
    each = zip(batch.captions, batch.positions, strict=True)
    return [choose_caption(captions, seed, position) for captions, position in each]


def choose_caption(captions: Sequence[Caption], seed: int, position: int) -> str:
    """The text of one caption of an image, drawn in proportion to its weight; "" if the image has none."""
    if not captions:
        return ""
    u = runtime.uniform(seed, position, "caption")
    weights = [caption.weight for caption in captions]
    # Equal weights, zeros among them, need no sum to divide by.
    if len(set(weights)) == 1:
        return captions[int(u * len(captions))].text
    up_to = list(accumulate(weights))
    return captions[bisect(up_to[:-1], u * up_to[-1])].text
