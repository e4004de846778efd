"""What would cost minutes is refused in a moment, and what was damaged while it was written is seen."""

from __future__ import annotations

import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terminus import structure
from terminus.decode import Decoded, Limits, decode
from terminus.errors import UserError
from terminus.images import Dropped
from terminus.sampling import reading

LIMITS = Limits(file_bytes=100_000_000, pixels=20_000_000)
SECONDS = 1.5
"""Of processor time for a refusal; what is refused here would take minutes."""


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def image(width: int, height: int) -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def refused(data: bytes) -> str:
    """The reason, which is there at once."""
    begun = time.process_time()
    found = decode(data, LIMITS)
    assert time.process_time() - begun < SECONDS
    assert isinstance(found, Dropped)
    return found.reason


def with_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    return data[:end] + count * data[last:end] + data[end:]


def test_a_jpeg_of_thousands_of_scans_is_refused():
    plain = encoded(image(1200, 900), progressive=True)
    assert isinstance(decode(plain, LIMITS), Decoded)
    assert isinstance(decode(with_scans(plain, 20), LIMITS), Decoded)
    assert refused(with_scans(plain, 6000)) == "too many scans"


def test_a_large_image_may_have_fewer_scans(monkeypatch: pytest.MonkeyPatch):
    plain = encoded(image(120, 90), progressive=True)
    scans = plain.count(b"\xff\xda")
    monkeypatch.setattr(structure, "SCANNED_PIXELS", 120 * 90 * (scans + 5))
    assert isinstance(decode(with_scans(plain, 5), LIMITS), Decoded)
    assert refused(with_scans(plain, 6)) == "too many scans"
    monkeypatch.undo()
    assert structure.SCANNED_PIXELS // 89_478_485 >= 16, "as many as the finest encoders make of the largest image"


def test_what_only_looks_like_a_scan_does_not_count():
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + 30_000 * b"\xff\xda"
    plain = encoded(image(64, 64), progressive=True)
    assert isinstance(decode(plain[:2] + comment + plain[2:], LIMITS), Decoded)


SEGMENT, CHUNK = b"\xff\xfe\x00\x02", struct.pack(">I4sI", 0, b"teSt", zlib.crc32(b"teSt"))


@pytest.mark.parametrize("between", [SEGMENT * 4_000_000, b"\xff" * 16_000_000, b"\x00" * 16_000_000])
def test_a_jpeg_of_millions_of_segments_is_not_opened(between: bytes):
    plain = encoded(image(64, 64))
    assert refused(plain[:2] + between + plain[2:]) == "too many parts"


def test_segments_behind_the_first_scan_are_counted_where_they_are_walked_through():
    plain = encoded(image(64, 64), progressive=True)
    assert refused(with_scans(plain[:-2] + SEGMENT * 50_000 + plain[-2:], 100)) == "too many parts"


def test_a_png_of_millions_of_chunks_is_not_opened(tmp_path: Path):
    plain = encoded(image(64, 64), "PNG")
    data = plain[:33] + CHUNK * 1_000_000 + plain[33:]
    assert refused(data) == "too many parts"
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match="not a readable image"):
        reading.read_image_metadata(tmp_path / "a.png")


def test_a_wrong_checksum_of_pixels_is_seen_in_a_chunk_whose_own_is_right():
    plain = encoded(image(64, 64), "PNG")
    place = plain.index(b"IDAT")
    (length,) = struct.unpack_from(">I", plain, place - 4)
    body = bytearray(plain[place : place + 4 + length])
    body[-1] ^= 1  # of the Adler-32, which ends the pixels
    data = plain[:place] + bytes(body) + struct.pack(">I", zlib.crc32(body)) + plain[place + 8 + length :]
    found = decode(data, LIMITS)
    assert isinstance(found, Dropped)
    assert (found.reason, found.detail) == ("damaged", "checksum of pixels")
    again = decode(data, Limits(LIMITS.file_bytes, LIMITS.pixels, known=True))
    assert isinstance(again, Decoded)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_checksums_of_every_kind_of_png_are_right(mode: str):
    plain = image(301, 203).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        plain = Image.fromarray(np.asarray(plain).astype(np.uint16) * 257)
    assert isinstance(decode(encoded(plain, "PNG"), LIMITS), Decoded)


def test_pixels_are_inflated_no_further_than_the_image_is_large():
    """A stream of a gigabyte behind an image of four pixels."""
    stream = zlib.compressobj(9)
    body = b"".join(stream.compress(bytes(1 << 24)) for _ in range(64)) + stream.flush()
    small = encoded(Image.new("L", (2, 2)), "PNG")
    chunk = b"IDAT" + body
    data = small[:33] + struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[-12:]
    begun = time.process_time()
    assert isinstance(decode(data, LIMITS), Decoded)
    assert time.process_time() - begun < SECONDS
