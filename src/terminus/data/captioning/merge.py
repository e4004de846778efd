"""The captions in force become columns of `images` and `latents`, which is where training reads them.

Idempotent: what is there is compared with what should be there, and only rows that differ are revised. So it can
follow a kill, an edited sidecar or a changed weight alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from terminus.data.caption import Caption, captions_of
from terminus.data.captioning.table import GeneratedCaptions, generated
from terminus.data.duplicates import scratch
from terminus.data.schema import column_names, read_rows
from terminus.data.store import IMAGES, LATENTS, Store, Table, View

PIECE = 200_000
"""Rows per commit: bounds the memory that their texts take."""


def merge_captions(store: Store) -> int:
    """Brings both tables up to date with the answers; returns how many images have other captions than before."""
    texts = generated(store)
    if not texts.origins:
        return 0
    changed = 0
    # Images first: latents take over what they say.
    if view := store.images.latest():
        for piece in _pieces(_differing(view, texts)):
            changed += len(piece)
            _revise(store.images, IMAGES, piece, "key")
    images, latents = store.images.latest(), store.latents.latest()
    if images and latents:
        for piece in _pieces(_outdated(images, latents)):
            _revise(store.latents, LATENTS, piece, "image_key")
    return changed


@dataclass(frozen=True)
class _ImageCaptions:
    """Columns of `images`."""

    key: str
    captions: tuple[str, ...]
    caption_origins: tuple[str, ...]
    caption_weights: tuple[float, ...]


@dataclass(frozen=True)
class _LatentCaptions:
    """Columns of `latents`."""

    image_key: str
    captions: tuple[str, ...]
    caption_origins: tuple[str, ...]
    caption_weights: tuple[float, ...]


def _differing(view: View, texts: GeneratedCaptions) -> Iterator[tuple[str, tuple[Caption, ...]]]:
    for batch in view.batches(column_names(_ImageCaptions)):
        for row in read_rows(_ImageCaptions, batch):
            before = captions_of(row)
            after = texts.beside(row.key, before)
            if after != before:
                yield row.key, after


def _outdated(images: View, latents: View) -> Iterator[tuple[str, tuple[Caption, ...]]]:
    """Images whose latents hold other captions than they do."""
    held = scratch()
    # Several for one image, where several VAEs encoded it, or it was cut several times.
    held.execute("CREATE TABLE held (image BLOB, captions BLOB, PRIMARY KEY (image, captions)) WITHOUT ROWID")
    for batch in latents.batches(column_names(_LatentCaptions)):
        rows = read_rows(_LatentCaptions, batch)
        digests = sorted((bytes.fromhex(row.image_key), _digest(captions_of(row))) for row in rows)
        held.executemany("INSERT OR IGNORE INTO held VALUES (?, ?)", digests)
    for batch in images.batches(column_names(_ImageCaptions)):
        for row in read_rows(_ImageCaptions, batch):
            captions = captions_of(row)
            other = held.execute(
                "SELECT 1 FROM held WHERE image = ? AND captions <> ?", (bytes.fromhex(row.key), _digest(captions))
            )
            if other.fetchone():
                yield row.key, captions


def _digest(captions: tuple[Caption, ...]) -> bytes:
    return hashlib.blake2b(repr(captions).encode(errors="surrogatepass"), digest_size=16).digest()


def _pieces(
    changes: Iterator[tuple[str, tuple[Caption, ...]]],
) -> Iterator[dict[str, tuple[Caption, ...]]]:
    piece: dict[str, tuple[Caption, ...]] = {}
    for key, captions in changes:
        piece[key] = captions
        if len(piece) == PIECE:
            yield piece
            piece = {}
    if piece:
        yield piece


def _revise(table: Table[Any], schema: pa.Schema, piece: Mapping[str, tuple[Caption, ...]], on: str) -> None:  # pyright: ignore[reportUnknownParameterType]
    columns = {
        on: list(piece),
        "captions": [[caption.text for caption in captions] for captions in piece.values()],
        "caption_origins": [[caption.origin for caption in captions] for captions in piece.values()],
        "caption_weights": [[caption.weight for caption in captions] for captions in piece.values()],
    }
    types = pa.schema([schema.field(name) for name in columns])
    table.revise(pa.table(columns, schema=types), on)
