"""The images that were judged before, by earlier runs and by this one, in bounded memory.

The tables are the truth; this is an index of them, rebuilt when a run begins. It lies in a scratch database on
disk, so that a hundred million rows need no more memory than ten thousand.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from terminus.data.blocklist import REASON, Blocklist
from terminus.data.duplicates import NearDuplicates, Twin, scratch
from terminus.data.filters import Measures
from terminus.data.record import Candidate
from terminus.data.schema import column_names, read_rows
from terminus.data.store import Store, quoted
from terminus.errors import UserError

KEPT = ""
"""The verdict on what was kept; of all others it is the reason."""


@dataclass(frozen=True)
class _Rejected:
    """Columns of `rejected`."""

    source: str
    source_id: str
    state: str
    reason: str
    detail: str
    url: str | None


@dataclass(frozen=True)
class _Kept:
    """Columns of `images`."""

    source: str
    source_id: str
    state: str
    key: str

    @property
    def twin(self) -> Twin:
        return Twin(self.key, f"{self.source}/{self.source_id}")


@dataclass(frozen=True)
class _KeptLook(_Kept):
    """The same, with what near duplicates are found by."""

    dhash: str
    thumbprint: bytes


class SeenIndex:
    """Verdicts by candidate and state, kept images by key and by look."""

    def __init__(self, near: bool) -> None:
        """`near`: whether images that look the same are looked for."""
        self.database = scratch()
        self.database.execute("CREATE TABLE verdicts (id BLOB PRIMARY KEY, reason TEXT) WITHOUT ROWID")
        self.database.execute("CREATE TABLE keys (key BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID")
        self.database.execute("CREATE TABLE met (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self.looks = NearDuplicates(self.database) if near else None

    def recall(self, store: Store, transform: str, blocked: Blocklist) -> None:
        """Reads what earlier runs decided under the same transform, but for what no block-list names any more."""
        same = f"transform = {quoted(transform)}"
        if view := store.rejected.latest():
            for batch in view.batches(column_names(_Rejected), same, size=8192):
                self._recall_rejected(read_rows(_Rejected, batch), blocked)
        # After the rejected: of an image that was dropped once and kept later, the last verdict counts.
        if view := store.images.latest():
            kind = _KeptLook if self.looks else _Kept
            for batch in view.batches(column_names(kind), same, size=8192):
                self._recall_kept(list(read_rows(kind, batch)))

    def _recall_rejected(self, rows: Iterable[_Rejected], blocked: Blocklist) -> None:
        stand = (row for row in rows if row.reason != REASON or blocked.still(row.detail, row.url))
        self._fill("verdicts", [(_digest(row.source, row.source_id, row.state), row.reason) for row in stand])

    def _recall_kept(self, rows: Sequence[_Kept]) -> None:
        self._fill("verdicts", [(_digest(row.source, row.source_id, row.state), KEPT) for row in rows])
        self._fill("keys", [(bytes.fromhex(row.key), row.twin.name) for row in rows])
        for row in rows:
            if self.looks and isinstance(row, _KeptLook):
                self.looks.add(row.twin, row.dhash, row.thumbprint)

    @property
    def crowded(self) -> int:
        """How many of the images asked for were compared with only some of those that may look the same."""
        return self.looks.hashes.crowded if self.looks else 0

    def meet(self, candidate: Candidate) -> bool:
        """False if this run has met a candidate of this name already."""
        name = (_digest(candidate.source, candidate.source_id),)
        return self.database.execute("INSERT OR IGNORE INTO met VALUES (?)", name).rowcount == 1

    def verdict(self, candidate: Candidate, state: str) -> str | None:
        """`KEPT`, the reason for which it was dropped, or None if it has not been judged in this state."""
        name = (_digest(candidate.source, candidate.source_id, state),)
        row = self.database.execute("SELECT reason FROM verdicts WHERE id = ?", name).fetchone()
        return None if row is None else row[0]

    def same(self, key: str) -> Twin | None:
        """The kept image with this key."""
        row = self.database.execute("SELECT name FROM keys WHERE key = ?", (bytes.fromhex(key),)).fetchone()
        return None if row is None else Twin(key, row[0])

    def alike(self, measures: Measures) -> Twin | None:
        """The first kept image that looks the same; None where nobody asked for near duplicates."""
        return self.looks.find(measures.dhash, measures.thumbprint) if self.looks else None

    def keep(self, twin: Twin, measures: Measures) -> None:
        """An image is kept from now on."""
        self._fill("keys", [(bytes.fromhex(twin.key), twin.name)])
        if self.looks:
            self.looks.add(twin, measures.dhash, measures.thumbprint)

    def _fill(self, table: str, rows: list[tuple[bytes, str]]) -> None:
        # In the order of the tree: neighbours are written together. Of several for one the last stays the last.
        ordered = sorted(rows, key=lambda row: row[0])
        self.database.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", ordered)


@contextmanager
def room_for_scratch() -> Generator[None]:
    """Turns a full temporary folder into one paragraph."""
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(
            f"the index of known images cannot be written ({error})",
            where="the temporary folder (TMPDIR)",
            rule="It needs about 0.2 GB per million images, 0.8 GB where near duplicates are dropped",
            fix="Make room, or set TMPDIR to a folder that has some; the same command continues.",
        ) from None


def _digest(*parts: str) -> bytes:
    # 16 bytes: among 10^9 names the chance of any collision is below 10^-20.
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).digest()
