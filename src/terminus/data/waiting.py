"""Which latents are still to be made: what a VAE has not encoded of the images that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from terminus.data import geometry
from terminus.data.duplicates import scratch
from terminus.data.geometry import CropPlan
from terminus.data.record import Split
from terminus.data.schema import column_names, read_rows
from terminus.data.store import Store, quoted

SCANNED = 8192
"""Rows that are looked at together."""


class Wanted(NamedTuple):
    """A latent to be made."""

    image: int
    """Index of the row of `images`."""
    cut: int
    """Which cut of the image, 0-based."""


@dataclass(frozen=True)
class _Planned:
    """The columns of `images` by which it is decided what has to be encoded."""

    key: str
    transform: str
    split: Split
    plan: CropPlan


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


def waiting_cuts(store: Store, transform: str, vae: str, crops: int = 1) -> Waiting:
    """The cuts that have no latent of this VAE yet, in row order: `crops` cuts of each image to train on, where there
    is room.

    Images that are held out are cut once: they measure, and more cuts would only weigh some of them more.
    """
    found = Waiting()
    images = store.images.latest()
    if images is None:
        return found
    names = geometry.specs(transform, crops)
    done = _Done(store, names, vae)
    start = 0
    for batch in images.batches(column_names(_Planned), size=SCANNED):
        asked: list[tuple[str, Wanted]] = []
        for index, row in enumerate(read_rows(_Planned, batch), start):
            # Not by a condition of the scan: the index of the row in the whole table is needed.
            if row.transform == transform:
                asked += [(row.key, Wanted(index, cut)) for cut in range(_cut_count(row, crops))]
        found.add(wanted for key, wanted in asked if not done.has(key, wanted.cut))
        start += batch.num_rows
    return found


def _cut_count(row: _Planned, crops: int) -> int:
    if crops > 1 and row.split == "train":
        return min(crops, row.plan.room)
    return 1


class _Done:
    """The cuts that have a latent, in a scratch database."""

    def __init__(self, store: Store, names: Sequence[str], vae: str) -> None:
        self.database = scratch()
        self.database.execute("CREATE TABLE done (id BLOB PRIMARY KEY) WITHOUT ROWID")
        view = store.latents.latest()
        # Each cut of an image has a transform's name of its own.
        cuts = {name: cut for cut, name in enumerate(names)}
        same = f"vae = {quoted(vae)} and transform in ({', '.join(quoted(name) for name in names)})"
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
