"""Files and folders that are either whole or not there, whatever ends the process.

Where the disk itself fails, the user gets one paragraph that says what was being written, and that nothing is lost.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from terminus.errors import UserError


@contextmanager
def writing(what: str, where: Path) -> Generator[None]:
    """Turns a disk that is full, read-only or not there into a `UserError` that names `what` and `where`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"{what} cannot be written ({reason})",
            where=str(where),
            rule="What was saved before is untouched",
            fix="Make room, or allow writing there; the same command then continues",
        ) from error


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
