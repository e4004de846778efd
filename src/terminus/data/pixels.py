"""Curated images as pixels: what codecs and contrastive towers are trained on.

Pixels are made from the untouched bytes and the stored plan each time they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import UInt8

from terminus.data import geometry
from terminus.data.loader import Batch, Grouped, batch_of
from terminus.data.record import parse_color
from terminus.data.store import GEOMETRY, View, plan_of, quoted
from terminus.decode import HARD_PIXEL_LIMIT, Limits, decode
from terminus.pictures import Dropped

_TRUSTED = Limits(file_bytes=1 << 31, pixels=HARD_PIXEL_LIMIT)
"""Rows passed the recipe's own limits when they were curated."""


class PixelRows:
    """Images of one transform and one split."""

    def __init__(self, view: View, transform: str, split: str) -> None:
        self._grouped = Grouped(view, f"transform = {quoted(transform)} AND split = {quoted(split)}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return self._grouped.sizes

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """RGB bytes, [batch, 3, height, width]."""
        found = self._grouped.take(bucket, rows, ["key", "captions", "data", "background", *GEOMETRY])
        arrays = [render(row) for row in found]
        values = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return batch_of(found, values, positions, epoch)


def render(row: dict[str, object]) -> UInt8[np.ndarray, "height width 3"]:
    """The training pixels of a row of the `images` table."""
    decoded = decode(cast(bytes, row["data"]), _TRUSTED)
    if isinstance(decoded, Dropped):
        raise ValueError(f"row {row['key']} was curated but does not decode: {decoded.reason} {decoded.detail}")
    background = cast(str | None, row["background"])
    return geometry.apply(decoded.on(parse_color(background or "#ffffff")), plan_of(row))
