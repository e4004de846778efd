"""A file of a stranger: read only inside its folder, at most so many bytes, and without ever waiting for it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from terminus.images import Dropped


def read_bounded(path: Path, root: Path, limit: int) -> bytes | Dropped:
    """The bytes of a regular file of at most `limit` bytes inside `root`; never blocks, opens no device."""
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_relative_to(root.resolve()):
            return Dropped("link out of the folder", str(resolved))
        # Looked at before opening, because opening a device can act; non-blocking, should it change then.
        if not stat.S_ISREG(resolved.stat().st_mode):
            return Dropped("not a regular file")
        handle = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return Dropped("not a regular file")
            data = file.read(limit + 1)
    except RuntimeError:  # what pathlib makes of a loop before Python 3.13
        return Dropped("symbolic link in a loop")
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Dropped("symbolic link in a loop")
        return Dropped("cannot be read", error.strerror or type(error).__name__)
    if len(data) > limit:
        return Dropped("file too large", f"more than {limit} bytes")
    return data
