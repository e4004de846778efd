"""The structure of a JPEG or PNG file, read before its pixels are decoded: whether it is whole, and what it costs.

A decoder's time follows from more than the number of pixels: a progressive JPEG of 100 kB may ask for thousands of
passes over all of them, and Pillow walks through chunks, segments and what lies between them in Python.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from terminus.images import Dropped

PARTS, BYTES_PER_PART = 10_000, 256
"""A file may have so many chunks or segments, and one more for each so many bytes."""
SCANS = 100
"""Of a JPEG; encoders make 10 to 20 of the most refined."""
SCANNED_PIXELS = 1_500_000_000
"""Pixels times scans, each of which costs 1 to 2 ns: two or three seconds."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_AROUND = 12
"""Bytes of a PNG's chunk around its content: length, name, checksum."""
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
"""JPEG markers that no length follows."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends a scan: neither a stuffed byte nor a restart."""
_INFLATED = 1 << 20
"""Bytes that are inflated at a time."""
_WORST_PIXEL = 16
"""Bytes of a pixel before compression, filters and interlacing included, at most (RGBA of 16 bits: 8)."""


def crowded(data: bytes) -> Dropped | None:
    """Why a file is not even opened: it has so many parts that walking through them would take minutes."""
    if data.startswith(_PNG):
        return _counted(data, _chunks(data))
    return _counted(data, _segments(data)) if data.startswith(_JPEG) else None


def _counted(data: bytes, parts: Iterator[object]) -> Dropped | None:
    most = PARTS + len(data) // BYTES_PER_PART
    if any(number >= most for number, _ in enumerate(parts)):
        return Dropped("too many parts", f"more than {most} chunks or segments")
    return None


def costly_jpeg(data: bytes, pixels: int) -> Dropped | None:
    """Why a JPEG is not decoded: it asks for too many passes over its pixels."""
    most = min(SCANS, SCANNED_PIXELS // max(1, pixels))
    # Within compressed pixels these two bytes are nothing else. Elsewhere they may be anything: only then a walk tells.
    if not data.startswith(_JPEG) or data.count(_START_OF_SCAN) <= most:
        return None
    if refused := _counted(data, _segments(data, whole=True)):
        return refused
    # Scans up to the end of the first image: a preview may follow behind it.
    scans = 0
    for at, marker in _segments(data, whole=True):
        if marker == _END_OF_IMAGE:
            break
        scans += data.startswith(_START_OF_SCAN, at)
        if scans > most:
            return Dropped("too many scans", f"more than {most} passes over {pixels} pixels")
    return None


def damaged_png(data: bytes, inflate: bool = True) -> Dropped | None:
    """The first checksum of a PNG that is not right: the CRC-32 of a chunk or, with `inflate`, the Adler-32 of its
    pixels. Pillow compares neither for the chunks of pixels.

    The second costs a third of the time of decoding, and sees only what went wrong while the file was written.
    """
    if not data.startswith(_PNG):
        return None
    # Chunk by chunk, without a copy of any.
    view = memoryview(data)
    pixels: list[memoryview] = []
    for at, kind in _chunks(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + _AROUND + length
        name = kind.decode("ascii", "replace")
        if end > len(data):
            return Dropped("truncated", f"within chunk {name}" if name.isalpha() else "within a chunk")
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return Dropped("damaged", f"checksum of chunk {name}" if name.isalpha() else "checksum of a chunk")
        if kind == b"IDAT":
            pixels.append(view[at + 8 : end - 4])
    # The first chunk, IHDR, begins with both sides.
    width, height = struct.unpack_from(">II", data, len(_PNG) + 8)
    if inflate and not _inflates(pixels, width * height * _WORST_PIXEL + height):
        return Dropped("damaged", "checksum of pixels")
    return None


def _inflates(pixels: list[memoryview], most: int) -> bool:
    """Whether the Adler-32 of compressed bytes is right. Whatever else is wrong with them is for Pillow to judge."""
    inflate = zlib.decompressobj()
    try:
        for part in pixels:
            rest: bytes | memoryview = part
            while rest and not inflate.eof and most > 0:
                # In pieces that are thrown away, up to what such an image can have: a bomb ends early.
                most -= len(inflate.decompress(rest, _INFLATED))
                rest = inflate.unconsumed_tail
    except zlib.error as error:
        return "incorrect data check" not in str(error)
    return True


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Place and kind of each chunk of a PNG up to its end."""
    at, kind = len(_PNG), b""
    while at + _AROUND <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        yield at, kind
        at += _AROUND + length


def _segments(data: bytes, whole: bool = False) -> Iterator[tuple[int, int]]:
    """Place and marker of each segment of a JPEG before its first scan, or of all. A byte between two counts as one."""
    at = len(_JPEG)
    while at + 4 <= len(data):
        marker = data[at + 1]
        yield at, marker
        # A stray byte, a marker alone, or a segment with its length.
        if data[at] != 0xFF or marker in (0x00, 0xFF):
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            # Behind a scan's header its pixels have no length: they end at the next marker.
            scan = data.startswith(_START_OF_SCAN, at)
            if scan and not whole:
                return
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
            if scan:
                found = _MARKER.search(data, at)
                at = len(data) if found is None else found.start()
