"""Curated images as pixels: what VAEs and contrastive encoders are trained on.

Pixels are made from the untouched bytes and the stored plan each time they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from terminus.data import geometry
from terminus.data.batch import Batch
from terminus.data.geometry import CropPlan
from terminus.data.grouped import Grouped, GroupedRows
from terminus.data.latent_rows import batch_of
from terminus.data.record import ImageRow
from terminus.data.schema import read_row
from terminus.data.store import View
from terminus.decode import HARD_PIXEL_LIMIT, Limits, decode
from terminus.images import Dropped, parse_color

_TRUSTED = Limits(file_bytes=1 << 31, pixels=HARD_PIXEL_LIMIT, known=True)
"""Rows passed the recipe's own limits when they were curated."""


@runtime_checkable
class StoredImage(Protocol):
    """The columns of `images` that an image is made from."""

    @property
    def key(self) -> str: ...

    @property
    def data(self) -> bytes:
        """The file."""
        ...

    @property
    def background(self) -> str | None:
        """ "#rrggbb" under transparent pixels; None if the image has none."""
        ...


@runtime_checkable
class MaskedImage(StoredImage, Protocol):
    """An image that may have a mask of its own."""

    @property
    def mask(self) -> bytes | None: ...


class PixelRows(GroupedRows):
    """Images of one transform and one split."""

    def __init__(self, view: View, transform: str, split: str) -> None:
        super().__init__(Grouped(view, {"transform": (transform,), "split": (split,)}))

    def read(self, bucket: int, rows: Sequence[int], positions: Sequence[int], epoch: int) -> Batch:
        """RGB bytes, [batch, 3, height, width]."""
        # Rows whose bytes are not what was written are replaced, and told.
        found, damaged = self._grouped.sound(bucket, rows, positions)
        images = [read_row(ImageRow, row) for row in found]
        arrays = [training_pixels(image) for image in images]
        values = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return replace(batch_of(images, values, positions, epoch), damaged=damaged)


def training_pixels(row: ImageRow) -> UInt8[np.ndarray, "height width 3"]:
    """The training pixels of a row of the `images` table."""
    return geometry.cut(resized(row, row.plan), row.plan)


def resized(row: StoredImage, way: CropPlan) -> UInt8[np.ndarray, "height width 3"]:
    """The whole image of a row of the `images` table, at the size from which `way` cuts."""
    decoded = decode(row.data, _TRUSTED)
    if isinstance(decoded, Dropped):
        raise ValueError(f"row {row.key} was curated but does not decode: {decoded.reason} {decoded.detail}")
    return geometry.resize(decoded.on(parse_color(row.background or "#ffffff")), way)


def resized_mask(row: MaskedImage, way: CropPlan) -> UInt8[np.ndarray, "height width"] | None:
    """The row's mask at the same size, 255 where the loss counts in full; None if it has none.

    Averaged with a triangle, which unlike LANCZOS cannot ring. A mask of another size than its image is taken to show
    the same image.
    """
    if row.mask is None:
        return None
    decoded = decode(row.mask, _TRUSTED)
    if isinstance(decoded, Dropped):
        raise ValueError(f"row {row.key} was curated but its mask does not decode: {decoded.reason}")
    grey = Image.fromarray(decoded.on((0, 0, 0))).convert("L")
    return np.asarray(grey.resize((way.resized.width, way.resized.height), Image.Resampling.BILINEAR))


def latent_mask(mask: UInt8[np.ndarray, "height width"], factor: int) -> UInt8[np.ndarray, "rows columns"]:
    """The mean of each square of `factor` x `factor` pixels: how much the latent there counts."""
    height, width = mask.shape
    squares = mask.reshape(height // factor, factor, width // factor, factor)
    return np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)
