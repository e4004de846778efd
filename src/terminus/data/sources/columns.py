"""The meaning of a table's columns: which one is the caption, which one a score, and what their values must be.

Data sets name the same thing in many ways and fill it in more. A value that says nothing (null, NaN, an empty text) is
None; one that is not what its role needs drops its row with a reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from terminus.conditioning import Size
from terminus.data.caption import Caption
from terminus.data.record import SourceMetadata
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.images import Dropped

MAX_CAPTION_BYTES = 65536

FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "width": ("WIDTH", "original_width"),
    "height": ("HEIGHT", "original_height"),
    "similarity": (
        "similarity", "clip_similarity_vitl14", "clip_l14_similarity_score", "clip_similarity_vitb32",
        "clip_b32_similarity_score",
    ),
    "unsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "nsfw": ("NSFW",),
    "watermark": ("pwatermark", "watermark_score"),
    "aesthetic": ("AESTHETIC_SCORE", "aesthetic", "aesthetic_score_laion_v2"),
    "md5": ("md5",),
    "sha256": ("sha256",),
    "licence": ("LICENSE", "LICENCE"),
    "tags": ("tags",),
})  # fmt: skip
"""The roles of the columns that are read, and the names that they go by, the best first."""

NSFW: Mapping[str, float] = MappingProxyType({"unlikely": 0.0, "unsure": 0.5, "nsfw": 1.0})
"""LAION-400M's words as probabilities; they count where there is no `punsafe`."""

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_LICENCE_UNKNOWN = {"", "?", "unknown", "none", "null"}


@dataclass(frozen=True)
class Columns:
    """Which columns to read: what each is for (its role), and how to find it."""

    names: Mapping[str, tuple[str, ...]]
    """Role to the names it goes by, the best first; their case does not matter."""
    chosen: Mapping[str, str]
    """Role to the name that the recipe gives it, which must then exist."""
    needed: tuple[tuple[str, ...], ...] = ()
    """Of each of these groups of roles at least one must be found."""

    def find(self, present: Sequence[str], where: str) -> dict[str, str]:
        """Role to column, of those in `present`. `UserError` that lists them if one that must exist does not."""
        found = self.among(present)
        absent = [name for role, name in self.chosen.items() if role not in found]
        absent += [" or ".join(group) for group in self.needed if not any(role in found for role in group)]
        if absent:
            listed = ", ".join(printable_caption(name) for name in present[:100]) or "none"
            raise UserError(
                f"there is no column for {', '.join(absent)}",
                where=where,
                rule=f"The columns here are: {listed}",
                fix="Say under `columns` of the source which one it is, such as `columns: {caption: alt_text}`.",
            )
        return found

    def among(self, present: Sequence[str]) -> dict[str, str]:
        """Role to column, where there is one."""
        # Of columns that differ only in case, the first.
        folded: dict[str, str] = {}
        for name in present:
            folded.setdefault(name.casefold(), name)
        found: dict[str, str] = {}
        for role in {**self.names, **self.chosen}:
            wanted = (self.chosen[role],) if role in self.chosen else self.names[role]
            # A name as it is written goes before one in another case; among these the best first.
            exact = [name for name in wanted if name in present]
            alike = [folded[name.casefold()] for name in wanted if name.casefold() in folded]
            if exact or alike:
                found[role] = (exact or alike)[0]
        return found


class BadRow(ValueError):
    """A row that cannot be used, as the `Dropped` that says why."""

    def __init__(self, reason: str, detail: str) -> None:
        self.dropped = Dropped(reason, detail)
        super().__init__(detail)


@dataclass(frozen=True)
class ColumnRow:
    """One row, by roles. The readers of its values raise `BadRow` where one is not what the role needs."""

    id: str
    """File (below the place) and number of the row in it, from 0: `en/part-0.parquet#17`."""
    values: Mapping[str, object]
    columns: Mapping[str, str]
    """Role to column, for messages."""
    problem: Dropped | None = None
    """Set where the row, or all rows from here to the next that is given, cannot be read."""
    stamp: str = ""
    """Of the file, set with `problem`."""

    def text(self, role: str) -> str | None:
        """Stripped; None where there is nothing."""
        value = self.values.get(role)
        if isinstance(value, int | float) and not isinstance(value, bool):
            # NaN, which pandas writes for a missing text, is the only value that differs from itself.
            value = None if value != value else str(value)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(role, value, "text")
        try:
            # A lone surrogate would fail later, where it is stored.
            value.encode()
        except UnicodeEncodeError:
            raise self._wrong(role, value, "UTF-8") from None
        return value.strip() or None

    def number(self, role: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """Within `low` and `high`; None for nothing, NaN and infinity."""
        value = self.values.get(role)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        try:
            # Python takes both for numbers: True is 1, and b"7" is 7.
            if isinstance(value, bool | bytes):
                raise TypeError
            number = float(value)  # pyright: ignore[reportArgumentType]  (what has no float raises TypeError)
        except (TypeError, ValueError, OverflowError):
            raise self._wrong(role, value, "a number") from None
        if not math.isfinite(number):
            return None
        if not low <= number <= high:
            raise self._wrong(role, value, f"within {low:g} and {high:g}")
        return number

    def size(self, width: str = "width", height: str = "height") -> Size | None:
        """In pixels; None unless both are given and positive."""
        sides = self.number(height), self.number(width)
        whole = [int(side) for side in sides if side is not None and side >= 1]
        return Size(*whole) if len(whole) == 2 else None

    def texts(self, role: str) -> list[str]:
        """The texts of a cell, which is one text or a list of them: those that are not empty, on one line each,
        without control characters."""
        value = self.values.get(role)
        several = cast("list[object]", value) if isinstance(value, list) else [value]
        found: list[str] = []
        for one in several:
            text = ColumnRow(self.id, {role: one}, self.columns).text(role) or ""
            if len(text.encode()) > MAX_CAPTION_BYTES:
                raise BadRow("caption cannot be read", f"it is longer than {MAX_CAPTION_BYTES} bytes")
            if line := one_line(text):
                found.append(line)
        return list(dict.fromkeys(found))

    def captions(self, role: str) -> tuple[Caption, ...]:
        """With the name of their column as origin."""
        return tuple(Caption(text, self.columns[role]) for text in self.texts(role))

    def tags(self, role: str) -> tuple[str, ...]:
        """The tags of a list, or of a text with commas between them; in lower case."""
        words = (word.strip().casefold() for text in self.texts(role) for word in text.split(","))
        return tuple(dict.fromkeys(word for word in words if word))

    def image(self) -> tuple[bytes | None, str | None]:
        """The bytes in role `image` (plain, or in a struct {bytes, path}), and the URL there or in `url`."""
        value = self.values.get("image")
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            return None, value
        if isinstance(value, dict):
            value = cast("dict[str, object]", value).get("bytes")
        if value is not None and not isinstance(value, bytes):
            raise self._wrong("image", value, "the bytes of an image")
        url = self.text("url")
        if value or url:
            return value or None, url
        raise BadRow("row names no image", "it has neither bytes nor a URL")

    def licence(self) -> str | None:
        """None where it is unknown, which LAION writes as "?"."""
        text = self.text("licence")
        return None if text is None or text.casefold() in _LICENCE_UNKNOWN else printable_caption(text)

    def _wrong(self, role: str, value: object, wanted: str) -> BadRow:
        shown = printable_caption(
            repr(value) if len(repr(value)) <= 60 else f"{type(value).__name__} {repr(value)[:50]}..."
        )
        return BadRow(
            "value of the wrong type", f"{printable_caption(self.columns.get(role, role))} is {shown}, not {wanted}"
        )


def one_line(text: str) -> str:
    """Without line breaks, repeated spaces and control characters; "" where nothing is left that can be seen, as of
    zero-width spaces alone. (Within a text these may join what belongs together, as in emoji and in Persian.)"""
    line = " ".join(_CONTROL.sub("", text).split())
    return line if any(letter.isprintable() and letter != " " for letter in line) else ""


def metadata(row: ColumnRow) -> SourceMetadata:
    """The image's metadata, from the usual columns."""
    return SourceMetadata(
        watermark=row.number("watermark", 0.0, 1.0),
        unsafe=_unsafe(row),
        aesthetic=row.number("aesthetic"),
        similarity=row.number("similarity", -1.0, 1.0),
        tags=row.tags("tags"),
        size=row.size(),
    )


def column_checksum(row: ColumnRow) -> str | None:
    """ "sha256:..." or "md5:..." of the file's bytes, if there is such a column."""
    for role, digits in (("sha256", 64), ("md5", 32)):
        if text := row.text(role):
            if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", text):
                raise BadRow("value of the wrong type", f"{row.columns[role]} is not {digits} hexadecimal digits")
            return f"{role}:{text.lower()}"
    return None


def _unsafe(row: ColumnRow) -> float | None:
    score = row.number("unsafe", 0.0, 1.0)
    if score is not None:
        return score
    # Without a probability, LAION-400M's words, a truth value, or a number under that name.
    word = row.values.get("nsfw")
    if isinstance(word, str) and word.strip().casefold() in NSFW:
        return NSFW[word.strip().casefold()]
    if isinstance(word, bool):
        return float(word)
    if isinstance(word, str) and word.strip().casefold() in ("", "none", "null", "nan"):
        return None
    return row.number("nsfw", 0.0, 1.0)
