"""Files and folders that are either whole or not there, whatever ends the process.

Where the disk itself fails, the user gets one paragraph that says what was being written, and that nothing is lost.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from terminus.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(UserError):
    """There is no room; nothing is damaged, and trying again later is worth it."""


@contextmanager
def writing(what: str, where: Path) -> Generator[None]:
    """Turns a disk that is read-only or not there into a `UserError` that names `what` and `where`.

    One that is full, or a quota that is used up, makes it a `DiskFull`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        kind = DiskFull if is_full(error) else UserError
        raise kind(
            f"{what} cannot be written ({reason})",
            where=str(where),
            rule="What was saved before is untouched",
            fix="Make room, or allow writing there; the same command then continues",
        ) from error


def is_full(error: OSError | SafetensorError) -> bool:
    """Whether room would help."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    number = re.search(r"os error (\d+)", str(error))  # the only place where safetensors says it
    return number is not None and int(number[1]) in _FULL


def require_room(folder: Path, size: int) -> None:
    """Raises the error of a full disk before a byte is written, if `size` bytes do not fit."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB are free and {size / 1e9:.2f} GB are needed")


def write_whole(path: Path, text: str) -> None:
    """Replaces a text file at once."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    fsync(temporary)
    temporary.replace(path)


@contextmanager
def whole_folder(target: Path) -> Generator[Path]:
    """An empty folder to write into, which takes the name `target` when the block ends without an error.

    A kill leaves the old folder, the new one, or in the instant between two renames none; never a part of one.
    """
    for stale in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary, old = (target.with_name(f".{target.name}-{uuid.uuid4().hex}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            fsync(path)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        fsync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def fsync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
