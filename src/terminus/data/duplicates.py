"""Finds images that look the same among any number, in an index on disk.

Two 64-bit hashes within 3 bits of each other leave at least two of five blocks of their bits untouched, so
each hash is filed under its ten pairs of blocks (25 or 26 bits each), and only what shares a pair is compared
(Manku, Jain, Das Sarma: Detecting near-duplicates for web crawling, 2007).
"""

from __future__ import annotations

import itertools
import sqlite3
from dataclasses import dataclass
from typing import cast

import numpy as np

HASH_DISTANCE = 3
"""Bits of 64 in which near duplicates may differ: re-encoding and mild scaling change 0 to 3."""
COLOR_DISTANCE = 4.0
"""Mean absolute difference of their 8x8 thumbnails in levels of 255; another background is far above it."""
LONGEST = 10_000
"""Of one pair of blocks, only this many are compared, oldest first: plain images share most of their bits."""

_EDGES = (0, 13, 26, 39, 52, 64)
_BLOCKS = tuple((1 << end) - (1 << start) for start, end in itertools.pairwise(_EDGES))
_MASKS = tuple(first | second for first, second in itertools.combinations(_BLOCKS, 2))


@dataclass(frozen=True)
class Twin:
    """An image that was kept before."""

    key: str
    """Its row's key in the `images` table."""
    name: str
    """ "source/source_id"."""


def scratch() -> sqlite3.Connection:
    """An empty database of this process: small ones stay in memory, large ones go to the temporary folder.

    SQLite unlinks the file as soon as it is open, so that nothing is left after a kill. TMPDIR says where.
    """
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA cache_size = -65536")  # KiB
    database.execute("BEGIN")  # never committed: nobody else reads it
    return database


class HashIndex:
    """64-bit hashes, found again by any that differs in at most `HASH_DISTANCE` bits."""

    def __init__(self, database: sqlite3.Connection, name: str, longest: int | None = None) -> None:
        """`longest`: how many hashes that share a pair of blocks are compared, oldest first; None for all."""
        self.database, self.name, self.longest = database, name, longest
        self.crowded = 0
        """Searches that had to leave out some that share a pair of blocks."""
        columns = "pair INTEGER, bits INTEGER, row INTEGER, hash INTEGER"
        database.execute(f"CREATE TABLE {name} ({columns}, PRIMARY KEY (pair, bits, row)) WITHOUT ROWID")

    def add(self, dhash: str, row: int) -> None:
        """Files a hash of 16 hex digits under a number of the caller's."""
        value = int(dhash, 16)
        # Under each pair of blocks, the other bits left out.
        entries = ((pair, _signed(value & mask), row, _signed(value)) for pair, mask in enumerate(_MASKS))
        self.database.executemany(f"INSERT OR REPLACE INTO {self.name} VALUES (?, ?, ?, ?)", entries)

    def near(self, dhash: str) -> list[int]:
        """The numbers of all that lie near, in rising order."""
        value = int(dhash, 16)
        # One more than is compared shows that there are more.
        most = -1 if self.longest is None else self.longest + 1
        query = f"SELECT row, hash FROM {self.name} WHERE pair = ? AND bits = ? ORDER BY row LIMIT {most}"
        found: set[int] = set()
        crowded = False
        for pair, mask in enumerate(_MASKS):
            shared = self.database.execute(query, (pair, _signed(value & mask))).fetchall()
            crowded = crowded or len(shared) == most
            for row, other in shared[: self.longest]:
                if ((value ^ other) & 0xFFFFFFFFFFFFFFFF).bit_count() <= HASH_DISTANCE:
                    found.add(row)
        self.crowded += crowded
        return sorted(found)


class NearDuplicates:
    """Finds an earlier image that looks the same in shape and colour."""

    def __init__(self, database: sqlite3.Connection | None = None) -> None:
        self.database = database or scratch()
        self.hashes = HashIndex(self.database, "hashes", LONGEST)
        self.database.execute("CREATE TABLE looks (row INTEGER PRIMARY KEY, thumbprint BLOB, key TEXT, name TEXT)")

    def add(self, twin: Twin, dhash: str, thumbprint: bytes) -> None:
        """Remembers an image that is kept."""
        values = (thumbprint, twin.key, twin.name)
        row = self.database.execute("INSERT INTO looks (thumbprint, key, name) VALUES (?, ?, ?)", values).lastrowid
        self.hashes.add(dhash, cast(int, row))

    def find(self, dhash: str, thumbprint: bytes) -> Twin | None:
        """The first remembered image that looks the same."""
        # With sign: differences of bytes would wrap around.
        colors = np.frombuffer(thumbprint, np.uint8).astype(np.int16)
        for row in self.hashes.near(dhash):
            query = "SELECT thumbprint, key, name FROM looks WHERE row = ?"
            other, key, name = self.database.execute(query, (row,)).fetchone()
            if float(np.abs(colors - np.frombuffer(other, np.uint8)).mean()) <= COLOR_DISTANCE:
                return Twin(key, name)
        return None


def _signed(value: int) -> int:
    """As SQLite keeps 64 bits."""
    return value - (1 << 64) if value >> 63 else value
