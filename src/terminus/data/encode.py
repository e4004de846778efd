"""The second stage of preparation: rows of `images` become rows of `latents` for one codec.

Moments are stored as the encoder gives them (mean and log variance, before any scale factor), so another
scale factor costs nothing and another codec never meets these rows: the codec's id is part of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8

from terminus.data import engine, record
from terminus.data.pixels import render
from terminus.data.record import LatentRow, Split
from terminus.data.store import GEOMETRY, Store, View, pack_moments, plan_of, quoted
from terminus.errors import UserError

if TYPE_CHECKING:
    from terminus.model.codec import Codec

GROUP = 256
"""Images per commit."""
BATCH_PIXELS = 4 << 20
"""Pixels per call of the encoder: four images of 1024x1024."""

_DESCRIPTION = (
    "key", "image_hash", "source", "source_id", "split", "captions", "caption_origins", "caption_weights",
    "background", "transform", "data", *GEOMETRY,
)  # fmt: skip
_INPUT = pa.schema([("data", pa.large_binary()), ("background", pa.string()), *((n, pa.int32()) for n in GEOMETRY)])
_OUTPUT = pa.schema([("pixels", pa.large_binary())])


def waiting(store: Store, transform: str, codec: str) -> list[int]:
    """Indices of the images that have no latent of this codec yet, in row order."""
    images, latents = store.images.latest(), store.latents.latest()
    if images is None:
        return []
    done: set[str] = set()
    if latents is not None:
        same = f"codec = {quoted(codec)} and transform = {quoted(transform)}"
        done.update(latents.scan(["image_key"], same).column("image_key").to_pylist())
    table = images.scan(["key", "transform"])
    rows = zip(table.column("key").to_pylist(), table.column("transform").to_pylist(), strict=True)
    return [index for index, (key, spec) in enumerate(rows) if spec == transform and key not in done]


def encode(store: Store, rows: Sequence[int], codec: Codec, advance: Callable[[int], None]) -> int:
    """Writes one latent for each of the images with these indices; returns how many.

    Commits follow the order of the images, so that an interrupted run, repeated, forms the same batches.
    """
    images = store.images.latest()
    assert images is not None or not rows
    for start in range(0, len(rows), GROUP):
        assert images is not None
        store.latents.append(_encode_group(images, rows[start : start + GROUP], codec, advance))
    return len(rows)


def _encode_group(
    images: View, indices: Sequence[int], codec: Codec, advance: Callable[[int], None]
) -> list[LatentRow]:
    """The latents of one commit: encoded bucket by bucket, returned in the images' order."""
    described = cast("list[dict[str, object]]", images.take(indices, _DESCRIPTION).to_pylist())
    # A stable sort: batches are of one size, and the engine renders in the order in which they are used.
    order = sorted(range(len(described)), key=lambda place: _target(described[place]))
    rendered = _render([described[place] for place in order])
    latents: dict[int, LatentRow] = {}
    for (height, width), places in groupby(order, key=lambda place: _target(described[place])):
        for batch in _batches(list(places), max(1, BATCH_PIXELS // (height * width))):
            pixels = np.stack([next(rendered) for _ in batch])
            moments = _moments(codec, pixels, [described[place] for place in batch])
            for place, latent in zip(batch, moments, strict=True):
                latents[place] = _row(described[place], latent, codec.id)
            advance(len(batch))
    return [latents[place] for place in range(len(described))]


def _render(rows: Sequence[dict[str, object]]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """The pixels that each row's plan describes, in order."""
    columns = {name: [row[name] for row in rows] for name in _INPUT.names}
    for row, result in zip(rows, engine.run(columns, _INPUT, _pixels, _OUTPUT), strict=True):
        height, width = _target(row)
        yield np.frombuffer(cast(bytes, result["pixels"]), np.uint8).reshape(height, width, 3)


def _pixels(row: dict[str, object]) -> dict[str, object]:
    return {"pixels": render(row).tobytes()}


@torch.inference_mode()
def _moments(
    codec: Codec, pixels: UInt8[np.ndarray, "batch height width 3"], rows: Sequence[dict[str, object]]
) -> np.ndarray:
    """float16 [batch, 2, channels, height, width]."""
    from terminus.model.codec import to_signal  # not at the top: the first stage needs no networks

    moments = codec.encode(to_signal(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    stacked = torch.stack([moments.mean, moments.logvar], dim=1).to(torch.float16).cpu()
    for index, row in enumerate(rows):
        if not bool(torch.isfinite(stacked[index]).all()):
            raise UserError(
                "the codec's moments of this image do not fit into float16",
                where=f"{row['source']}/{row['source_id']}",
                rule="Moments are stored as finite float16 numbers",
                fix="The codec's weights are damaged, or overflow in the precision they run in.",
            )
    return stacked.numpy()


def _row(described: dict[str, object], moments: np.ndarray, codec: str) -> LatentRow:
    background = cast("str | None", described["background"])
    image_hash, transform = cast(str, described["image_hash"]), cast(str, described["transform"])
    return LatentRow(
        key=record.latent_key(image_hash, background, transform, codec),
        image_key=cast(str, described["key"]),
        image_hash=image_hash,
        source=cast(str, described["source"]),
        source_id=cast(str, described["source_id"]),
        split=cast(Split, described["split"]),
        captions=tuple(cast("list[str]", described["captions"])),
        caption_origins=tuple(cast("list[str]", described["caption_origins"])),
        caption_weights=tuple(cast("list[float]", described["caption_weights"])),
        plan=plan_of(described),
        moments=pack_moments(moments),
        latent_channels=moments.shape[1],
        latent_height=moments.shape[2],
        latent_width=moments.shape[3],
        codec=codec,
        transform=transform,
    )


def _target(row: dict[str, object]) -> tuple[int, int]:
    return cast(int, row["target_height"]), cast(int, row["target_width"])


def _batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))
