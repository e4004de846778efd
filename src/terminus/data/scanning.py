"""Who is where in a table: its rows by bucket and source, as a scan of the columns by which rows are found sees them.

Every row is looked at, also those that are not wanted: of the columns of each the checksum must be right, or a row
whose split was damaged would be in no selection, and nobody would miss it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from terminus.data import damage
from terminus.data.checksums import GROUP_CHECKSUM, group_checksum, grouping
from terminus.data.index import Bucket
from terminus.data.store import View
from terminus.errors import UserError

SCANNED = 1 << 16
"""Rows per batch."""
LEAST = 16
"""Rows that are given up together where they cannot be read: the pages of these columns hold more."""

Piece = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]
"""First row number and length of each run of consecutive rows."""


@dataclass(frozen=True)
class Runs:
    """Row numbers as runs of consecutive ones: 16 bytes for each run, not for each row."""

    first: Int64[np.ndarray, " runs"]
    ends: Int64[np.ndarray, " runs"]
    """How many rows there are up to the end of each run."""

    @staticmethod
    def joined(pieces: Sequence[Piece]) -> Runs:
        """The rows of all pieces, one after the other; runs that touch become one."""
        # A run begins wherever a piece does not continue the one before it.
        first, lengths = (np.concatenate(part) for part in zip(*pieces, strict=True))
        begins = np.flatnonzero(np.append(True, first[1:] != first[:-1] + lengths[:-1]))
        return Runs(first[begins], np.cumsum(np.add.reduceat(lengths, begins)))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def numbers(self, rows: Sequence[int]) -> Int64[np.ndarray, " rows"]:
        """The numbers in the table of the rows at these places, 0-based."""
        # The run that holds each place, and how far into it the place lies.
        places = np.asarray(rows, dtype=np.int64)
        run = np.searchsorted(self.ends, places, side="right")
        return self.first[run] + places - np.where(run > 0, self.ends[run - 1], 0)


@dataclass
class Scanned:
    """The wanted rows of a table, in the order of the buckets' names, and the rows of which nobody knows what they are.

    Within a bucket the sources follow each other, in the order in which the table first names them.
    """

    buckets: list[Bucket] = field(default_factory=list[Bucket])
    damaged: list[int] = field(default_factory=list[int])
    """Numbers of the rows whose columns are not what was written, or cannot be read."""


def scan(view: View, wanted: Mapping[str, Collection[str]]) -> Scanned:
    """The rows whose columns have one of the wanted values each."""
    scanned = Scanned()
    names: dict[str, None] = {}
    pieces: dict[str, dict[str, list[Piece]]] = {}
    # One scan, so that a bucket cannot be paired with another row's number; in batches, so that memory stays flat.
    for batch in _batches(view, scanned.damaged):
        wrong, chosen = _judged(batch, wanted)
        scanned.damaged += _numbers(batch)[wrong].tolist()
        for bucket, source, piece in _pieces(batch.filter(pa.array(chosen & ~wrong))):
            names.setdefault(source)
            pieces.setdefault(bucket, {}).setdefault(source, []).append(piece)
    # Within a bucket source after source, so that a source's rows can be found by counting.
    for bucket in sorted(pieces):
        parts = [(name, pieces[bucket][name]) for name in names if name in pieces[bucket]]
        runs = Runs.joined([piece for _, some in parts for piece in some])
        scanned.buckets.append(Bucket(runs.first, runs.ends, {name: len(Runs.joined(some)) for name, some in parts}))
    return scanned


def _batches(view: View, unread: list[int]) -> Iterator[pa.RecordBatch]:  # pyright: ignore[reportUnknownParameterType]
    """The columns by which rows are found, with the rows' numbers; the numbers of those that cannot be read go to
    `unread`."""
    present = view.dataset.schema.names
    columns = [*grouping(present), *(name for name in (GROUP_CHECKSUM,) if name in present), "_rowoffset"]
    # In one go, as long as everything can be read.
    done = 0
    try:
        for batch in view.batches(columns, size=SCANNED):
            yield batch
            done += batch.num_rows
        return
    except UserError as error:
        if not damage.of_content(error):
            raise
    # What follows is read in pieces, of which some can be read.
    for start in range(done, view.count, SCANNED):
        asked = range(start, min(start + SCANNED, view.count))
        for some, found in damage.by_halves(view, asked, columns, LEAST):
            if isinstance(found, Exception):
                unread += some
            else:
                yield from found.combine_chunks().to_batches()


def _judged(
    batch: pa.RecordBatch,  # pyright: ignore[reportUnknownParameterType]
    wanted: Mapping[str, Collection[str]],
) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Which rows are not what was written, and which are wanted: decided once for each combination of values."""
    names = grouping(batch.schema.names)
    # As bytes, since damaged text need not be text.
    columns = [pc.fill_null(batch.column(name).cast(pa.binary()), b"").dictionary_encode() for name in names]
    # One number for each combination of values: the columns are its digits.
    codes = np.zeros(batch.num_rows, np.int64)
    combinations = 1
    for column in columns:
        if (combinations := combinations * max(1, len(column.dictionary))) > 1 << 62:
            # More combinations than 64 bits number: those that occur are renumbered from 0.
            _, codes = np.unique(codes, return_inverse=True)
            combinations = batch.num_rows * len(column.dictionary)
        codes = codes * len(column.dictionary) + column.indices.to_numpy()
    # One row stands for all of its combination.
    _, first, combination = np.unique(codes, return_index=True, return_inverse=True)
    values = [[column[int(row)].as_py() for column in columns] for row in first]
    allowed = {name: {value.encode() for value in some} for name, some in wanted.items()}
    chosen = [
        all(value in allowed.get(name, (value,)) for name, value in zip(names, one, strict=True)) for one in values
    ]
    # Older tables have no checksum: nothing is known to be wrong.
    if GROUP_CHECKSUM not in batch.schema.names:
        return np.zeros(batch.num_rows, bool), np.array(chosen, bool)[combination]
    stored = batch.column(GROUP_CHECKSUM)
    expected = np.array([group_checksum(one) for one in values], np.int64)[combination]
    # A row without one counts as right.
    given = pc.fill_null(stored.cast(pa.int64()), -1).to_numpy()
    return (given >= 0) & (given != expected), np.array(chosen, bool)[combination]


def _numbers(batch: pa.RecordBatch) -> Int64[np.ndarray, " rows"]:  # pyright: ignore[reportUnknownParameterType]
    return batch.column("_rowoffset").to_numpy().astype(np.int64)


def _pieces(batch: pa.RecordBatch) -> Iterator[tuple[str, str, Piece]]:  # pyright: ignore[reportUnknownParameterType]
    """Bucket, source and runs of row numbers of every pair of them in a batch; sources as they first appear."""
    buckets, sources = (batch.column(name).dictionary_encode() for name in ("bucket", "source"))
    count = len(buckets.dictionary)
    codes = sources.indices.to_numpy().astype(np.int64) * count + buckets.indices.to_numpy()
    # Stable, so that within a pair the row numbers keep rising.
    order = np.argsort(codes, kind="stable")
    codes, numbers = codes[order], _numbers(batch)[order]
    # A run ends where the pair changes or a number is left out.
    begins = np.flatnonzero(np.append(True, (np.diff(codes) != 0) | (np.diff(numbers) != 1)))
    lengths = np.diff(begins, append=len(numbers))
    for code in np.unique(codes):
        here = codes[begins] == code
        source, bucket = divmod(int(code), count)
        yield (
            buckets.dictionary[bucket].as_py(),
            sources.dictionary[source].as_py(),
            (numbers[begins[here]], lengths[here]),
        )
