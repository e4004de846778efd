"""Model files written whole or not at all, and the same bytes for the same content.

The safetensors library writes a file's metadata in another order each time; what we publish is compared by hash, so
the header is written here: names sorted, largest numbers first as the library has them, then the tensors one by one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from terminus.errors import UserError

HASH = "modelspec.hash_sha256"
"""Metadata key whose value is filled in while writing: 0x and the SHA-256 of all bytes after the header."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes one file; where `metadata` has the key `HASH`, its value becomes the hash of the tensors' bytes."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    if HASH in metadata:
        header["__metadata__"] = dict(sorted(metadata.items())) | {HASH: _hash_text("0" * 64)}
    with path.open("wb") as file:
        length = file.write(_encode(header))
        digest = hashlib.sha256()
        for name in names:
            raw = _bytes(tensors[name])
            digest.update(raw)
            file.write(raw)
        if HASH in metadata:
            header["__metadata__"] = dict(sorted(metadata.items())) | {HASH: _hash_text(digest.hexdigest())}
            file.seek(0)
            assert file.write(_encode(header)) == length
        _sync(file)


@contextmanager
def fresh(target: Path) -> Generator[Path]:
    """A name beside `target` to write a file or folder to, which takes `target`'s place when all went well.

    UserError when something is there already: nothing is ever overwritten.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield draft
        refuse_existing(target)
        draft.rename(target)
    finally:
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
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(value: Tensor) -> memoryview:
    array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(cast(bytes, array))


def _hash_text(digits: str) -> str:
    return f"0x{digits}"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
