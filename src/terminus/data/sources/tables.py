"""Rows of Parquet, CSV and JSON Lines files as they stream by: never a whole file in memory, and no row that
is lost without a word.

Columns are found by the names that data sets of a kind use, in any case, or by those that the recipe gives. A
folder may be partitioned as Hive does it: `language=en/part-0.parquet` has a column `language`. What is broken
costs as little as it can: a value its row, a damaged row group that group, a file without an end that file.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader, RawIOBase
from typing import cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from terminus.data import storage
from terminus.data.record import Candidate, SourcePart
from terminus.data.sources.columns import BadRow, ColumnRow, Columns
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.images import Dropped

PARQUET = (".parquet",)
TEXT = (".csv", ".tsv", ".jsonl", ".ndjson")
ENDINGS = (*PARQUET, *TEXT, *(ending + ".gz" for ending in TEXT))
"""Of the files that are read; the ending decides how."""
BATCH_BYTES = 16 << 20
"""About so much of a Parquet file is decoded at once."""
BATCH_ROWS = 4096
READ_BYTES = 1 << 20
"""Of one column at a time, or of a text file."""
MAX_LINE_BYTES = 1 << 20
SAMPLED = 32
"""Files, or lines of a file, that are looked at to estimate how many rows there are."""

_BROKEN = (OSError, pa.ArrowException, ValueError, NotImplementedError, OverflowError, MemoryError)
"""What pyarrow raises on damaged files; `ValueError` has the Unicode errors in it."""


@dataclass(frozen=True)
class _Table:
    """A file and what its folders say."""

    uri: str
    name: str
    """Its path below the place, with "/"."""

    @property
    def partitions(self) -> dict[str, object]:
        """`language=en/part-0.csv`: {"language": "en"}."""
        pairs = (folder.partition("=") for folder in self.name.split("/")[:-1] if "=" in folder)
        return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, _, value in pairs}

    def is_a(self, *endings: str) -> bool:
        return self.uri.lower().removesuffix(".gz").endswith(endings)

    def broken(self, number: int, detail: str, reason: str = "table cannot be read") -> ColumnRow:
        stamp = _stamp(self.uri) or "unreadable"
        return ColumnRow(
            f"{printable_caption(self.name)}#{number}", {}, {}, Dropped(reason, printable_caption(detail[:300])), stamp
        )


def candidates(
    source: str, place: str, columns: Columns, build: Callable[[ColumnRow], Candidate]
) -> Iterator[Candidate]:
    """Candidates that `build` makes of the rows, and a candidate with a problem for each that cannot be read or
    used."""
    return itertools.chain.from_iterable(part.candidates() for part in parts(source, place, columns, build))


def parts(source: str, place: str, columns: Columns, build: Callable[[ColumnRow], Candidate]) -> Iterator[SourcePart]:
    """The tables, with the same candidates. Ids that the recipe chooses may repeat: then all are read every time."""
    reading = _Reading(columns)
    for table in _tables(place):
        stamp = "" if "id" in columns.chosen else _stamp(table.uri)
        before = reading.begun
        yield SourcePart(printable_caption(table.name), stamp, partial(_candidates, source, table, reading, build))
        # What is passed over was read by an earlier run, and had its columns.
        reading.settled = reading.settled or reading.begun == before


def _candidates(
    source: str, table: _Table, reading: _Reading, build: Callable[[ColumnRow], Candidate]
) -> Iterator[Candidate]:
    for row in reading.rows(table):
        if row.problem is not None:
            yield Candidate(source, row.id, problem=row.problem, stamp=row.stamp)
            continue
        try:
            candidate = build(row)
        except BadRow as error:
            candidate = Candidate(source, row.id, problem=error.dropped)
        yield candidate


def table_rows(place: str, columns: Columns) -> Iterator[ColumnRow]:
    """The rows of all tables at a place, files in the order of their names, rows in that of the file."""
    reading = _Reading(columns)
    return itertools.chain.from_iterable(reading.rows(table) for table in _tables(place))


@dataclass
class _Reading:
    """One reading of several tables. The first that can be read must have the columns (`UserError`); a later one
    without them is one that cannot be read, because one wrong file of thousands must not end a preparation of days."""

    columns: Columns
    settled: bool = False
    """Whether a table had the columns."""
    begun: int = 0
    """Tables so far."""

    def rows(self, table: _Table) -> Iterator[ColumnRow]:
        """In the order of the file."""
        self.begun += 1
        try:
            for row in _rows(table, self.columns):
                self.settled = self.settled or row.problem is None
                yield row
        except _WrongColumns as error:
            if not self.settled:
                raise
            yield table.broken(0, f"{error.what}; {error.rule}")
        except UserError as error:
            yield table.broken(0, error.what)


def estimate(place: str, columns: Columns) -> int:
    """About how many rows there are, from a few of the files; 0 if that cannot be known without reading.

    `UserError` if there are no tables, or if the first has not the columns: known before any work is done.
    """
    tables = _tables(place)
    counted: list[int] = []
    settled = False
    # Files at equal distances; the first that can be read must have the columns.
    for table in tables[:: -(-len(tables) // SAMPLED)]:
        try:
            if not settled:
                first = next(_rows(table, columns), None)
                settled = first is None or first.problem is None
            counted.append(_length(table))
        except _WrongColumns:
            raise
        except (UserError, *_BROKEN):
            continue
    return sum(counted) * len(tables) // len(counted) if counted else 0


class _WrongColumns(UserError):
    """`Columns.find`'s, told apart from those of places."""


def _stamp(uri: str) -> str:
    """ "" where there is none."""
    try:
        return storage.stamp(uri)
    except (UserError, OSError):
        return ""


def _found(columns: Columns, table: _Table, present: Sequence[str]) -> dict[str, str]:
    try:
        return columns.find([*present, *(key for key in table.partitions if key not in present)], table.uri)
    except UserError as error:
        raise _WrongColumns(error.what, where=error.where, rule=error.rule, fix=error.fix) from None


def _tables(place: str) -> list[_Table]:
    found = storage.files(place, ENDINGS)
    if not found:
        raise UserError(
            "there are no tables here",
            where=place,
            rule=f"A table is a file whose name ends in {', '.join(ENDINGS)}",
            fix="Correct the path.",
        )
    return [_Table(uri, _below(uri, place)) for uri in found]


def _below(uri: str, place: str) -> str:
    if storage.is_remote(uri):
        start = place.rstrip("/") + "/"
        return uri[len(start) :] if uri.startswith(start) else uri.rpartition("/")[2]
    name = os.path.relpath(uri, place)
    return os.path.basename(uri) if name == os.curdir else name.replace(os.sep, "/")


def _rows(table: _Table, columns: Columns) -> Iterator[ColumnRow]:
    if table.is_a(*PARQUET):
        return _parquet(table, columns)
    return _csv(table, columns) if table.is_a(".csv", ".tsv") else _json_lines(table, columns)


def _parquet(table: _Table, columns: Columns) -> Iterator[ColumnRow]:
    with closing(storage.open_input(table.uri)) as source:
        try:
            file = pq.ParquetFile(source, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True)
            present: list[str] = file.schema_arrow.names
        except _BROKEN as error:
            yield table.broken(0, _said(error))
            return
        found = _found(columns, table, present)
        # Values of the columns come from the file, those of the partitions from its folders.
        stored = {role: name for role, name in found.items() if name in present}
        metadata = {role: table.partitions[name] for role, name in found.items() if role not in stored}
        # By row group: a damaged one costs its own rows, and the numbers of the rows behind it stay right.
        first = 0
        for group in range(file.num_row_groups):
            number, end = first, first + max(0, file.metadata.row_group(group).num_rows)
            for batch in _batches(file, group, sorted(set(stored.values()))):
                if isinstance(batch, str):
                    yield table.broken(number, f"rows {number} to {end - 1}: {batch}")
                    break
                for row in _unpacked(batch, stored):
                    yield ColumnRow(f"{printable_caption(table.name)}#{number}", metadata | row, found)
                    number += 1
            else:
                # Reached only where no batch of the group was damaged.
                if number != end:
                    yield table.broken(number, f"the file promises rows up to {end - 1}")
            first = end


def _batches(file: pq.ParquetFile, group: int, names: list[str]) -> Iterator[pa.RecordBatch | str]:  # pyright: ignore[reportUnknownParameterType]
    """The batches of one row group; a text where it is damaged."""
    facts = file.metadata.row_group(group)
    # As many rows as fit, by the mean size of the group's.
    size = max(1, min(BATCH_ROWS, BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)))
    try:
        yield from file.iter_batches(size, row_groups=[group], columns=names, use_threads=False)
    except _BROKEN as error:
        yield _said(error)


def _unpacked(batch: pa.RecordBatch, stored: Mapping[str, str]) -> Iterator[dict[str, object]]:  # pyright: ignore[reportUnknownParameterType]
    names: list[str] = batch.schema.names
    columns = [_values(batch.column(names.index(name))) for name in stored.values()]
    for values in zip(*columns, strict=True):
        yield dict(zip(stored, values, strict=True))


def _values(column: pa.Array) -> list[object]:  # pyright: ignore[reportUnknownParameterType]
    try:
        return column.to_pylist()
    except _BROKEN:
        # One value is damaged: one by one, so that the others are read.
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> object:  # pyright: ignore[reportUnknownParameterType]
    try:
        return scalar.as_py()
    except _BROKEN as error:
        return error  # of no type that a role accepts, so that its row is dropped and names it


def _csv(table: _Table, columns: Columns) -> Iterator[ColumnRow]:
    with closing(_open(table)) as file:
        records = _records(table, file)
        header = next(records, table.broken(0, "the file is empty"))
        if isinstance(header, ColumnRow):
            yield header
            return
        # Excel begins a file with a byte order mark.
        header[:1] = [name.removeprefix("\ufeff") for name in header[:1]]
        found = _found(columns, table, header)
        for number, cells in enumerate(records):
            if isinstance(cells, ColumnRow):
                yield replace(cells, id=f"{printable_caption(table.name)}#{number}")
            elif len(cells) != len(header):
                detail = f"{len(cells)} fields, the header has {len(header)}"
                yield table.broken(number, detail, "row cannot be read")
            else:
                # Backwards, so that of two columns with one name the first counts.
                values = table.partitions | dict(zip(header[::-1], cells[::-1], strict=True))
                yield _row(table, number, values, found)


def _records(table: _Table, file: BufferedReader) -> Iterator[list[str] | ColumnRow]:
    """The fields of each record that is not blank, or a row that says why there are none."""
    # Bytes that are not UTF-8 stay in their cell, and only a row that needs the cell is dropped.
    lines = (line.decode(errors="surrogateescape") for line in _lines(file))
    reader = csv.reader(lines, delimiter="\t" if table.is_a(".tsv") else ",")
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield table.broken(0, str(error), "row cannot be read")
        except _BROKEN as error:
            yield table.broken(0, f"from this row on: {_said(error)}")
            return
        else:
            if cells is None:
                return
            if cells:
                yield cells


def _json_lines(table: _Table, columns: Columns) -> Iterator[ColumnRow]:
    with closing(_open(table)) as file:
        objects = _objects(table, file)
        # Writers leave out what is null, so that one object does not tell which columns there are.
        head = list(itertools.islice(objects, SAMPLED))
        if keys := dict.fromkeys(key for _, values in head if not isinstance(values, ColumnRow) for key in values):
            _found(columns, table, list(keys))
        known: dict[tuple[str, ...], dict[str, str]] = {}
        for number, values in itertools.chain(head, objects):
            if isinstance(values, ColumnRow):
                yield values
                continue
            values = table.partitions | values
            present = tuple(values)
            # Objects have few sets of keys; a file where each has its own must not fill the memory.
            if present not in known:
                if len(known) > BATCH_ROWS:
                    known.clear()
                known[present] = columns.among(present)
            yield _row(table, number, values, known[present])


def _objects(table: _Table, file: BufferedReader) -> Iterator[tuple[int, dict[str, object] | ColumnRow]]:
    """For each line that is not blank, its number and the object in it, or the row that says why there is none."""
    number = -1
    try:
        for number, line in enumerate(_lines(file)):
            if not (text := line.removeprefix(b"\xef\xbb\xbf").strip()):
                continue
            try:
                value: object = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield number, cast("dict[str, object]", value)
            else:
                yield number, table.broken(number, "the line is no JSON object", "row cannot be read")
    except _BROKEN as error:
        number += 1
        yield number, table.broken(number, f"from this row on: {_said(error)}")
    if number < 0:
        yield 0, table.broken(0, "the file is empty")


def _row(table: _Table, number: int, values: Mapping[str, object], found: Mapping[str, str]) -> ColumnRow:
    chosen = {role: values.get(name) for role, name in found.items()}
    return ColumnRow(f"{printable_caption(table.name)}#{number}", chosen, found)


def _open(table: _Table) -> BufferedReader:
    raw = storage.open_input(table.uri)
    plain = pa.CompressedInputStream(raw, "gzip") if table.uri.lower().endswith(".gz") else raw
    return BufferedReader(cast("RawIOBase", plain), READ_BYTES)


def _lines(file: BufferedReader) -> Iterator[bytes]:
    """With their ends; longer ones in pieces, which then are rows that cannot be read."""
    while line := file.readline(MAX_LINE_BYTES):
        yield line


def _length(table: _Table) -> int:
    """Rows of one file: what Parquet says, or an estimate from the first lines of a text."""
    with closing(storage.open_input(table.uri)) as raw:
        if table.is_a(*PARQUET):
            return pq.ParquetFile(raw).metadata.num_rows
        plain = pa.CompressedInputStream(raw, "gzip") if table.uri.lower().endswith(".gz") else raw
        lines = plain.read(READ_BYTES).count(b"\n")
        # By the share of the file that was read, of compressed bytes where it is compressed.
        return lines * raw.size() // max(1, raw.tell())


def _said(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
