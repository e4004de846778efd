"""Reads tar archives of samples as they stream by, and never trusts a byte of them.

An own reader of 512-byte blocks, because `tarfile` reads extended headers of any size into memory and follows chains
of them by recursion. Nothing is written to disk, no name is used as a path, no member is unpickled, and a link is
never followed. What is held is one sample. Formats: ustar, GNU long names, PAX paths and sizes; plain, gzip, zstd.

A sample is the members with one key: the path up to the first dot of its last part, as WebDataset defines it.
`n01/cat.0.JPG` is field `0.jpg` of `n01/cat`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader, RawIOBase
from typing import cast

import pyarrow as pa

from terminus.images import Dropped

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.zst")
"""Of the archives that are read; what they are is seen from their content."""
BLOCK = 512
MAX_NAME_BYTES = 1024
MAX_HEADER_BYTES = 65536
"""Of one extended header."""
MAX_MEMBERS = 1_000_000
"""Of one archive, headers included."""
MAX_SAMPLE_MEMBERS = 64
MAX_EXPANSION = 100
"""Bytes that one compressed byte may become; image files hardly shrink, zeros shrink a thousand times."""
FREE_EXPANSION = 64 << 20
"""Bytes that any compressed archive may become."""
CHUNK = 1 << 20
FETCH = 4 << 20
"""Bytes that are fetched at a time."""

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_REGULAR, _FOLDER, _PAX, _GLOBAL, _LONG_NAME, _LONG_LINK = {b"0", b"\0", b"7"}, b"5", b"x", b"g", b"L", b"K"
_UNREADABLE = {b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "FIFO"}
_EMPTY = {*_UNREADABLE, _FOLDER}
"""Types without content, whatever they claim."""
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]{1,256})=")

Wanted = Callable[[str], int]
"""From a field's name to how many bytes of it are read at most; 0 for fields that are not read."""


@dataclass
class TarSample:
    """The members of one key. With a `problem` it may not be used; with no key it is the rest of the archive."""

    key: str
    """Undecodable bytes of a name are lone surrogates, as in a file name."""
    fields: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """By lower-case ending without the first dot: only those that were wanted."""
    problem: Dropped | None = None


class _Damaged(Exception):
    """The archive cannot be read beyond this point."""

    def __init__(self, detail: str, reason: str = "damaged archive") -> None:
        self.dropped = Dropped(reason, detail)
        super().__init__(detail)


@dataclass(frozen=True)
class _Header:
    name: bytes
    size: int
    type: bytes


def samples(file: pa.NativeFile, wanted: Wanted) -> Iterator[TarSample]:  # pyright: ignore[reportUnknownParameterType]
    """Every sample, in the order of the archive; all before a damage, then one that says what the damage is.

    Members whose name (or folder) begins with ".", "_" or has no ending belong to no sample, as in WebDataset.
    """
    current: TarSample | None = None
    count = 0
    try:
        stream = _Stream(file)
        for header in _headers(stream):
            split = _split(header.name)
            # No member of any sample.
            if header.type == _FOLDER or split is None:
                stream.skip(_padded(header.size))
                continue
            key, ending = split
            # Another key ends the sample: its members lie side by side.
            if current is None or current.key != key:
                if current is not None:
                    yield current
                current, count = TarSample(key), 0
            count += 1
            if count > MAX_SAMPLE_MEMBERS:
                current.problem = Dropped("too many members", f"more than {MAX_SAMPLE_MEMBERS} with one key")
            _read(stream, header, ending, current, wanted)
    except _Damaged as error:
        if current is not None:
            # Its members may go on behind the damage.
            yield TarSample(current.key, problem=error.dropped)
        yield TarSample("", problem=error.dropped)
        return
    if current is not None:
        yield current


def _read(stream: _Stream, header: _Header, ending: str, sample: TarSample, wanted: Wanted) -> None:
    """One member's content into its sample, or the reason why the sample cannot be used."""
    # The first fault of any member counts for the whole sample; what it has read is let go.
    limit = wanted(ending)
    fault = _fault(header) if limit else None
    if fault is None and ending in sample.fields:
        fault = Dropped("member occurs twice", ending)
    if fault is None and header.size > limit > 0:
        fault = Dropped("file too large", f"{ending}: {header.size} bytes, the limit is {limit}")
    if sample.problem is None and fault is not None:
        sample.problem = fault
        sample.fields.clear()
    if limit == 0 or sample.problem is not None:
        stream.skip(_padded(header.size))
        return
    sample.fields[ending] = stream.read(header.size)
    stream.skip(_padded(header.size) - header.size)


def _fault(header: _Header) -> Dropped | None:
    parts = header.name.split(b"/")
    if header.type not in _REGULAR:
        return Dropped("not a regular file", f"a {_UNREADABLE.get(header.type, 'special member')} in the archive")
    if b"\0" in header.name or b"\\" in header.name or b".." in parts or not parts[0] or parts[0][1:2] == b":":
        return Dropped("unsafe name", "a path in the archive is absolute, leads upwards, or holds NUL or a backslash")
    return None


def _split(name: bytes) -> tuple[str, str] | None:
    """Key and ending; None for what belongs to no sample."""
    text = name.decode("utf-8", "surrogateescape").removeprefix("./")
    folder, slash, base = text.rpartition("/")
    stem, dot, ending = base.partition(".")
    hidden = any(part.startswith((".", "_")) and part not in (".", "..") for part in [*folder.split("/"), base])
    if hidden or not stem or not dot or not ending:
        return None
    return folder + slash + stem, ending.lower()


def _headers(stream: _Stream) -> Iterator[_Header]:
    """The header of every member with content. Who gets one must read or skip that content, padded to blocks."""
    long_name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    for _ in range(MAX_MEMBERS):
        block, ended = _next_header(stream)
        if not block:
            if not ended or long_name is not None or pax:
                raise _Damaged("the archive ends before its end mark", "truncated archive")
            return
        header = _header(block)
        # What stands before a member says more of it than its own header has room for.
        if header.type in (_PAX, _GLOBAL, _LONG_NAME, _LONG_LINK):
            content = _extension(stream, header.size)
            if header.type == _LONG_NAME:
                long_name = content.rstrip(b"\0")
            elif header.type == _PAX:
                pax = _records(content)
            continue
        yield _extended(header, long_name, pax)
        long_name, pax = None, {}
    raise _Damaged(f"more than {MAX_MEMBERS} members", "archive too large")


def _next_header(stream: _Stream) -> tuple[bytes, bool]:
    """The next block that is not of zeros, b"" at the end; and whether there were blocks of zeros before it, which
    mark an archive's end. Another archive may follow."""
    ended = False
    # Blocks of zeros mark the end of an archive.
    while (block := stream.block()) and not any(block):
        ended = True
    return block, ended


def _extension(stream: _Stream, size: int) -> bytes:
    """The content of an extended header."""
    if size > MAX_HEADER_BYTES:
        raise _Damaged(f"an extended header of {size} bytes, the limit is {MAX_HEADER_BYTES}")
    content = stream.read(size)
    stream.skip(_padded(size) - size)
    return content


def _extended(header: _Header, long_name: bytes | None, pax: dict[bytes, bytes]) -> _Header:
    """A member's header, with what its extended headers say in place of its own fields."""
    if header.type == b"S" or any(name.startswith(b"GNU.sparse") for name in pax):
        raise _Damaged("a sparse member, whose size is a mere claim")
    # PAX overrides GNU's long name, and both the header's own fields.
    name = pax.get(b"path", header.name if long_name is None else long_name)
    if len(name) > MAX_NAME_BYTES:
        raise _Damaged(f"a name of {len(name)} bytes, the limit is {MAX_NAME_BYTES}")
    claimed = header.size if b"size" not in pax else _number(pax[b"size"], 10)
    return _Header(name, 0 if header.type in _EMPTY else claimed, header.type)


def _header(block: bytes) -> _Header:
    """A header of POSIX.1-1988 (ustar) or GNU tar. Offsets: name 0, size 124, checksum 148, type 156, magic 257,
    prefix 345."""
    # The checksum is computed as if its own field held spaces.
    blanked = block[:148] + b" " * 8 + block[156:]
    stated, unsigned = _number(block[148:156], 8), sum(blanked)
    # Some old writers summed signed bytes.
    if stated != unsigned and stated != unsigned - 256 * sum(byte > 127 for byte in blanked):
        raise _Damaged("a header whose checksum is wrong")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    size = block[124:136]
    # GNU writes sizes of 8 GiB and more in binary, marked by the first bit.
    if size[0] == 0x80:
        value = int.from_bytes(size[1:], "big")
    elif size[0] == 0xFF:
        raise _Damaged("a member of negative size")
    else:
        value = _number(size, 8)
    kind = block[156:157]
    # Before POSIX a folder was known by its slash alone.
    if kind == b"\0" and name.endswith(b"/"):
        kind = _FOLDER
    return _Header(prefix + b"/" + name if prefix else name, value, kind)


def _number(text: bytes, base: int) -> int:
    digits = text.strip(b" \0")
    if not digits:
        return 0
    if not re.fullmatch(rb"[0-7]{1,22}" if base == 8 else rb"[0-9]{1,20}", digits):
        raise _Damaged("a number in a header that is none")
    return int(digits, base)


def _records(content: bytes) -> dict[bytes, bytes]:
    """The records of a PAX header: "LENGTH KEY=VALUE\\n", each with its own length."""
    found: dict[bytes, bytes] = {}
    position = 0
    while position < len(content) and content[position]:
        match = _PAX_RECORD.match(content, position)
        end = position + int(match[1]) if match else 0
        if match is None or end > len(content) or end <= match.end() or content[end - 1 : end] != b"\n":
            raise _Damaged("an extended header that cannot be parsed")
        found[match[2]] = content[match.end() : end - 1]
        position = end
    return found


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


class _Stream:
    """The archive's bytes, decompressed within bounds; of a plain archive, what is skipped is never fetched."""

    def __init__(self, file: pa.NativeFile) -> None:  # pyright: ignore[reportUnknownParameterType]
        self.file = file
        self.position = 0
        self.length = int(file.size())
        # Kind by content, since a name can say anything.
        start = bytes(file.read(4))
        file.seek(0)
        kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
        # Large reads, because from an object store each is a request; what is skipped within one costs nothing.
        self.plain = BufferedReader(cast("RawIOBase", file), FETCH) if kind is None else None
        if kind is not None:
            self.unpacked = pa.CompressedInputStream(pa.BufferedInputStream(file, FETCH), kind)

    def block(self) -> bytes:
        """The next 512 bytes; fewer than that only as b"", at the end."""
        block = b""
        while len(block) < BLOCK and (part := self._some(BLOCK - len(block))):
            block += part
        if 0 < len(block) < BLOCK:
            raise _Damaged("the archive ends within a header", "truncated archive")
        return block

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        self._reach(size)
        content = bytearray()
        while len(content) < size:
            part = self._some(min(CHUNK, size - len(content)))
            if not part:
                raise _Damaged("the archive ends within a member", "truncated archive")
            content += part
        return bytes(content)

    def skip(self, size: int) -> None:
        """Leaves so many bytes out."""
        self._reach(size)
        if self.plain is not None:
            self.position += size
            self.plain.seek(self.position)
            return
        while size > 0:
            part = self._some(min(CHUNK, size))
            if not part:
                raise _Damaged("the archive ends within a member", "truncated archive")
            size -= len(part)

    def _reach(self, size: int) -> None:
        """Known before anything is read: a member that claims more than there is."""
        if self.plain is not None and self.position + size > self.length:
            raise _Damaged("the archive ends within a member", "truncated archive")
        if self.plain is None and self.position + size > FREE_EXPANSION + MAX_EXPANSION * self.length:
            raise _Damaged("a member that claims more than the archive may expand to", "archive too large")

    def _some(self, size: int) -> bytes:
        try:
            part = bytes((self.plain or self.unpacked).read(size))
        except (OSError, pa.ArrowException) as error:
            raise _Damaged(str(error).partition("\n")[0]) from None
        self.position += len(part)
        # By what was fetched so far rather than by the whole, so that a bomb is found near its start.
        if self.plain is None and self.position > FREE_EXPANSION + MAX_EXPANSION * int(self.file.tell()):
            raise _Damaged(f"it expands more than {MAX_EXPANSION} times", "archive too large")
        return part
