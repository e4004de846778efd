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
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float16, UInt8

from terminus.conditioning import Crop, Size
from terminus.data import allocation, damage, engine, geometry, record
from terminus.data.damage import Damage
from terminus.data.duplicates import scratch
from terminus.data.geometry import CropPlan
from terminus.data.pixels import latent_mask, resized, resized_mask
from terminus.data.record import LatentRow, Split
from terminus.data.store import GEOMETRY, Store, View, pack_posterior, plan_of, quoted
from terminus.errors import UserError

if TYPE_CHECKING:
    from terminus.model.vae import VAE

GROUP = 256
"""Latents per commit."""
PIECE_BYTES = 64 << 20
"""Of files, and the pixels made of them, that are rendered together; while they are encoded, as many follow."""
READ_PIXELS = 16 << 20
"""Of the originals whose files are read together: how large a file is, is known once it has been read."""
SCANNED = 8192
"""Rows that are looked at together."""
BATCH_PIXELS = 1 << 20
"""Pixels per call of the encoder: one image of 1024x1024 keeps a device busy. (Of a larger one it encodes tiles.)"""

_DESCRIPTION = (
    "key", "image_hash", "source", "source_id", "split", "captions", "caption_origins", "caption_weights",
    "background", "transform", *GEOMETRY,
)  # fmt: skip
_FILES = ("data", "mask")
_INPUT = pa.schema([
    ("key", pa.string()), ("data", pa.large_binary()), ("background", pa.string()), ("mask", pa.large_binary()),
    *((name, pa.int32()) for name in GEOMETRY), ("corners", pa.list_(pa.int32())),
])  # fmt: skip
_OUTPUT = pa.schema([("pixels", pa.list_(pa.large_binary())), ("masks", pa.list_(pa.binary()))])


class Wanted(NamedTuple):
    """A latent to be made."""

    image: int
    """Index of the row of `images`."""
    cut: int
    """Which cut of the image, 0-based."""


@dataclass(frozen=True)
class _Cut:
    image: int
    """Index of the row of `images`."""
    row: dict[str, object]
    """Its columns, without the files."""
    plan: CropPlan
    transform: str


@dataclass(frozen=True)
class _Rendered:
    pixels: UInt8[np.ndarray, "height width 3"]
    mask: bytes | None


class Waiting:
    """Latents that are to be made, in the order of the images: a list on disk, however long it is."""

    def __init__(self) -> None:
        self._database = scratch()
        self._database.execute("CREATE TABLE wanted (number INTEGER PRIMARY KEY, image INTEGER, cut INTEGER)")

    def __len__(self) -> int:
        return self._database.execute("SELECT COUNT(*) FROM wanted").fetchone()[0]

    def __iter__(self) -> Iterator[Wanted]:
        rows = self._database.execute("SELECT image, cut FROM wanted ORDER BY number")
        return (Wanted(image, cut) for image, cut in rows)

    def add(self, wanted: Iterable[Wanted]) -> None:
        """At the end."""
        self._database.executemany("INSERT INTO wanted (image, cut) VALUES (?, ?)", wanted)


def waiting(store: Store, transform: str, vae: str, crops: int = 1) -> Waiting:
    """What has no latent of this VAE yet, in row order: `crops` cuts of each image to train on, where there is room.

    Images that are held out are cut once: they measure, and more cuts would only weigh some of them more.
    """
    found = Waiting()
    images = store.images.latest()
    if images is None:
        return found
    names = geometry.specs(transform, crops)
    done = _Done(store, names, vae)
    start = 0
    for batch in images.batches(["key", "transform", "split", *GEOMETRY], size=SCANNED):
        rows = cast("list[dict[str, object]]", batch.to_pylist())
        asked: list[tuple[str, Wanted]] = []
        for index, row in enumerate(rows, start):
            if row["transform"] == transform:
                count = min(crops, plan_of(row).room) if crops > 1 and row["split"] == "train" else 1
                asked += [(cast(str, row["key"]), Wanted(index, cut)) for cut in range(count)]
        found.add(wanted for key, wanted in asked if not done.has(key, wanted.cut))
        start += len(rows)
    return found


class _Done:
    """The cuts that have a latent, in a scratch database."""

    def __init__(self, store: Store, names: Sequence[str], vae: str) -> None:
        self.database = scratch()
        self.database.execute("CREATE TABLE done (id BLOB PRIMARY KEY) WITHOUT ROWID")
        view = store.latents.latest()
        cuts = {name: cut for cut, name in enumerate(names)}
        same = f"VAE = {quoted(vae)} and transform in ({', '.join(quoted(name) for name in names)})"
        for batch in view.batches(["image_key", "transform"], same, SCANNED) if view else ():
            pairs = zip(batch.column("image_key").to_pylist(), batch.column("transform").to_pylist(), strict=True)
            # In the order of the tree: neighbours are written together.
            self.database.executemany(
                "INSERT OR IGNORE INTO done VALUES (?)", sorted((_cut_id(key, cuts[name]),) for key, name in pairs)
            )

    def has(self, key: str, cut: int) -> bool:
        """Whether this cut of this image has a latent."""
        return self.database.execute("SELECT 1 FROM done WHERE id = ?", (_cut_id(key, cut),)).fetchone() is not None


def _cut_id(key: str, cut: int) -> bytes:
    # Keys are hashes, of which 16 bytes are enough.
    return bytes.fromhex(key)[:16] + bytes([cut])


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
    indices = list(dict.fromkeys(image for image, _ in wanted))
    # They are compared with their checksums where the files are read; nothing is made of them before.
    rows = dict(zip(indices, damage.take(images, indices, _DESCRIPTION), strict=True))
    # A stable sort: the cuts of an image stay together, and images of one kind in their order.
    cuts = sorted(_planned(images, rows, wanted, damaged), key=_kind)
    latents: list[LatentRow] = []
    with closing(_render(images, cuts, vae.factor)) as rendered:
        for target, alike in groupby(cuts, key=lambda cut: cut.plan.target):
            for batch in _batches(list(alike), max(1, BATCH_PIXELS // max(1, prod(target)))):
                crops = [next(rendered) for _ in batch]
                for crop in crops:
                    if isinstance(crop, Damage):
                        damaged(crop)
                whole = [pair for pair in zip(batch, crops, strict=True) if isinstance(pair[1], _Rendered)]
                latents += _latents(vae, cast("list[tuple[_Cut, _Rendered]]", whole))
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
                yield _cut(image, row, number)
                continue
        except (ArithmeticError, ValueError):
            [row] = damage.read(images, [image])
            if not isinstance(row, Damage):
                raise
        damaged(row)


def _cut(image: int, row: dict[str, object], number: int) -> _Cut:
    image_hash, transform = cast(str, row["image_hash"]), cast(str, row["transform"])
    plan = geometry.cuts(plan_of(row), image_hash, transform, number + 1)[number]
    return _Cut(image, row, plan, geometry.specs(transform, number + 1)[number])


def _kind(cut: _Cut) -> tuple[Size, str, str]:
    return cut.plan.target, cast(str, cut.row["split"]), cast(str, cut.row["source"])


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
    """What is rendered together; all neighbouring cuts of an image from one decoding."""
    cuts_by_image = [list(some) for _, some in groupby(cuts, key=lambda cut: cut.image)]
    for piece in _fitting(images, cuts_by_image):
        whole = [(some, row) for some, row in piece if not isinstance(row, Damage)]
        corners = [[side for cut in some for side in cut.plan.crop] for some, _ in whole]
        columns = {name: [row.get(name) for _, row in whole] for name in _INPUT.names}
        ordered: dict[str, list[Any]] = columns | {"corners": corners}
        results = engine.run(ordered, _INPUT, partial(_pixels, factor=factor), _OUTPUT)
        made: list[_Rendered | Damage] = []
        for some, row in piece:
            made += [row] * len(some) if isinstance(row, Damage) else _rendered(some, next(results))
        yield made


def _rendered(cuts: Sequence[_Cut], result: Mapping[str, object]) -> Iterator[_Rendered]:
    pixels, masks = cast("list[bytes]", result["pixels"]), cast("list[bytes | None]", result["masks"])
    for cut, data, mask in zip(cuts, pixels, masks, strict=True):
        yield _Rendered(np.frombuffer(data, np.uint8).reshape(*cut.plan.target, 3), mask)


def _fitting(
    images: View, cuts_by_image: Sequence[list[_Cut]]
) -> Iterator[list[tuple[list[_Cut], damage.Row | Damage]]]:
    """The same in order, with their rows, as many at a time as fit into memory together."""
    piece: list[tuple[list[_Cut], damage.Row | Damage]] = []
    held = 0
    for some in _readable(cuts_by_image):
        read = damage.read(images, [cuts[0].image for cuts in some])
        files = [row[name] for row in read if not isinstance(row, Damage) for name in _FILES]
        more = sum(len(file) for file in files if isinstance(file, bytes))
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


def _pixels(row: dict[str, object], factor: int) -> dict[str, object]:
    first, corners = plan_of(row), cast("list[int]", row["corners"])
    ways = [first.at(Crop(*corner)) for corner in zip(corners[::2], corners[1::2], strict=True)]
    image, mask = resized(row, first), resized_mask(row, first)
    return {
        "pixels": [geometry.cut(image, way).tobytes() for way in ways],
        "masks": [None if mask is None else latent_mask(geometry.cut(mask, way), factor).tobytes() for way in ways],
    }


@torch.inference_mode()
def _posterior(
    vae: VAE, pixels: UInt8[np.ndarray, "batch height width 3"], cuts: Sequence[_Cut]
) -> Float16[np.ndarray, "batch 2 channels rows columns"]:
    """Of each image; what does not fit into the device's memory at once is encoded in halves."""
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
                where=f"{cut.row['source']}/{cut.row['source_id']}",
                rule="Moments are stored as finite float16 numbers",
                fix="The VAE's weights are damaged, or overflow in the precision they run in.",
            )
    return stacked.numpy()


def _row(cut: _Cut, mask: bytes | None, posterior: np.ndarray, vae: str) -> LatentRow:
    row = cut.row
    background, image_hash = cast("str | None", row["background"]), cast(str, row["image_hash"])
    return LatentRow(
        key=record.latent_key(image_hash, background, cut.transform, vae),
        image_key=cast(str, row["key"]),
        image_hash=image_hash,
        source=cast(str, row["source"]),
        source_id=cast(str, row["source_id"]),
        split=cast(Split, row["split"]),
        captions=tuple(cast("list[str]", row["captions"])),
        caption_origins=tuple(cast("list[str]", row["caption_origins"])),
        caption_weights=tuple(cast("list[float]", row["caption_weights"])),
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
