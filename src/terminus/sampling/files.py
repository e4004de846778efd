"""A user's file in, whole and bounded; a new file out, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from terminus.bounded_files import read_bounded
from terminus.errors import UserError
from terminus.images import Dropped

IMAGE_BYTES = 1 << 28
"""Bytes of the largest image that is read."""


def read_file(path: Path, limit: int = IMAGE_BYTES) -> bytes:
    """The bytes of a regular file; links are followed, for the user named them. UserError if that cannot be."""
    try:
        target = path.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"This file cannot be read ({error})", where=str(path)) from error
    data = read_bounded(target, target.parent, limit)
    if isinstance(data, Dropped):
        detail = f" ({data.detail})" if data.detail else ""
        raise UserError(f"This file is not used: {data.reason}{detail}", where=str(path))
    return data


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 of the files one after the other, in hex; however large, they are never in memory."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def write_new(path: Path, data: bytes) -> None:
    """FileExistsError rather than overwrite; what the disk did not take whole, or Ctrl-C cut off, is removed again."""
    # "x" fails where the name is taken, be it between looking and writing.
    file = path.open("xb")
    try:
        with file:
            file.write(data)
    except (OSError, KeyboardInterrupt):
        path.unlink(missing_ok=True)
        raise
