"""Rows that a block-list names after they were kept: people may ask for removal at any time.

They leave the newest version of the tables, so that no run that begins from now on sees them. Older versions keep
them: that is what lets a run that recorded one continue. Who must erase the bytes deletes the old versions as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import pyarrow as pa

from terminus.data import record
from terminus.data.blocklist import REASON, Blocklist
from terminus.data.record import Rejection
from terminus.data.schema import column_names, read_rows
from terminus.data.store import Store, quoted
from terminus.images import Dropped

BATCH = 4096
"""Rows that are looked at together."""
READ = 16
"""The same, where their files are read: no column has the md5 that a list may ask for."""


@dataclass(frozen=True)
class _Copied:
    """The columns of `images` that its rejection takes over."""

    source: str
    source_id: str
    image_hash: str
    state: str
    transform: str
    rules: str
    url: str | None
    licence: str | None
    original_height: int
    original_width: int
    luminance: float
    watermark: float | None
    unsafe: float | None
    aesthetic: float | None
    similarity: float | None


@dataclass(frozen=True)
class _Listed:
    """An image that a block-list names."""

    key: str
    row: _Copied
    dropped: Dropped


class _Identity(NamedTuple):
    """The columns that tell one judgement from another."""

    source: str
    source_id: str
    state: str
    transform: str


def take_down(store: Store, blocked: Blocklist) -> int:
    """Moves every image that is listed, under any transform, from `images` to `rejected`, and deletes its latents.

    Returns how many rows of `images` that were. A kill in between costs nothing: the same command goes on.
    """
    view = store.images.latest()
    if view is None or not any(blocked.counts.values()):
        return 0
    count, files = 0, ["data"] if blocked.counts["md5"] else []
    for batch in view.batches(["key", "dhash", *column_names(_Copied), *files], size=READ if files else BATCH):
        found = list(_listed(batch, blocked))
        if found:
            _remove(store, found)
            count += len(found)
    return count


def _listed(batch: pa.RecordBatch, blocked: Blocklist) -> Iterator[_Listed]:  # pyright: ignore[reportUnknownParameterType]
    """The rows that a list names."""
    keys, hashes = (cast("list[str]", batch.column(name).to_pylist()) for name in ("key", "dhash"))
    files: list[bytes | None] = [None] * batch.num_rows
    if "data" in batch.schema.names:
        files = batch.column("data").to_pylist()
    for key, dhash, file, row in zip(keys, hashes, files, read_rows(_Copied, batch), strict=True):
        # By address, then by content; the same order as when it is judged.
        dropped = None if row.url is None else blocked.address(row.url)
        if dropped is None:
            dropped = blocked.content(row.image_hash, None if file is None else record.md5(file), dhash)
        if dropped is not None:
            yield _Listed(key, row, dropped)


def _remove(store: Store, found: Sequence[_Listed]) -> None:
    """The reason first and the image last: what a kill leaves half done is found again."""
    # A kill between these steps left the reason: it is not written twice.
    written = _written(store, [one.row for one in found])
    rejections = [
        Rejection(**vars(one.row), reason=one.dropped.reason, detail=f"{one.dropped.detail}; kept until it was listed")
        for one in found
        if _identity(one.row) not in written
    ]
    store.rejected.append(rejections)
    keys = [one.key for one in found]
    store.latents.delete("image_key", keys)
    store.images.delete("key", keys)


def _written(store: Store, rows: Sequence[_Copied]) -> set[_Identity]:
    """Those of the rows that an interrupted run has rejected already."""
    view = store.rejected.latest()
    if view is None:
        return set()
    hashes = ", ".join(quoted(row.image_hash) for row in rows)
    found = view.scan(_Identity._fields, f"reason = {quoted(REASON)} AND image_hash IN ({hashes})").to_pylist()
    return {_Identity(**row) for row in found}


def _identity(row: _Copied) -> _Identity:
    return _Identity(row.source, row.source_id, row.state, row.transform)
