"""The second stage of preparation: rows of `images` become rows of `latents` for one VAE.

Moments are stored as the encoder gives them (mean and log variance, before any scale factor), so another
scale factor costs nothing and another VAE never meets these rows: the VAE's id is part of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float16, UInt8

from terminus.conditioning import Crop, Size
from terminus.data import allocation, damage, engine, geometry, record
from terminus.data.damage import Damage
from terminus.data.geometry import CropPlan
from terminus.data.pixels import latent_mask, resized, resized_mask
from terminus.data.record import LargeBytes, LatentRow, Split
from terminus.data.schema import column_names, columns_of, read_row, row_schema
from terminus.data.store import Store, View, pack_posterior
from terminus.data.waiting import Wanted
from terminus.errors import UserError

if TYPE_CHECKING:
    from terminus.model.vae import VAE

GROUP = 256
"""Latents per commit."""
PIECE_BYTES = 64 << 20
"""Of files, and the pixels made of them, that are rendered together; while they are encoded, as many follow."""
READ_PIXELS = 16 << 20
"""Of the originals whose files are read together: how large a file is, is known once it has been read."""
BATCH_PIXELS = 1 << 20
"""Pixels per call of the encoder: one image of 1024x1024 keeps a device busy. (Of a larger one it encodes tiles.)"""

_FILES = ("data", "mask")
"""Columns of `images` that hold files."""


@dataclass(frozen=True)
class _Described:
    """The columns of `images` that its latents take over: all but the files."""

    key: str
    image_hash: str
    source: str
    source_id: str
    split: Split
    captions: tuple[str, ...]
    caption_origins: tuple[str, ...]
    caption_weights: tuple[float, ...]
    background: str | None
    transform: str
    plan: CropPlan


@dataclass(frozen=True)
class _ToRender:
    """A row of what the engine gets: one image and all cuts of it."""

    key: str
    data: LargeBytes
    background: str | None
    mask: LargeBytes | None
    plan: CropPlan
    """The first cut."""
    corners: tuple[int, ...]
    """Top and left of every cut, one after the other."""


@dataclass(frozen=True)
class _Pixels:
    """A row of what the engine returns: RGB bytes of every cut, and its mask if there is one."""

    pixels: tuple[LargeBytes, ...]
    masks: tuple[bytes | None, ...]


_INPUT, _OUTPUT = row_schema(_ToRender), row_schema(_Pixels)


@dataclass(frozen=True)
class _Cut:
    image: int
    """Index of the row of `images`."""
    row: _Described
    plan: CropPlan
    transform: str


@dataclass(frozen=True)
class _Rendered:
    pixels: UInt8[np.ndarray, "height width 3"]
    mask: bytes | None


def encode_latents(
    store: Store,
    wanted: Iterable[Wanted],
    vae: VAE,
    advance: Callable[[int], None],
    damaged: Callable[[Damage], None] = damage.told,
) -> int:
    """Writes each of these latents; returns how many. Images that are not what was written are told and left out.

    Commits follow the order of the images, so that an interrupted run, repeated, forms the same batches.
    """
    allocation.give_back()
    seen: set[int] = set()

    def tell(one: Damage) -> None:  # once, though every cut of it is asked for
        if one.number not in seen:
            seen.add(one.number)
            damaged(one)

    images, rows, count = store.images.latest(), iter(wanted), 0
    while group := list(islice(rows, GROUP)):
        assert images is not None, "what is wanted is a row of images"
        latents = _encode_group(images, group, vae, advance, tell)
        store.latents.append(latents)
        count += len(latents)
    return count


def _encode_group(
    images: View,
    wanted: Sequence[Wanted],
    vae: VAE,
    advance: Callable[[int], None],
    damaged: Callable[[Damage], None],
) -> list[LatentRow]:
    """The latents of one commit, bucket by bucket: what is alike lies together, and a loader keeps runs of rows."""
    # Each image once, however many of its cuts are wanted.
    indices = list(dict.fromkeys(image for image, _ in wanted))
    # They are compared with their checksums where the files are read; nothing is made of them before.
    rows = dict(zip(indices, damage.take(images, indices, column_names(_Described)), strict=True))
    # A stable sort: the cuts of an image stay together, and images of one kind in their order.
    cuts = sorted(_planned(images, rows, wanted, damaged), key=_kind)
    latents: list[LatentRow] = []
    with closing(_render(images, cuts, vae.factor)) as rendered:
        for target, alike in groupby(cuts, key=lambda cut: cut.plan.target):
            for batch in _batches(list(alike), max(1, BATCH_PIXELS // max(1, prod(target)))):
                # A damaged image leaves its batch, and is told.
                whole: list[tuple[_Cut, _Rendered]] = []
                for cut in batch:
                    crop = next(rendered)
                    if isinstance(crop, Damage):
                        damaged(crop)
                    else:
                        whole.append((cut, crop))
                latents += _latents(vae, whole)
                advance(len(batch))
    return latents


def _latents(vae: VAE, images: Sequence[tuple[_Cut, _Rendered]]) -> Iterator[LatentRow]:
    if images:
        posterior = _posterior(vae, np.stack([one.pixels for _, one in images]), [cut for cut, _ in images])
        for (cut, image), latent in zip(images, posterior, strict=True):
            yield _row(cut, image.mask, latent, vae.id)


def _planned(
    images: View,
    rows: Mapping[int, damage.Row | Damage],
    wanted: Sequence[Wanted],
    damaged: Callable[[Damage], None],
) -> Iterator[_Cut]:
    """The cuts that are wanted, without those of images whose description cannot be one."""
    for image, number in wanted:
        row = rows[image]
        try:
            if not isinstance(row, Damage):
                yield _cut(image, read_row(_Described, row), number)
                continue
        except (ArithmeticError, ValueError):
            # Read anew with its checksum: it is damaged, or else the fault is ours.
            [row] = damage.rows_or_damage(images, [image])
            if not isinstance(row, Damage):
                raise
        damaged(row)


def _cut(image: int, row: _Described, number: int) -> _Cut:
    plan = geometry.cuts(row.plan, row.image_hash, row.transform, number + 1)[number]
    return _Cut(image, row, plan, geometry.specs(row.transform, number + 1)[number])


def _kind(cut: _Cut) -> tuple[Size, str, str]:
    return cut.plan.target, cut.row.split, cut.row.source


def _render(images: View, cuts: Sequence[_Cut], factor: int) -> Generator[_Rendered | Damage]:
    """The pixels and masks that the plans describe, in order, or why there are none: one piece is rendered while
    another is encoded."""
    pieces = _pieces(images, cuts, factor)
    with ThreadPoolExecutor(1, "render") as pool:
        coming = pool.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = pool.submit(next, pieces, None)
            yield from piece


def _pieces(images: View, cuts: Sequence[_Cut], factor: int) -> Iterator[list[_Rendered | Damage]]:
    """The cuts that are rendered together; all neighbouring cuts of an image from one decoding."""
    cuts_by_image = [list(some) for _, some in groupby(cuts, key=lambda cut: cut.image)]
    for piece in _fitting(images, cuts_by_image):
        # The engine gets the whole ones; damaged ones keep their places among the results.
        whole = [(some, row) for some, row in piece if not isinstance(row, Damage)]
        corners = [[side for cut in some for side in cut.plan.crop] for some, _ in whole]
        columns: dict[str, list[object]] = {name: [row.get(name) for _, row in whole] for name in _INPUT.names}
        columns["corners"] = list[object](corners)
        results = engine.run(columns, _INPUT, partial(_pixels, factor=factor), _OUTPUT)
        made: list[_Rendered | Damage] = []
        for some, row in piece:
            if isinstance(row, Damage):
                made += [row] * len(some)
            else:
                made += _rendered(some, read_row(_Pixels, next(results)))
        yield made


def _rendered(cuts: Sequence[_Cut], result: _Pixels) -> Iterator[_Rendered]:
    for cut, data, mask in zip(cuts, result.pixels, result.masks, strict=True):
        yield _Rendered(np.frombuffer(data, np.uint8).reshape(*cut.plan.target, 3), mask)


def _fitting(
    images: View, cuts_by_image: Sequence[list[_Cut]]
) -> Iterator[list[tuple[list[_Cut], damage.Row | Damage]]]:
    """The same in order, with their rows, as many at a time as fit into memory together."""
    piece: list[tuple[list[_Cut], damage.Row | Damage]] = []
    held = 0
    for some in _readable(cuts_by_image):
        read = damage.rows_or_damage(images, [cuts[0].image for cuts in some])
        files = [row[name] for row in read if not isinstance(row, Damage) for name in _FILES]
        more = sum(len(file) for file in files if isinstance(file, bytes))
        # Three bytes for each pixel of each cut.
        more += sum(3 * prod(cut.plan.target) for cuts in some for cut in cuts)
        if piece and held + more > PIECE_BYTES:
            yield piece
            piece, held = [], 0
        piece += zip(some, read, strict=True)
        held += more
    yield piece


def _readable(images: Sequence[list[_Cut]]) -> Iterator[list[list[_Cut]]]:
    """The same in order, in runs of originals that are not too large to be read at once, or of a single one."""
    run: list[list[_Cut]] = []
    held = 0
    for cuts in images:
        area = prod(cuts[0].plan.original)
        if run and held + area > READ_PIXELS:
            yield run
            run, held = [], 0
        run.append(cuts)
        held += area
    yield run


def _pixels(row: engine.Row, factor: int) -> engine.Row:
    one = read_row(_ToRender, row)
    # They come flat: top and left of one cut after the other.
    corners = zip(one.corners[::2], one.corners[1::2], strict=True)
    ways = [one.plan.at(Crop(*corner)) for corner in corners]
    # Decoded and resized once, and cut as often as is wanted.
    image, mask = resized(one, one.plan), resized_mask(one, one.plan)
    pixels = tuple(geometry.cut(image, way).tobytes() for way in ways)
    masks: tuple[bytes | None, ...] = (None,) * len(ways)
    if mask is not None:
        masks = tuple(latent_mask(geometry.cut(mask, way), factor).tobytes() for way in ways)
    return columns_of(_Pixels(pixels, masks))


@torch.inference_mode()
def _posterior(
    vae: VAE, pixels: UInt8[np.ndarray, "batch height width 3"], cuts: Sequence[_Cut]
) -> Float16[np.ndarray, "batch 2 channels rows columns"]:
    """The posterior of each image; what does not fit into the device's memory at once is encoded in halves."""
    from terminus.model.vae import to_signal  # not at the top: the first stage needs no networks

    try:
        posterior = vae.encode(to_signal(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise UserError(
                f"encoding one image of {pixels.shape[2]}x{pixels.shape[1]} pixels needs more memory than there is",
                rule="The VAE encodes whole images, and in tiles only those of more than 4 megapixels",
                fix="Free the device of other work, lower data.resolution, or encode on the CPU.",
            ) from None
        posterior = None
    if posterior is None:  # outside of the handler, which would keep what did not fit
        half = len(pixels) // 2
        return np.concatenate(
            [_posterior(vae, pixels[:half], cuts[:half]), _posterior(vae, pixels[half:], cuts[half:])]
        )
    stacked = torch.stack([posterior.mean, posterior.logvar], dim=1).to(torch.float16).cpu()
    for cut, one in zip(cuts, stacked, strict=True):
        if not bool(torch.isfinite(one).all()):
            raise UserError(
                "the VAE's moments of this image do not fit into float16",
                where=f"{cut.row.source}/{cut.row.source_id}",
                rule="Moments are stored as finite float16 numbers",
                fix="The VAE's weights are damaged, or overflow in the precision they run in.",
            )
    return stacked.numpy()


def _row(cut: _Cut, mask: bytes | None, posterior: np.ndarray, vae: str) -> LatentRow:
    row = cut.row
    return LatentRow(
        key=record.latent_key(row.image_hash, row.background, cut.transform, vae),
        image_key=row.key,
        image_hash=row.image_hash,
        source=row.source,
        source_id=row.source_id,
        split=row.split,
        captions=row.captions,
        caption_origins=row.caption_origins,
        caption_weights=row.caption_weights,
        plan=cut.plan,
        posterior=pack_posterior(posterior),
        latent_channels=posterior.shape[1],
        latent_height=posterior.shape[2],
        latent_width=posterior.shape[3],
        vae=vae,
        transform=cut.transform,
        mask=mask,
    )


def _batches(items: Sequence[_Cut], size: int) -> Iterator[Sequence[_Cut]]:
    return (items[start : start + size] for start in range(0, len(items), size))
