"""`terminus data verify`: every row of a store compared with the checksum that was written with it.

With `remove` the damaged rows are taken out of the newest version, so that the next preparation makes them anew: a
latent from its image, an image from its source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import lance
from rich.console import Console

from terminus.data import damage
from terminus.data.checksums import CHECKSUM, GROUP_CHECKSUM, group_checksum, grouping
from terminus.data.damage import DIFFERS, Damage, Row
from terminus.data.store import KEYS_PER_CONDITION, Store, Table, View
from terminus.errors import UserError
from terminus.progress import Meter

READ_BYTES = 64 << 20
"""Of rows that are read together, by the size of the table's files."""
MOST = 1024
"""Rows that are read together at most."""


@dataclass
class Verified:
    """The damage found in the newest version of one table."""

    name: str
    rows: int = 0
    damaged: list[Damage] = field(default_factory=list[Damage])
    unchecked: int = 0
    """Rows that were written before there were checksums: what they should be, nobody knows."""


def verify_store(location: str, remove: bool = False, console: Console | None = None) -> list[Verified]:
    """Reads every row of every table of the store, and prints one line for each damaged one and one for each table.

    Raises `UserError` if a row is not what was written, or if nobody can say; with `remove`, only in the latter case.
    """
    views = _tables(location)
    # Read every row.
    found: list[Verified] = []
    with Meter(console or Console(stderr=True), "rows", sum(view.count for view in views.values())) as meter:
        for name, view in views.items():
            verified = Verified(name)
            for rows in _read(view):
                _count(verified, rows)
                meter.advance(len(rows))
            found.append(verified)
    # Say what was found, and remove what is damaged where that was asked for.
    for verified in found:
        _show(verified)
    damaged = {one.name: one.damaged for one in found if one.damaged}
    if remove:
        for name, rows in damaged.items():
            _remove(views[name], [row.number for row in rows])
        count = sum(map(len, damaged.values()))
        print(f"{count:,} rows removed; `terminus prepare` with the store's recipe makes them anew")
    _judge(location, found, {} if remove else damaged)
    return found


def _tables(location: str) -> dict[str, View]:
    """The newest version of each table of the store that has rows. `UserError` if none has."""
    store = Store(location)
    # Each may be of any kind of row.
    tables: dict[str, Table] = {  # pyright: ignore[reportMissingTypeArgument, reportUnknownVariableType]
        "images": store.images,
        "latents": store.latents,
        "rejected": store.rejected,
        "captions": store.captions,
        "parts": store.parts,
    }
    # One version of each table, whatever is written meanwhile.
    views: dict[str, View] = {name: view for name, table in tables.items() if (view := table.latest())}
    if not views:
        raise UserError(
            "there is no prepared data here",
            where=location,
            rule="A store is what `terminus prepare` writes into data.store",
            fix="Correct the path, or prepare first.",
        )
    return views


def _read(view: View) -> Iterator[list[Row | Damage]]:
    """All rows in pieces, each checked."""
    # As many rows at a time as have about the allowed bytes, by their mean.
    size = sum(int(file.file_size_bytes or 0) for one in view.dataset.get_fragments() for file in one.metadata.files)
    step = max(1, min(MOST, READ_BYTES * view.count // max(1, size)))
    for start in range(0, view.count, 2 * step):
        # No neighbours together, as a run seldom reads them: Lance finds each row by itself then, as it does for a run.
        for first in (start, start + 1):
            numbers = range(first, min(start + 2 * step, view.count), 2)
            rows = damage.rows_or_damage(view, numbers, whatever=True) if numbers else []
            yield [_grouped(row, number) for number, row in zip(numbers, rows, strict=True)]


def _grouped(row: Row | Damage, number: int) -> Row | Damage:
    """The row, if its second checksum is right as well."""
    stored = None if isinstance(row, Damage) else row.get(GROUP_CHECKSUM)
    if isinstance(row, Damage) or stored is None:
        return row
    same = stored == group_checksum([str(row[name]).encode() for name in grouping(row)])
    return row if same else Damage(number, damage.named(row, number), DIFFERS)


def _count(verified: Verified, rows: Sequence[Row | Damage]) -> None:
    verified.rows += len(rows)
    for row in rows:
        if isinstance(row, Damage):
            verified.damaged.append(row)
        elif row.get(CHECKSUM) is None:
            verified.unchecked += 1


def _show(verified: Verified) -> None:
    for one in sorted(verified.damaged, key=lambda one: one.number):
        print(f"{verified.name}: {one}")
    told = [f"{verified.rows:,} rows"]
    if verified.damaged:
        told.append(f"{len(verified.damaged):,} damaged")
    if verified.unchecked:
        told.append(f"{verified.unchecked:,} without a checksum")
    print(f"{verified.name}: {', '.join(told)}")


def _judge(location: str, found: Sequence[Verified], damaged: dict[str, list[Damage]]) -> None:
    if damaged:
        counts = ", ".join(f"{len(rows):,} of {name}" for name, rows in damaged.items())
        raise UserError(
            f"damaged rows: {counts}",
            where=location,
            rule="A run leaves them out; every other row is what was written",
            fix="Restore the files from a copy, or add --remove and prepare again: images come from their sources, "
            "latents from their images.",
        )
    unchecked = {one.name: one.unchecked for one in found if one.unchecked}
    if unchecked:
        counts = ", ".join(f"{count:,} of {name}" for name, count in unchecked.items())
        raise UserError(
            f"rows without a checksum: {counts}",
            where=location,
            rule="They were written before checksums were kept: nobody can say whether they are what was written",
            fix="They can be trained on. Prepared into another data.store, they have checksums.",
        )


def _remove(view: View, numbers: Sequence[int]) -> None:
    """Deletes these rows by their ids, so that no column need be read: theirs may not be readable."""
    # Row numbers count through the fragments in order; ids do not.
    gone, first, ids = set(numbers), 0, list[int]()
    for fragment in view.dataset.get_fragments():
        here = fragment.to_table(columns=[], with_row_id=True).column("_rowid").to_pylist()
        ids += [one for number, one in enumerate(here, first) if number in gone]
        first += len(here)
    for start in range(0, len(ids), KEYS_PER_CONDITION):
        listed = ", ".join(map(str, ids[start : start + KEYS_PER_CONDITION]))
        lance.dataset(view.dataset.uri).delete(f"_rowid IN ({listed})")
