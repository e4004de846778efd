"""The prepared data set on disk: Lance tables in one folder or object-store URI.

Lance because a commit is atomic (a kill loses at most the batch in flight) and every state has a version
number, so a run can say exactly which rows it saw while preparation goes on adding more. Training imports
this module; it needs pylance and pyarrow, nothing of the preparation engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import lance
import numpy as np
import pyarrow as pa
from jaxtyping import Float16

from terminus.data import checksums, storage
from terminus.data.checksums import CHECKSUM, NAMES
from terminus.data.record import CaptionRow, ImageRow, LatentRow, PartRow, Rejection
from terminus.data.schema import columns_of, table_schema
from terminus.data.unreadable import reading_table, reason, unreadable
from terminus.errors import UserError

IMAGES = table_schema(ImageRow, grouped=True)
LATENTS = table_schema(LatentRow, grouped=True)
REJECTED = table_schema(Rejection)
PARTS = table_schema(PartRow)
CAPTIONS = table_schema(CaptionRow)

Row = TypeVar("Row", ImageRow, LatentRow, Rejection, PartRow, CaptionRow)
KEYS_PER_CONDITION = 1000
"""Of rows that are deleted by one condition."""
SMALL = 16 << 20
"""Bytes of a file that is worth joining with its neighbours."""
MANY_SMALL = 64
"""Fewer stay as they are: each row is then copied once in so many commits, and not at every run."""
COPIED_BYTES = 16 << 20
"""Of rows that are copied at a time."""


@dataclass(frozen=True)
class View:
    """One version of one table; never changes under the reader, whatever is appended meanwhile."""

    dataset: lance.LanceDataset

    @property
    def version(self) -> int:
        """Increases with every commit."""
        return int(self.dataset.version)

    @property
    def count(self) -> int:
        """Number of rows."""
        with reading_table(self.uri):
            return int(self.dataset.count_rows())

    def counted(self, where: str) -> int:
        """Number of rows that match a SQL condition."""
        with reading_table(self.uri):
            return int(self.dataset.count_rows(filter=where))

    @property
    def uri(self) -> str:
        """The address of the table."""
        return str(self.dataset.uri)

    def scan(self, columns: Sequence[str], where: str | None = None) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
        """The named columns of all rows, in row order; `where` is a SQL condition."""
        with reading_table(self.uri):
            return self.dataset.to_table(columns=list(columns), filter=where, scan_in_order=True)

    def batches(  # pyright: ignore[reportUnknownParameterType]
        self, columns: Sequence[str], where: str | None = None, size: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """As `scan`, in pieces of at most `size` rows: for columns too heavy to hold at once."""
        with reading_table(self.uri):
            yield from self.dataset.to_batches(columns=list(columns), filter=where, batch_size=size, scan_in_order=True)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
        """The named columns of the rows with these indices (0-based), in the order asked for."""
        with reading_table(self.uri):
            return self.dataset.take(list(rows), columns=list(columns))


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A Lance table that exists from its first row on."""

    uri: str
    schema: pa.Schema

    def latest(self) -> View | None:
        """The newest version; None while there are no rows."""
        try:
            dataset = lance.dataset(self.uri)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise unreadable(self.uri, error) from None
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.uri, error) from None
        return self._checked(View(dataset))

    def required(self) -> View:
        """The newest version, or an error that says how to get one."""
        view = self.latest()
        if view is None:
            raise UserError(
                "there is no prepared data here",
                where=self.uri,
                rule="Training reads what preparation has written",
                fix="Run `terminus prepare` with the same recipe first.",
            )
        return view

    def at(self, version: int) -> View:
        """A given version, as recorded by a run."""
        try:
            return self._checked(View(lance.dataset(self.uri, version=version)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"version {version} of the table cannot be read ({reason(error)})",
                where=self.uri,
                rule="A run continues on the version of the data that it recorded",
                fix="Restore the store, or start a new run.",
            ) from None

    def count(self) -> int:
        """Number of rows now."""
        view = self.latest()
        return view.count if view else 0

    def version(self) -> int:
        """The newest version; 0 while there are no rows."""
        view = self.latest()
        return view.version if view else 0

    def append(self, rows: Sequence[Row]) -> int:
        """Adds the rows in one atomic commit (none: no commit) and returns the version."""
        if not rows:
            return self.version()
        table = checksums.with_checksums(pa.Table.from_pylist([columns_of(row) for row in rows], schema=self.schema))
        view = self.latest()
        mode = "append" if view else "create"
        try:
            if view and (absent := set(NAMES) & set(self.schema.names) - set(view.dataset.schema.names)):
                # Rows that an earlier version wrote keep none: what they should be, nobody knows.
                view.dataset.add_columns(pa.schema([self.schema.field(name) for name in sorted(absent)]))
            return int(lance.write_dataset(table, self.uri, schema=self.schema, mode=mode).version)
        except OSError as error:
            raise UserError(
                f"the table cannot be written ({reason(error)})",
                where=self.uri,
                rule="A store is a folder that can be written and has room, or the URI of an object store",
                fix="Correct data.store, or make room; the same command continues.",
            ) from None

    def revise(self, changes: pa.Table, on: str) -> None:  # pyright: ignore[reportUnknownParameterType]
        """Replaces columns of the rows whose `on` occurs in `changes`, in one commit; no row moves.

        (Lance's own `update` and `merge_insert` would move the rows to the end.)
        """
        view = self.latest()
        if view is None or changes.num_rows == 0:
            return
        # Besides the changed columns those that the row's checksum is computed from.
        schema = view.dataset.schema
        columns = checksums.needed(schema, changes.schema.names) if CHECKSUM in schema.names else [on]
        wanted = {row[on]: row for row in changes.to_pylist()}
        revised: list[lance.FragmentMetadata] = []
        fields: set[int] = set()
        with reading_table(self.uri, "changed"):
            for fragment in view.dataset.get_fragments():
                # Files without any of the rows are not rewritten.
                if wanted.keys().isdisjoint(fragment.to_table(columns=[on]).column(on).to_pylist()):
                    continue
                # Joined by Lance's row number, which is unique where `on` may repeat.
                rows = fragment.to_table(columns=columns, with_row_id=True).to_pylist()
                revision = checksums.revision([(row, wanted[row[on]]) for row in rows if row[on] in wanted], schema)
                metadata, modified = fragment.update_columns(revision.drop([on]), "_rowid", "_rowid")[:2]
                revised.append(metadata)
                fields.update(modified)
            if revised:
                operation = lance.LanceOperation.Update(updated_fragments=revised, fields_modified=sorted(fields))
                lance.LanceDataset.commit(self.uri, operation, read_version=view.version)

    def delete(self, on: str, values: Sequence[str]) -> None:
        """The newest version no longer has the rows with these values in column `on`; older versions keep them."""
        view = self.latest()
        for start in range(0, len(values), KEYS_PER_CONDITION) if view else ():
            listed = ", ".join(quoted(value) for value in values[start : start + KEYS_PER_CONDITION])
            with reading_table(self.uri, "changed"):
                lance.dataset(self.uri).delete(f"{on} IN ({listed})")

    def compact(self) -> None:
        """Joins the small files behind the last large one, in one commit: what is read is the same, from fewer files.

        Those before it stay, since Lance puts what it joins at the end. Older versions keep the files that they name,
        so what was recorded can be read again. Nothing is done where somebody else changes the table meanwhile.
        """
        view = self.latest()
        if view is None:
            return
        # What lies behind the last large file, if it is worth a commit.
        sizes = {one.fragment_id: _size(one.metadata) for one in view.dataset.get_fragments()}
        last = max((number for number, size in sizes.items() if size >= SMALL), default=-1)
        others = sorted(number for number in sizes if number <= last)
        if len(sizes) - len(others) < MANY_SMALL:
            return
        # Lance counts in rows: sizes in bytes are divided by the mean of a row.
        row_bytes = max(1, sum(sizes.values()) // max(1, view.count))
        try:
            view.dataset.optimize.compact_files(
                target_rows_per_fragment=max(2, 2 * SMALL * MANY_SMALL // row_bytes),
                excluded_fragment_ids=others,
                materialize_deletions=False,
                batch_size=max(1, COPIED_BYTES // row_bytes),
                num_threads=1,
            )
        except OSError as error:
            if "conflict" not in str(error):
                raise UserError(
                    f"the small files of this table cannot be joined ({reason(error)})",
                    where=self.uri,
                    rule="Its rows are complete; joining them takes as much room as they do, for a moment",
                    fix="Make room; the same command continues.",
                ) from None

    def _checked(self, view: View) -> View:
        missing = set(self.schema.names) - set(NAMES) - set(view.dataset.schema.names)
        if missing:
            raise UserError(
                f"the table lacks the columns {', '.join(sorted(missing))}",
                where=self.uri,
                rule="It was written by an incompatible version of terminus, or is not ours",
                fix="Prepare into another data.store.",
            )
        return view


class Store:
    """The tables of one `data.store`."""

    def __init__(self, location: str) -> None:
        self.location = location
        scheme, separator, _ = location.partition("://")
        if separator and scheme not in storage.SCHEMES:
            raise UserError(
                f"there are no stores at {scheme}://",
                where=location,
                rule="data.store is a folder, or an s3:// or gs:// URI",
                fix="Correct the place; a folder is written without a scheme.",
            )
        root = location.rstrip("/") if "://" in location else str(_folder(location))
        self.images: Table[ImageRow] = Table(f"{root}/images.lance", IMAGES)
        self.latents: Table[LatentRow] = Table(f"{root}/latents.lance", LATENTS)
        self.rejected: Table[Rejection] = Table(f"{root}/rejected.lance", REJECTED)
        self.parts: Table[PartRow] = Table(f"{root}/parts.lance", PARTS)
        self.captions: Table[CaptionRow] = Table(f"{root}/captions.lance", CAPTIONS)

    def compact(self) -> None:
        """`Table.compact` of every table."""
        for table in (self.images, self.latents, self.rejected, self.parts, self.captions):
            table.compact()


def quoted(text: str) -> str:
    """A text as a literal of a SQL condition."""
    return "'" + text.replace("'", "''") + "'"


def pack_posterior(posterior: Float16[np.ndarray, "2 channels height width"]) -> bytes:
    """Mean and log variance as the store keeps them."""
    return np.ascontiguousarray(posterior, dtype="<f2").tobytes()


def unpack_posterior(
    data: bytes, channels: int, height: int, width: int
) -> Float16[np.ndarray, "2 channels height width"]:
    """Mean ([0]) and log variance ([1]) of one latent, before any scale factor; read-only."""
    return np.frombuffer(data, dtype="<f2").reshape(2, channels, height, width)


def _size(fragment: lance.FragmentMetadata) -> int:
    return sum(int(file.file_size_bytes or 0) for file in fragment.files)


def _folder(location: str) -> Path:
    folder = Path(location).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError("this is a file", where=location, rule="data.store is a folder, or the URI of an object store")
    return folder
