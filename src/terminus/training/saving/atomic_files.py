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


class Unwritten(UserError):
    """The disk did not take it; nothing is damaged, and trying again later is worth it."""


class DiskFull(Unwritten):
    """Raised where the disk is full."""


@contextmanager
def writing_file(what: str, where: Path) -> Generator[None]:
    """Turns an error of the disk into an `Unwritten` that names `what` and `where`.

    One that is full, or a quota that is used up, makes it a `DiskFull`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = number_of(error)
        if number is None and isinstance(error, SafetensorError):
            raise  # not of the disk
        kind = DiskFull if number in _FULL else Unwritten
        raise kind(
            f"{what} cannot be written ({_reason(error)})",
            where=str(where),
            rule="What was saved before is untouched",
            fix="Make room, or allow writing there; the same command then continues",
        ) from error


@contextmanager
def reading_file(what: str, where: Path) -> Generator[None]:
    """Turns an error of the disk into a `UserError` that names `what` and `where`, and says that nothing is lost."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{what} cannot be read ({_reason(error)})",
            where=str(where),
            rule="A read error does not mean damage, so nothing was renamed, removed or restarted",
            fix="Repair the disk or the permissions; the same command then continues",
        ) from error


def number_of(error: OSError | SafetensorError) -> int | None:
    """The system's number of the error, if it is one of the system."""
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"os error (\d+)", str(error))  # the only place where safetensors says it
    return None if number is None else int(number[1])


def is_full(error: OSError | SafetensorError) -> bool:
    """Whether the error is that of a full disk or quota."""
    return number_of(error) in _FULL


def _reason(error: OSError | SafetensorError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def rename(old: Path, new: Path) -> None:
    """Renames a file or folder.

    Where a network disk's server did it and its answer was lost, the request that follows finds nothing to rename.
    """
    try:
        old.rename(new)
    except FileNotFoundError:
        if old.exists() or not new.exists():
            raise


def require_room(folder: Path, size: int) -> None:
    """Raises the error of a full disk before a byte is written, if `size` bytes do not fit."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB are free and {size / 1e9:.2f} GB are needed")


def write_whole(path: Path, text: str) -> None:
    """Replaces a text file at once."""
    # Written beside it and forced to the disk; the rename then replaces the old file at once.
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    fsync(temporary)
    temporary.replace(path)


@contextmanager
def whole_folder(target: Path) -> Generator[Path]:
    """An empty folder to write into, which takes the name `target` when the block ends without an error.

    A kill leaves the old folder, the new one, or in the instant between two renames none; never a part of one.
    """
    # What a kill left of earlier tries.
    for stale in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary, old = (target.with_name(f".{target.name}-{uuid.uuid4().hex}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        # Everything is on the disk before the folder gets its name.
        for path in temporary.rglob("*"):
            fsync(path)
        # The old one moves aside, for a rename does not replace a folder that holds something.
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
