"""Checksums of rows: a bit that a disk, a network or a memory changed is found when the row is read.

Lance files have no checksums of their own. Each row carries two: `checksum`, of all its columns, and, in the tables
that training reads, `group_checksum`, of the few columns by which rows are found. The first is checked wherever a row
is used; the second when a table is opened, where reading whole rows would cost hours: without it a row whose split or
VAE was damaged would be in no selection, and nobody would miss it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from zlib import crc32

import pyarrow as pa

CHECKSUM, GROUP_CHECKSUM = "checksum", "group_checksum"
NAMES = (CHECKSUM, GROUP_CHECKSUM)
GROUPING = ("split", "source", "bucket", "transform", "vae")
"""Columns by which rows are found, those of them that a table has. Of a store their values are few."""
_MODULUS = 1 << 32
_COPIED = 16
"""Rows whose values are copied at a time."""


def checksum(row: Mapping[str, object]) -> int:
    """The checksum of a row, 0 to 2^32 - 1, from its columns as `to_pylist` gives them; a null counts for nothing.

    A sum over the columns of bytes and over all the others together, of the CRC-32 of each times an odd number of its
    own: a sum, so that `revision` need not read the large columns; odd, so that no change of one part is lost. Whatever
    one flipped bit changes is found; of any other damage one in 2^32 is not.
    """
    total, small = 0, dict[str, object]()
    for name, value in sorted(row.items()):
        if isinstance(value, bytes):
            start = crc32(name.encode())
            total += crc32(value, start) * (start | 1)
        elif value is not None and name not in NAMES:
            small[name] = value
    return (total + crc32(json.dumps(small, default=str).encode())) % _MODULUS


def needed(schema: pa.Schema, changed: Sequence[str]) -> list[str]:  # pyright: ignore[reportUnknownParameterType]
    """Columns that `revision` has to see of the rows before: all but those of bytes that stay."""
    large = (pa.binary(), pa.large_binary())
    return [field.name for field in schema if field.type not in large or field.name in changed]


def revision(  # pyright: ignore[reportUnknownParameterType]
    rows: Sequence[tuple[Mapping[str, object], Mapping[str, object]]],
    schema: pa.Schema,  # pyright: ignore[reportUnknownParameterType]
) -> pa.Table:
    """Each row's changes beside its `_rowid`, and its checksum after them.

    `rows` are pairs of the `needed` columns as they were and the columns that change. The checksum follows from the
    one that is stored, so that what was damaged before stays so. A row that has none gets none.
    """
    revised: list[dict[str, object]] = []
    for before, changes in rows:
        row = {"_rowid": before["_rowid"], **changes}
        stored = before.get(CHECKSUM)
        if isinstance(stored, int):
            # `_rowid` is Lance's number, and no part of the checksum.
            plain = {name: value for name, value in before.items() if name != "_rowid"}
            row[CHECKSUM] = (stored - checksum(plain) + checksum(plain | dict(changes))) % _MODULUS
        revised.append(row)
    names = [name for name in (*rows[0][1], CHECKSUM) if name in schema.names]
    return pa.Table.from_pylist(revised, pa.schema([("_rowid", pa.uint64()), *(schema.field(name) for name in names)]))


def group_checksum(values: Sequence[bytes]) -> int:
    """The CRC-32 of the `GROUPING` columns' values (UTF-8, of those that the table has, in their order), 0 to 2^32 -
    1."""
    return crc32(b"\x1f".join(values))


def with_checksums(table: pa.Table) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
    """The table with the checksums of its rows, in those of the two columns that its schema has.

    They are taken of the columns as Arrow holds them, so that it does not matter what was rounded on the way there.
    """
    found: dict[str, list[int]] = {CHECKSUM: [], GROUP_CHECKSUM: []}
    for batch in table.to_batches(max_chunksize=_COPIED):
        for row in batch.to_pylist():
            found[CHECKSUM].append(checksum(row))
            found[GROUP_CHECKSUM].append(group_checksum([str(row[name]).encode() for name in grouping(row)]))
    for name in (name for name in NAMES if name in table.schema.names):
        column = pa.array(found[name], pa.uint32())
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def grouping(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the `GROUPING` columns that are among these."""
    present = set(names)
    return tuple(name for name in GROUPING if name in present)
