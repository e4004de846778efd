"""Model files written whole or not at all, and the same bytes for the same content.

The safetensors library writes a file's metadata in another order each time; what we publish is compared by hash, so
the header is written here: names sorted, largest numbers first as the library has them, then the tensors one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from terminus.errors import UserError

HASH = "modelspec.hash_sha256"
"""Metadata key whose value is filled in while writing: 0x and the SHA-256 of all bytes after the header."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that can be written, and their names in the format."""


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    exact: Collection[str] = (),
) -> None:
    """Writes one file; where `metadata` has the key `HASH`, its value becomes the hash of the tensors' bytes.

    Floating-point numbers are written in `dtype` where it is given, one tensor after the other, so that no second copy
    of a model is held; those named in `exact` stay as they are. OverflowError for a number that it cannot hold.
    """
    # The dtype of each tensor, and their order, which is the library's: largest numbers first.
    cast_to = {name: dtype for name in tensors.keys() - set(exact) if dtype and tensors[name].is_floating_point()}
    kinds = {name: cast_to.get(name, value.dtype) for name, value in tensors.items()}
    names = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))
    # The header. The hash is not known yet, and zeros keep its place.
    stated = dict(sorted(metadata.items())) | ({HASH: _hash_text("0" * 64)} if HASH in metadata else {})
    header: dict[str, object] = {"__metadata__": stated}
    end = 0
    for name in names:
        value = tensors[name]
        start, end = end, end + value.numel() * kinds[name].itemsize
        header[name] = {"dtype": DTYPES[kinds[name]], "shape": list(value.shape), "data_offsets": [start, end]}
    # The tensors one by one, each hashed on its way to the file.
    with path.open("wb") as file:
        length = file.write(_encode(header))
        digest = hashlib.sha256()
        for name in names:
            value = tensors[name]
            raw = _bytes(in_precision(name, value, cast_to[name]) if name in cast_to else value)
            digest.update(raw)
            file.write(raw)
        # The header once more, with the hash: it is as long as before.
        if HASH in metadata:
            stated[HASH] = _hash_text(digest.hexdigest())
            file.seek(0)
            assert file.write(_encode(header)) == length
        _sync(file)


def in_precision(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous CPU copy in `dtype` (integers stay what they are)."""
    if not value.is_floating_point():
        return value.detach().cpu().contiguous()
    result = value.detach().to("cpu", dtype).contiguous()
    if not torch.isfinite(result).all():
        raise OverflowError(f"{name} does not fit {dtype}: largest magnitude {value.abs().max().item():.3g}")
    return result


@contextmanager
def fresh(target: Path) -> Generator[Path]:
    """A name beside `target` to write a file or folder to, which takes `target`'s place when all went well.

    UserError when something is there already (nothing is ever overwritten), and when it cannot be written.
    """
    refuse_existing(target)
    # Named by the process, so that two writers do not share a draft.
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        # Something may have come there meanwhile.
        refuse_existing(target)
        draft.rename(target)
    except OSError as error:
        raise UserError(
            f"This cannot be written ({error.strerror or error})",
            where=str(target),
            rule="Nothing half-written is left",
            fix="Check its name, and the space and the permissions of its folder",
        ) from error
    finally:
        _remove(draft)


def _remove(draft: Path) -> None:
    with suppress(OSError):  # where it cannot be looked at, it was not written either
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def refuse_existing(target: Path) -> None:
    """UserError if anything, be it a broken link, has this name."""
    if os.path.lexists(target):
        raise UserError(
            "This exists already", where=str(target), rule="Nothing is overwritten", fix="Name another target"
        )


def _encode(header: Mapping[str, object]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Filled up with blanks, so that the tensors begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(value: Tensor) -> memoryview:
    # As bytes, since NumPy has no bfloat16.
    array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(cast(bytes, array))


def _hash_text(digits: str) -> str:
    return f"0x{digits}"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
