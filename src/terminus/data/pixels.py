"""Curated images as pixels: what VAEs and contrastive encoders are trained on.

Pixels are made from the untouched bytes and the stored plan each time they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from terminus.data import geometry
from terminus.data.geometry import CropPlan
from terminus.data.grouped import Grouped
from terminus.data.loader import Batch, batch_of
from terminus.data.record import parse_color
from terminus.data.store import View, plan_of
from terminus.decode import HARD_PIXEL_LIMIT, Limits, decode
from terminus.images import Dropped

_TRUSTED = Limits(file_bytes=1 << 31, pixels=HARD_PIXEL_LIMIT, known=True)
"""Rows passed the recipe's own limits when they were curated."""


class PixelRows:
    """Images of one transform and one split."""

    def __init__(self, view: View, transform: str, split: str) -> None:
        self._grouped = Grouped(view, {"transform": (transform,), "split": (split,)})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return self._grouped.sizes

    @property
    def sources(self) -> tuple[dict[str, int], ...]:
        """How many rows of each bucket are of each source, in the order in which they are numbered."""
        return self._grouped.sources

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """RGB bytes, [batch, 3, height, width]."""
        found, damaged = self._grouped.sound(bucket, rows, positions)
        arrays = [training_pixels(row) for row in found]
        values = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return replace(batch_of(found, values, positions, epoch), damaged=damaged)


def training_pixels(row: dict[str, object]) -> UInt8[np.ndarray, "height width 3"]:
    """The training pixels of a row of the `images` table."""
    way = plan_of(row)
    return geometry.cut(resized(row, way), way)


def resized(row: dict[str, object], way: CropPlan) -> UInt8[np.ndarray, "height width 3"]:
    """The whole image of a row of the `images` table, at the size from which `way` cuts."""
    decoded = decode(cast(bytes, row["data"]), _TRUSTED)
    if isinstance(decoded, Dropped):
        raise ValueError(f"row {row['key']} was curated but does not decode: {decoded.reason} {decoded.detail}")
    background = cast(str | None, row["background"])
    return geometry.resize(decoded.on(parse_color(background or "#ffffff")), way)


def resized_mask(row: dict[str, object], way: CropPlan) -> UInt8[np.ndarray, "height width"] | None:
    """The row's mask at the same size, 255 where the loss counts in full; None if it has none.

    Averaged with a triangle, which unlike LANCZOS cannot ring. A mask of another size than its image is taken to show
    the same image.
    """
    if row["mask"] is None:
        return None
    decoded = decode(cast(bytes, row["mask"]), _TRUSTED)
    if isinstance(decoded, Dropped):
        raise ValueError(f"row {row['key']} was curated but its mask does not decode: {decoded.reason}")
    grey = Image.fromarray(decoded.on((0, 0, 0))).convert("L")
    return np.asarray(grey.resize((way.resized.width, way.resized.height), Image.Resampling.BILINEAR))


def latent_mask(mask: UInt8[np.ndarray, "height width"], factor: int) -> UInt8[np.ndarray, "rows columns"]:
    """The mean of each square of `factor` x `factor` pixels: how much the latent there counts."""
    height, width = mask.shape
    squares = mask.reshape(height // factor, factor, width // factor, factor)
    return np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)
