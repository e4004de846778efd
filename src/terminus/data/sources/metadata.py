"""Captions in `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, as Hugging Face's "ImageFolder" has them.

Each row names an image by its path below the folder that the file lies in. Rows wait in a scratch database until the
walk through the folder meets their image, so that memory does not grow with them. What a row names is only compared
with the names that the walk finds, and never opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from terminus.data.caption import Caption
from terminus.data.duplicates import scratch
from terminus.data.record import Candidate
from terminus.data.sources import tables
from terminus.data.sources.columns import FACTS, BadRow, ColumnRow, Columns
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.images import Dropped

CAPTIONS = ("text", "caption", "captions")
"""The roles that count, each a text or a list of texts; `prompt` stands in for `text`."""

_COLUMNS = Columns(
    {"file_name": ("file_name",), "text": ("text", "prompt"), "caption": ("caption",), "captions": ("captions",),
     "licence": FACTS["licence"]},
    chosen={},
    needed=(("file_name",), (*CAPTIONS, "licence")),
)  # fmt: skip

_LONGEST = 4096
"""Bytes of a path that Linux takes; splitting longer ones takes time that grows with their square."""
_FIX = "Correct it, such as the names of its columns; or rename the file, if it says nothing of the images beside it."


class Metadata:
    """The statements on images of one folder's metadata files, and of all folders in it."""

    def __init__(self, source: str, root: Path) -> None:
        self.source, self.root = source, root
        self.database = scratch()
        self.database.execute("CREATE TABLE rows (path BLOB, id TEXT, captions TEXT, licence TEXT)")
        self.database.execute("CREATE INDEX paths ON rows (path)")

    def read(self, path: Path) -> Iterator[Candidate]:
        """Takes the rows of a file, and gives those that are of no use, with the reason.

        `UserError` if the file cannot be read, lies outside the folder, lacks the columns, or has no row that can be
        read.
        """
        # The file itself may be a link.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise UserError(
                "this link leads out of the folder",
                where=printable_caption(str(path)),
                rule=f"Only what lies in {printable_caption(str(self.root))} is read",
                fix="Put the file in place of the link, or remove it.",
            )
        folder = path.parent.relative_to(self.root)
        # Each row waits for its image, or is told as one of no use; a file of which no row can be read is an error.
        read, unread = 0, ""
        for row in _rows(path):
            identity = f"{printable_caption(folder.as_posix())}/{row.id}".removeprefix("./")
            problem = row.problem
            if problem is None:
                read += 1
                try:
                    self._add(folder, identity, row)
                except BadRow as error:
                    problem = error.dropped
            else:
                unread = unread or f"{row.id}: {problem.detail}"
            if problem is not None:
                yield Candidate(self.source, identity, problem=problem)
        if unread and not read:
            raise _broken(path, f"none of its rows can be read ({unread})")

    def take(self, path: Path) -> tuple[tuple[Caption, ...], str | None]:
        """Captions and licence of an image, in the order of the files and of their rows; at most once."""
        key = (os.fsencode(path.relative_to(self.root)),)
        found = self.database.execute(
            "SELECT captions, licence FROM rows WHERE path = ? ORDER BY rowid", key
        ).fetchall()
        if found:
            self.database.execute("DELETE FROM rows WHERE path = ?", key)
        captions = (Caption(text, origin) for several, _ in found for text, origin in json.loads(several))
        return tuple(dict.fromkeys(captions)), next((licence for _, licence in found if licence), None)

    def unmatched(self) -> Iterator[Candidate]:
        """The rows that are left when all images were met, with the reason."""
        for identity, path in self.database.execute("SELECT id, path FROM rows ORDER BY rowid"):
            yield Candidate(self.source, identity, problem=self._absent(Path(os.fsdecode(path))))

    def _add(self, folder: Path, identity: str, row: ColumnRow) -> None:
        # Names that cannot be of a file in this folder.
        name = row.text("file_name")
        if name is None:
            raise BadRow("row names no image", "no file_name")
        if len(os.fsencode(name)) > _LONGEST:
            raise BadRow("row names no image", f"a name of {len(name)} letters")
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
            raise BadRow("name leads out of the folder", printable_caption(name[:200]))
        captions = [(one.text, one.origin) for role in CAPTIONS for one in row.captions(role)]
        values = (os.fsencode(folder / parts), identity, json.dumps(captions), row.licence())
        self.database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", values)

    def _absent(self, name: Path) -> Dropped:
        shown = printable_caption(name.as_posix()[:200])
        # Why the walk has not met it: behind a link, there but no image, or not there.
        if any(os.path.islink(self.root / folder) for folder in list(name.parents)[:-1]):
            return Dropped("link to a folder", shown)
        if os.path.lexists(self.root / name):
            return Dropped("row names no image", shown)
        return Dropped("image is missing", shown)


def _rows(path: Path) -> Iterator[ColumnRow]:
    try:
        for row in tables.table_rows(str(path), _COLUMNS):
            if row.problem is not None and row.problem.reason == "table cannot be read":
                raise _broken(path, f"this file cannot be read ({row.problem.detail})")
            yield row
    except UserError as error:
        raise UserError(error.what, where=error.where, rule=error.rule, fix=_FIX) from None


def _broken(path: Path, what: str) -> UserError:
    rule = "It is CSV with a header, JSON Lines (an object a line) or Parquet, in UTF-8, with a column `file_name`"
    return UserError(what, where=printable_caption(str(path)), rule=rule, fix=_FIX)
