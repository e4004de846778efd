"""Rows that a block-list names after they were kept: people may ask for removal at any time.

They leave the newest version of the tables, so that no run that begins from now on sees them. Older versions keep
them: that is what lets a run that recorded one continue. Who must erase the bytes deletes the old versions as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from terminus.data import record
from terminus.data.blocklist import REASON, Blocklist
from terminus.data.record import Rejection
from terminus.data.store import Store, quoted
from terminus.images import Dropped

BATCH = 4096
"""Rows that are looked at together."""
READ = 16
"""The same, where their files are read: no column has the md5 that a list may ask for."""

_COPIED = (
    "source", "source_id", "image_hash", "state", "transform", "rules", "url", "licence", "original_height",
    "original_width", "luminance", "watermark", "unsafe", "aesthetic", "similarity",
)  # fmt: skip


def take_down(store: Store, blocked: Blocklist) -> int:
    """Moves every image that is listed, under any transform, from `images` to `rejected`, and deletes its latents.

    Returns how many rows of `images` that were. A kill in between costs nothing: the same command goes on.
    """
    view = store.images.latest()
    if view is None or not any(blocked.counts.values()):
        return 0
    count, files = 0, ["data"] if blocked.counts["md5"] else []
    for batch in view.batches(["key", "dhash", *_COPIED, *files], size=READ if files else BATCH):
        rows = cast("list[dict[str, object]]", batch.to_pylist())
        found = [(row, dropped) for row in rows if (dropped := _listed(row, blocked))]
        if found:
            _remove(store, found)
            count += len(found)
    return count


def _listed(row: Mapping[str, object], blocked: Blocklist) -> Dropped | None:
    url, data = cast("str | None", row["url"]), cast("bytes | None", row.get("data"))
    if url is not None and (dropped := blocked.address(url)):
        return dropped
    md5 = None if data is None else record.md5(data)
    return blocked.content(cast(str, row["image_hash"]), md5, cast(str, row["dhash"]))


def _remove(store: Store, found: Sequence[tuple[Mapping[str, object], Dropped]]) -> None:
    """The reason first and the image last: what a kill leaves half done is found again."""
    written = _written(store, [row for row, _ in found])
    rejections = [
        Rejection(
            **{name: row[name] for name in _COPIED},  # pyright: ignore[reportArgumentType]
            reason=dropped.reason,
            detail=f"{dropped.detail}; kept until it was listed",
        )
        for row, dropped in found
        if _identity(row) not in written
    ]
    store.rejected.append(rejections)
    keys = [cast(str, row["key"]) for row, _ in found]
    store.latents.delete("image_key", keys)
    store.images.delete("key", keys)


def _written(store: Store, rows: Sequence[Mapping[str, object]]) -> set[tuple[object, ...]]:
    """Those of the rows that an interrupted run has rejected already."""
    view = store.rejected.latest()
    if view is None:
        return set()
    hashes = ", ".join(quoted(cast(str, row["image_hash"])) for row in rows)
    names = ["source", "source_id", "state", "transform"]
    found = view.scan(names, f"reason = {quoted(REASON)} AND image_hash IN ({hashes})").to_pylist()
    return {_identity(row) for row in found}


def _identity(row: Mapping[str, object]) -> tuple[object, ...]:
    return row["source"], row["source_id"], row["state"], row["transform"]
