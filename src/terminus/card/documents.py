"""The files of a run as trees in which anything may be missing: an absent number is None, never 0.

A card is written long after its run, perhaps from a folder that lost half its files; what cannot be read is said to be
"not measured", and no type that a file claims is believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from terminus.config.errors import Origin
from terminus.config.source import parse_yaml, plain_tree
from terminus.errors import UserError


@dataclass(frozen=True)
class Document:
    """A JSON or YAML tree. Keys are dotted paths, so they cannot name keys that have dots themselves."""

    tree: object = None

    def __bool__(self) -> bool:
        return self.tree is not None

    def at(self, path: str) -> Document:
        """The part at this path; an empty document where there is none."""
        node = self.tree
        for key in path.split("."):
            node = cast(Mapping[str, object], node).get(key) if isinstance(node, Mapping) else None
        return Document(node)

    def number(self, path: str) -> float | None:
        """A finite number; integers stay integers."""
        value = self.at(path).tree
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return value

    def text(self, path: str) -> str | None:
        """A text that is not empty."""
        value = self.at(path).tree
        return value if isinstance(value, str) and value.strip() else None

    def flag(self, path: str) -> bool | None:
        """True or false."""
        value = self.at(path).tree
        return value if isinstance(value, bool) else None

    def items(self, path: str) -> Iterator[tuple[str, Document]]:
        """The entries of a mapping, in the file's order."""
        value = self.at(path).tree
        if isinstance(value, Mapping):
            for key, entry in cast(Mapping[object, object], value).items():
                yield str(key), Document(entry)

    def list(self, path: str) -> Iterator[Document]:
        """The entries of a list."""
        value = self.at(path).tree
        if isinstance(value, list):
            for entry in cast("list[object]", value):
                yield Document(entry)

    def texts(self) -> list[str]:
        """The texts of this document, if it is a list."""
        entries = cast("list[object]", self.tree) if isinstance(self.tree, list) else []
        return [entry for entry in entries if isinstance(entry, str)]

    def scalar(self) -> str | float | bool | None:
        """This document itself, if it is one value."""
        return self.tree if isinstance(self.tree, str | int | float | bool) else None


def read_document(path: Path) -> Document:
    """An empty document for a file that does not exist; UserError for one that cannot be read."""
    if not path.is_file():
        return Document()
    try:
        return Document(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"This is not readable JSON ({error})", where=str(path)) from error


def read_yaml(path: Path) -> Document:
    """As `read_json`; nothing in the file constructs an object."""
    if not path.is_file():
        return Document()
    try:
        text = path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise UserError(f"This is not readable YAML ({error})", where=str(path)) from error
    lines = [*text.splitlines(), ""]

    def origin(row: int, column: int) -> Origin:
        return Origin(f"{path}:{row + 1}:{column + 1}", lines[min(row, len(lines) - 1)], column)

    return Document(plain_tree(parse_yaml(text, origin)))


def read_log(path: Path) -> Iterator[Document]:
    """The lines of a `.jsonl` file; a last line cut short by a kill is left out."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Document(json.loads(line))
            except ValueError as error:
                raise UserError("This row is not readable JSON", where=f"{path}:{number}") from error
