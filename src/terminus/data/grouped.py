"""The rows of a table that a run reads, by bucket; each is checked when it is read.

A damaged row costs itself: another row takes its place in the batch, so that a batch keeps its shape and every other
sample its place. Which one is a function of the place alone, so a run that is continued, and any number of processes
and threads, see the same rows again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from hashlib import blake2b

import numpy as np

from terminus.data import damage, index
from terminus.data.checksums import CHECKSUM
from terminus.data.damage import Damage, Row
from terminus.data.scanning import Runs, scan
from terminus.data.store import View
from terminus.errors import UserError

log = logging.getLogger("terminus")

ATTEMPTS = 100
"""Rows that are tried in the place of a damaged one."""
NAMED = 20
"""Damaged rows that are named when a table is opened; all are counted."""


class Grouped:
    """The rows of a view whose columns have one of the wanted values each, by bucket (in the order of their names).

    Within a bucket the sources follow each other, in the order in which the table first names them.
    """

    def __init__(self, view: View, wanted: Mapping[str, Collection[str]]) -> None:
        self.view = view
        if CHECKSUM not in view.dataset.schema.names:
            _say_unchecked(view.uri)
        found = index.kept(view, repr(sorted((name, *some) for name, some in wanted.items())), self._found(wanted))
        self.rows = tuple(Runs(bucket.first, bucket.ends) for bucket in found)
        self.sources = tuple(bucket.sources for bucket in found)
        """How many rows of each bucket are of each source, in the order in which they are numbered."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return tuple(len(rows) for rows in self.rows)

    def sound(self, bucket: int, rows: Sequence[int], positions: Sequence[int]) -> tuple[list[Row], tuple[str, ...]]:
        """All columns of these rows, in the order asked for, repeats included; and the names of those that are damaged.

        In the place of a damaged row stands another, of its source if there is one, else of its bucket. Where nothing
        in the bucket is sound, all rows are of another bucket. `UserError` if nothing is sound at all.
        """
        found = self._read(bucket, rows)
        sound = [one for one in found if not isinstance(one, Damage)]
        damaged = tuple(str(one) for one in found if isinstance(one, Damage))
        if not damaged:
            return sound, ()
        filled: list[Row] = []
        for one, row, position in zip(found, rows, positions, strict=True):
            if isinstance(one, Damage):
                one = self._instead(bucket, row, position, sound)
            if one is None:
                return self._elsewhere(bucket, positions), damaged
            filled.append(one)
        return filled, damaged

    def _instead(self, bucket: int, row: int, position: int, sound: Sequence[Row]) -> Row | None:
        """A row in the place of a damaged one: of its source, of its bucket, or one of the batch's `sound` ones."""
        other = self._drawn(bucket, *self._span(bucket, row), position)
        other = other or self._drawn(bucket, 0, self.sizes[bucket], position)
        if other is None and sound:
            return sound[position % len(sound)]
        return other

    def _found(self, wanted: Mapping[str, Collection[str]]) -> index.Find:
        def find() -> tuple[Sequence[index.Bucket], bool]:
            scanned = scan(self.view, wanted)
            if scanned.damaged and not scanned.buckets:
                raise self._nothing(f"{len(scanned.damaged)} damaged rows, and none that is asked for")
            if scanned.damaged:
                self._warn(scanned.damaged)
            return scanned.buckets, not scanned.damaged

        return find

    def _warn(self, damaged: Sequence[int]) -> None:
        named = "; ".join(damage.name_at(self.view, number) for number in damaged[:NAMED])
        log.warning(
            "%s: %d damaged rows are left out, since nothing says where they belong: %s%s. "
            "`terminus data verify` looks at every row",
            self.view.uri,
            len(damaged),
            named,
            "; ..." if len(damaged) > NAMED else "",
        )

    def _read(self, bucket: int, rows: Sequence[int]) -> list[Row | Damage]:
        # Each row is read once, in rising order, and given as often and where it was asked for.
        unique, inverse = np.unique(self.rows[bucket].numbers(rows), return_inverse=True)
        found = damage.rows_or_damage(self.view, unique.tolist())
        return [found[place] for place in inverse.tolist()]

    def _span(self, bucket: int, row: int) -> tuple[int, int]:
        """First row and number of the rows of the same source."""
        first = 0
        for count in self.sources[bucket].values():
            if row < first + count:
                return first, count
            first += count
        raise ValueError(f"there is no row {row} in bucket {bucket}")

    def _drawn(self, bucket: int, first: int, count: int, position: int) -> Row | None:
        """A sound row among these, drawn by the sample's position; None if the draws meet only damaged ones."""
        for attempt in range(ATTEMPTS):
            digest = blake2b(f"instead:{position}:{attempt}".encode(), digest_size=8).digest()
            [one] = self._read(bucket, [first + int.from_bytes(digest, "little") % count])
            if not isinstance(one, Damage):
                return one
        return None

    def _elsewhere(self, bucket: int, positions: Sequence[int]) -> list[Row]:
        """A row for each position, all of one other bucket: the largest in which there are some."""
        largest_first = sorted(range(len(self.sizes)), key=lambda other: -self.sizes[other])
        for other in (one for one in largest_first if one != bucket):
            drawn = [self._drawn(other, 0, self.sizes[other], position) for position in positions]
            found = [one for one in drawn if one is not None]
            if len(found) == len(positions):
                return found
        raise self._nothing(f"{ATTEMPTS} rows were drawn from each bucket, and all of one were damaged")

    def _nothing(self, what: str) -> UserError:
        return UserError(
            f"no row of this table can be read ({what})",
            where=self.view.uri,
            rule="A damaged row is left out, and another takes its place",
            fix="`terminus data verify` names what is damaged; restore it from a copy, or add --remove and run "
            "`terminus prepare` with the same recipe.",
        )


class GroupedRows:
    """What all suppliers of stored rows say of their buckets."""

    def __init__(self, grouped: Grouped) -> None:
        self._grouped = grouped

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows in each bucket."""
        return self._grouped.sizes

    @property
    def sources(self) -> tuple[dict[str, int], ...]:
        """The number of rows of each bucket that are of each source, in the order in which they are numbered."""
        return self._grouped.sources


@cache
def _say_unchecked(uri: str) -> None:
    """Once for each table."""
    log.warning("%s was written without checksums: damage to it cannot be seen. Prepared anew, it has them", uri)
