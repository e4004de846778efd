"""Rows that are compared with their checksums as they are read: a damaged one costs itself, by name.

What happened to a file shows in one of two ways: the reader refuses it, or reads other values than were written. A
disk or network that does not answer is neither: what it holds may be whole, and a run that went on without it would
not see the same rows when it is continued. Rows that were written before there were checksums are taken as they are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from terminus.data.checksums import CHECKSUM, checksum
from terminus.data.record import ImageRow
from terminus.data.schema import read_row
from terminus.data.store import View
from terminus.data.unreadable import reason
from terminus.errors import UserError

Row = dict[str, object]

log = logging.getLogger("terminus")

_UNANSWERED = re.compile(r"os error|not found|Generic (?!LocalFileSystem)", re.IGNORECASE)
"""Lance's words where the system or the network failed."""
DIFFERS = "not what was written, by its checksum"
_NAMING = ("key", "source", "source_id")


@dataclass(frozen=True)
class Damage:
    """A row that is not what was written."""

    number: int
    """In its table, 0-based."""
    name: str
    """Source, id and key where they can be read; its number where not."""
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def rows_or_damage(view: View, numbers: Sequence[int], whatever: bool = False) -> list[Row | Damage]:
    """All columns of the rows with these numbers, in their order; or why there is no such row any more.

    `UserError` where disk or network do not answer; with `whatever` that is damage too.
    """
    columns = view.dataset.schema.names
    found = [
        one if isinstance(one, Damage) else checked(one, number)
        for number, one in zip(numbers, take(view, numbers, columns, whatever), strict=True)
    ]
    # Where a length in a file is damaged, it depends on the rows that are read with a row what is read of it: the
    # verdict is that on the row alone.
    for place, one in enumerate(found):
        if isinstance(one, Damage) and one.reason == DIFFERS and len(numbers) > 1:
            [found[place]] = rows_or_damage(view, [one.number], whatever)
    return found


def checked(row: Row, number: int) -> Row | Damage:
    """The row, if it is what was written."""
    stored = row.get(CHECKSUM)
    if stored is None or stored == checksum(row):
        return row
    return Damage(number, named(row, number), DIFFERS)


def named(row: Row, number: int) -> str:
    """A row's name, by which people can find it. A damaged one may hold anything, and is shown as text that cannot
    act."""
    key, source, source_id = (str(row.get(name) or "") for name in _NAMING)
    name = f"{source}/{source_id} (key {key[:16]})" if source_id else f"row {number} (key {key[:16]})"
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def by_halves(  # pyright: ignore[reportUnknownParameterType]
    view: View, numbers: Sequence[int], columns: Sequence[str], least: int = 1, whatever: bool = False
) -> Iterator[tuple[Sequence[int], pa.Table | Exception]]:
    """Some columns of these rows, in pieces that can be read, and in pieces of at most `least` rows that cannot.

    `UserError` where disk or network do not answer; with `whatever` that is damage too.
    """
    try:
        found = view.take(numbers, columns)
    except UserError as error:
        if not (whatever or of_content(error)):
            raise
        if len(numbers) <= least:
            yield numbers, error
            return
        # By halves, until what cannot be read stands alone.
        middle = len(numbers) // 2
        yield from by_halves(view, numbers[:middle], columns, least, whatever)
        yield from by_halves(view, numbers[middle:], columns, least, whatever)
        return
    yield numbers, found


def of_content(error: UserError) -> bool:
    """Whether what `View` raised is about the content of a file, and not about a disk or network that failed."""
    return error.__cause__ is not None and not _UNANSWERED.search(str(error.__cause__))


def told(one: Damage) -> None:
    """Warns of a row that is left out."""
    log.warning("damaged in the store, and left out: %s", one)


def sound_images(view: View, numbers: Sequence[int], tell: Callable[[Damage], None] = told) -> list[ImageRow]:
    """The rows of `images` with these numbers that are what was written; `tell` is called with the others."""
    found: list[ImageRow] = []
    for one in rows_or_damage(view, numbers):
        if isinstance(one, Damage):
            tell(one)
        else:
            found.append(read_row(ImageRow, one))
    return found


def take(view: View, numbers: Sequence[int], columns: Sequence[str], whatever: bool = False) -> Iterator[Row | Damage]:
    """Some columns of the rows with these numbers, in their order: whether they are what was written is not known."""
    for some, found in by_halves(view, numbers, columns, whatever=whatever):
        if isinstance(found, Exception):
            yield from (Damage(number, name_at(view, number), _unreadable(found)) for number in some)
            continue
        for place, number in enumerate(some):
            try:
                yield found.slice(place, 1).to_pylist()[0]
            except ValueError as error:  # text that is none
                yield Damage(number, f"row {number}", _unreadable(error))


def name_at(view: View, number: int) -> str:
    """The name of a row of which other columns cannot be read."""
    try:
        return named(view.take([number], _NAMING).to_pylist()[0], number)
    except (UserError, ValueError):
        return f"row {number}"


def _unreadable(error: Exception) -> str:
    cause = error.__cause__
    return f"cannot be read ({reason(cause if isinstance(cause, Exception) else error)})"
