"""Hashes, addresses and hosts that must not be used: people's removals, known bad content, earlier mistakes.

Any number of entries: they lie in a scratch database on disk, and what an image is asked for is looked up by key.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import pyarrow as pa

from terminus.data import storage
from terminus.data.duplicates import HashIndex, scratch
from terminus.errors import UserError
from terminus.images import Dropped

REASON = "on a block-list"
LONGEST_LINE = 8192
"""Characters; a longer line is no entry but a wrong file."""

_KINDS = {64: "sha256", 32: "md5", 16: "dhash"}
_HOST = re.compile(r"(?=.{1,253}$)([\w-]{1,63}\.)+[\w-]{2,63}")


class Blocklist:
    """The entries of all lists. `UserError` for a list that cannot be read, or a line that is no entry."""

    def __init__(self, lists: Sequence[str]) -> None:
        self.database = scratch()
        self.database.execute("CREATE TABLE entries (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self.looks = HashIndex(self.database, "looks")
        self._content = hashlib.sha256()
        self.counts = dict.fromkeys((*_KINDS.values(), "url", "host"), 0)
        for place in lists:
            for number, line in enumerate(_lines(place), 1):
                # A URL may hold a #; on other lines it begins a comment.
                if entry := line.partition("#")[0].strip() if "://" not in line else line.strip():
                    self._add(entry, f"{place}:{number}")

    @property
    def digest(self) -> str:
        """Changes when entries do, hex."""
        return self._content.hexdigest()

    def address(self, url: str) -> Dropped | None:
        """Whether this URL, its host, or a domain that the host lies under, is listed."""
        if not (self.counts["url"] or self.counts["host"]):
            return None
        if self._has("url", _plain(url)):
            return Dropped(REASON, "its URL")
        # The host itself, then each domain that it lies under.
        labels = _host(url).split(".")
        for start in range(len(labels) - 1):
            domain = ".".join(labels[start:])
            if self._has("host", domain):
                return Dropped(REASON, f"host {domain}")
        return None

    def content(self, sha256: str, md5: str | None, dhash: str | None) -> Dropped | None:
        """Whether a file with these hashes (hex) is listed; a dhash counts within the distance of duplicates."""
        if self.counts["sha256"] and self._has("sha256", sha256):
            return Dropped(REASON, f"sha256 {sha256}")
        if self.counts["md5"] and md5 and self._has("md5", md5):
            return Dropped(REASON, f"md5 {md5}")
        if self.counts["dhash"] and dhash and self.looks.near(dhash):
            return Dropped(REASON, f"dhash {dhash}")
        return None

    def still(self, detail: str, url: str | None) -> bool:
        """Whether the entry for which an image was dropped, as the detail of its rejection says, is listed today."""
        # A detail begins with the kind of the entry and its value.
        kind, _, value = detail.partition(";")[0].partition(" ")
        if kind in ("sha256", "md5", "host"):
            return self._has(kind, value)
        if kind == "dhash":
            return bool(self.looks.near(value))
        return url is not None and self._has("url", _plain(url))

    def _add(self, entry: str, where: str) -> None:
        # The kind by its form: a hash by the number of its digits, a URL by its scheme, else a host.
        lowered = entry.lower()
        if re.fullmatch(r"[0-9a-f]+", lowered) and (kind := _KINDS.get(len(lowered))):
            pass
        elif "://" in entry:
            kind, lowered = "url", _plain(entry)
        elif _HOST.fullmatch(lowered):
            kind = "host"
        else:
            raise UserError(
                f"{entry[:80]!r} is no entry of a block-list",
                where=where,
                rule="A line is a sha256 (64 hex digits), an md5 (32), a dhash (16), a URL with its scheme, or a host",
                fix="Correct the line; # begins a comment.",
            )
        self.counts[kind] += 1
        self._content.update(f"{kind} {lowered}\n".encode(errors="surrogateescape"))
        if kind == "dhash":
            self.looks.add(lowered, self.counts[kind])
        else:
            self.database.execute("INSERT OR IGNORE INTO entries VALUES (?)", (_id(kind, lowered),))

    def _has(self, kind: str, value: str) -> bool:
        query = "SELECT 1 FROM entries WHERE id = ?"
        return self.database.execute(query, (_id(kind, value),)).fetchone() is not None


def _lines(place: str) -> Iterator[str]:
    """The lines of a UTF-8 text, local or remote, as they come."""
    try:
        with storage.open_input(place) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            while line := text.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(f"a line is longer than {LONGEST_LINE} characters", where=place)
                yield line
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(
            f"this block-list cannot be read ({error})",
            where=f"data.filters.blocklists: {place}",
            rule="It is a UTF-8 text with one entry a line",
            fix="Correct the path or the file.",
        ) from None


def _plain(url: str) -> str:
    """Without the fragment, which no server sees; scheme and host in small letters."""
    scheme, _, rest = url.partition("#")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}"


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _id(kind: str, value: str) -> bytes:
    return hashlib.blake2b(f"{kind} {value}".encode(errors="surrogatepass"), digest_size=16).digest()
