"""Which caption of an image is trained: a function of the seed and of the sample's running number."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

from terminus import runtime
from terminus.data.loader import Batch


def drawn_captions(batch: Batch, seed: int) -> list[str]:
    """One caption for each sample."""
    weights = batch.caption_weights or ((),) * len(batch.captions)
    each = zip(batch.captions, weights, batch.positions, strict=True)
    return [choose_caption(captions, seed, position, some) for captions, some, position in each]


def choose_caption(captions: Sequence[str], seed: int, position: int, weights: Sequence[float] = ()) -> str:
    """One caption of an image, drawn in proportion to its weight (no weights: all alike); "" if it has none."""
    if not captions:
        return ""
    u = runtime.uniform(seed, position, "caption")
    weights = weights[: len(captions)]
    # All alike.
    if len(set(weights)) <= 1:
        return captions[int(u * len(captions))]
    # Without the last sum: rounding can then lead to no place beyond the end.
    up_to = list(accumulate(weights))
    return captions[bisect(up_to[:-1], u * up_to[-1])]
