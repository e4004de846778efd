"""The header of a safetensors file, read without its tensors: 8 bytes of length, then JSON.

The safetensors library checks the layout (sizes, offsets, dtypes, holes, overlaps). What it lets through is checked
here: a name that stands twice, of which it would silently take the last. A file of another kind is recognised by its
first bytes, whatever its name says, and is never opened further: `.ckpt`, `.pt` and `.bin` files are pickles.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open

from terminus.errors import UserError
from terminus.model.limits import HEADER_BYTES

_KINDS = {
    b"PK\x03\x04": "a zip archive (a PyTorch .ckpt, .pt or .bin file is one, with a pickle inside)",
    b"PK\x05\x06": "an empty zip archive",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet table",
    b"\x93NUMPY": "an array of NumPy",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x7fELF": "a program",
    b"SQLite format 3": "a database of SQLite",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for",
    b"<!DOCTYPE": "an HTML page, perhaps a failed download",
    b"<html": "an HTML page, perhaps a failed download",
}
_STILL = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_RULE = "Terminus opens safetensors files only; a pickle can run code, so none is ever opened"
_AGAIN = "Download it again, or have whoever made it save it with safetensors"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it."""

    dtype: str
    """As safetensors writes it: F16, BF16, F32, ..."""
    shape: tuple[int, ...]
    span: tuple[int, int]
    """First byte and the byte after the last, counted from `Header.start`."""

    @property
    def count(self) -> int:
        """How many numbers are in it."""
        total = 1
        for side in self.shape:
            total *= side
        return total


@dataclass(frozen=True)
class Header:
    """Everything in a file but its numbers."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    start: int
    """Where the tensors' bytes begin in the file."""


def read_header(path: Path) -> Header:
    """The header of one file; UserError for anything that is not a whole safetensors file.

    Tensor names are data, of any content: they are compared with expected names, and never used as paths.
    """
    try:
        if not path.is_file():
            raise UserError("This is not a file" if path.exists() else "This file does not exist", where=str(path))
        with path.open("rb") as file:
            # Another kind of file shows in its first bytes, before a length is believed.
            first = file.read(512)
            _check_kind(first, path)
            length = int.from_bytes(first[:8], "little")
            if length > HEADER_BYTES:
                raise _broken(path, f"its first 8 bytes claim a header of {length} bytes")
            with safe_open(path, framework="numpy"):  # pyright: ignore[reportUnknownVariableType]
                pass  # opening checks the layout
            # The header once more: of a name that stands twice the library takes the last.
            file.seek(8)
            raw = file.read(length)
    except SafetensorError as error:
        raise _broken(path, str(error).removeprefix("Error while deserializing header: ")[:200]) from error
    except OSError as error:
        raise UserError(f"This file cannot be read ({error})", where=str(path)) from error
    return _parse(raw, path)


def read_numbers(header: Header, name: str, most: int = 4096) -> Float64[np.ndarray, "count"]:
    """The numbers of one small floating-point tensor, flat; UserError for more than `most`, or for another dtype."""
    info = header.tensors[name]
    if info.count > most or info.dtype not in _DTYPES:
        raise UserError(
            f"{name} is {info.dtype} {list(info.shape)}",
            where=str(header.path),
            rule=f"A table of at most {most} floating-point numbers is expected",
        )
    with header.path.open("rb") as file:
        file.seek(header.start + info.span[0])
        raw = np.frombuffer(file.read(info.span[1] - info.span[0]), dtype=_DTYPES[info.dtype])
    if info.dtype == "BF16":  # the upper half of a float32
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float64)


def _check_kind(first: bytes, path: Path) -> None:
    kind = kind_of(first)
    if kind == "an empty file":
        raise _broken(path, "it is empty")
    if kind is not None and kind != "a safetensors file":
        raise _broken(path, f"it is {kind}")


def kind_of(first: bytes) -> str | None:
    """The kind of a file by its first bytes, at best 512 of them; None for what is not known."""
    if not first:
        return "an empty file"
    # JSON follows the 8 bytes of its length, whatever they look like; a length that is none is a text's beginning.
    if first[8:9] == b"{" and first[4:8] == bytes(4):
        return "a safetensors file"
    for magic, kind in _KINDS.items():
        if first.startswith(magic):
            return kind
    kind = _kind_by_fields(first)
    if kind is None and _is_text(first):
        return "a text file"
    return kind


def _kind_by_fields(first: bytes) -> str | None:
    """A kind that more than its first bytes tell, or bytes further on."""
    # A pickle begins with 0x80 and its protocol, from 2 on.
    if first[0] == 0x80 and first[1:2] <= b"\x05":
        return "a pickle"
    if first.startswith(b"BM") and first[6:10] == bytes(4):
        return "a BMP image"
    if first[257:262] == b"ustar":
        return "a tar archive"
    if first[4:8] == b"ftyp":
        return "an AVIF or HEIF image" if first[8:12] in _STILL else "a video"
    return None


def _is_text(first: bytes) -> bool:
    """UTF-8 without control characters; its last character may be cut."""
    try:
        text = first.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = first[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\n\r\f\ufeff" for character in text)


def _parse(raw: bytes, path: Path) -> Header:
    try:
        content: dict[str, Any] = json.loads(raw, object_pairs_hook=_unique)
        stored = cast("dict[str, str] | None", content.pop("__metadata__", None))
        tensors = {
            name: TensorInfo(
                entry["dtype"], tuple(entry["shape"]), (entry["data_offsets"][0], entry["data_offsets"][1])
            )
            for name, entry in content.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise _broken(path, str(error)) from error
    return Header(path, tensors, stored or {}, 8 + len(raw))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        name, times = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name[:200]!r} stands {times} times in its header")
    return found


def _broken(path: Path, why: str) -> UserError:
    fixes = {"it is a GGUF file": "Use the safetensors file of the same model",
             "it is a text file": "`terminus inspect` says what it is"}  # fmt: skip
    fix = fixes.get(why, _AGAIN)
    return UserError(f"This is not a safetensors file: {why}", where=str(path), rule=_RULE, fix=fix)
