"""Versions of a store: every state of its tables can be read again, and trained on again.

Rows are deleted for block-lists and changed masks alone. Many small files are joined at the end of a preparation, and
old versions keep theirs: nothing is cleaned up here, since a run that recorded a version could not continue.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from terminus.data.record import ImageRow, LatentRow, Rejection
from terminus.data.store import Store, Table
from terminus.data.survey import ranked
from terminus.data.unreadable import reading_table
from terminus.errors import UserError

SHOWN = 20
"""Versions of each table that are printed, the newest last."""


@dataclass(frozen=True)
class Version:
    """One commit of one table."""

    number: int
    """What a run records and `Table.at` opens."""
    time: str
    """When it was committed, ISO 8601, UTC."""
    rows: int
    size: int
    """Bytes of its data files; those that several versions share count in each."""
    files: int


@dataclass(frozen=True)
class TableVersions:
    """A table's versions, oldest first, and what the newest holds."""

    name: str
    versions: tuple[Version, ...]
    sources: dict[str, int]
    """Rows by source."""
    parts: dict[str, int]
    """Rows by split (images, latents) or by reason (rejected)."""
    transforms: dict[str, int]
    """Rows by transform."""


@dataclass(frozen=True)
class Listing:
    """The tables of a store, those that exist."""

    store: str
    tables: tuple[TableVersions, ...]

    @property
    def json(self) -> str:
        """The same as JSON, for programs."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)


def listing(store: Store) -> Listing:
    """All versions of all tables. `UserError` if nothing has been prepared here."""
    tables: Mapping[str, Table[ImageRow] | Table[LatentRow] | Table[Rejection]] = {
        "images": store.images,
        "latents": store.latents,
        "rejected": store.rejected,
    }
    held = tuple(found for name, table in tables.items() if (found := _held(name, table)))
    if not held:
        raise UserError(
            "there is no prepared data here",
            where=store.location,
            rule="A store is what `terminus prepare` writes into data.store",
            fix="Correct the place, or prepare first.",
        )
    return Listing(store.location, held)


def show_versions(found: Listing, console: Console) -> None:
    """Prints it for people."""
    console.print(Text(found.store, style="bold"))
    for table in found.tables:
        grid = Grid("version", "committed (UTC)", "rows", "new", "MiB", "files", title=Text(table.name), min_width=60)
        before = 0
        for place, version in enumerate(table.versions):
            if place >= len(table.versions) - SHOWN:
                grid.add_row(
                    str(version.number),
                    version.time,
                    f"{version.rows:,}",
                    f"{version.rows - before:+,}",
                    f"{version.size / 2**20:,.1f}",
                    f"{version.files:,}",
                )
            before = version.rows
        console.print(grid)
        for title, counts in (("sources", table.sources), ("parts", table.parts), ("transforms", table.transforms)):
            console.print(Text(f"{title}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())))


def _held(name: str, table: Table[ImageRow] | Table[LatentRow] | Table[Rejection]) -> TableVersions | None:
    view = table.latest()
    if view is None:
        return None
    # Counts of the newest version from its rows, then of each version what its commit says.
    kind = "reason" if name == "rejected" else "split"
    counts = {column: Counter[str]() for column in ("source", kind, "transform")}
    for batch in view.batches(list(counts), size=8192):
        for column, counter in counts.items():
            counter.update(cast("list[str]", batch.column(column).to_pylist()))
    with reading_table(view.uri):
        versions = tuple(_version(one) for one in cast("list[dict[str, object]]", view.dataset.versions()))
    return TableVersions(name, versions, *(ranked(counts[column]) for column in ("source", kind, "transform")))


def _version(described: Mapping[str, object]) -> Version:
    facts = cast("dict[str, str]", described["metadata"])
    time = cast(datetime, described["timestamp"]).isoformat(sep=" ", timespec="seconds")
    numbers = (int(facts[name]) for name in ("total_rows", "total_files_size", "total_data_files"))
    return Version(cast(int, described["version"]), time, *numbers)
