"""The error for a table whose files are gone, cut or damaged.

Lance tells these apart by the words of its messages alone: what reads a table's rows raises `OSError` or one of
pyarrow's exceptions, whatever is the matter.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import pyarrow as pa

from terminus.errors import UserError

_PANIC = "PanicException"
"""Rust's failed assertions in Python: derived from `BaseException` alone, in no module that could be imported."""


@contextmanager
def reading_table(uri: str, done: str = "read") -> Generator[None]:
    """Turns what Lance raises into a `UserError` that names the table and the ways back; `done` is what was tried."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise unreadable(uri, error, done) from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        failure = OSError(f"Lance does not understand its content: {error}")
        raise unreadable(uri, failure, done) from failure


def unreadable(uri: str, error: Exception, done: str = "read") -> UserError:
    """The error for a table that is there, and whose files do not let it be read."""
    folder = uri.rpartition("/")[0]
    again = f"remove {uri} and run `terminus prepare` with the same recipe, which fills it anew"
    if uri.endswith("latents.lance"):
        again = f"remove {uri} and run `terminus prepare` with the same recipe, which encodes the kept images again"
    return UserError(
        f"this table cannot be {done} ({reason(error)})",
        where=uri,
        rule="Every file of a table is needed, as it was written; a run that was begun needs the same table",
        fix=f"If the disk fails, mend it; if a file of {folder or uri} is damaged, restore it from a copy, or {again}. "
        "`terminus data verify` looks at every row.",
    )


def reason(error: Exception) -> str:
    """Lance's first line without the place in its own source code that ends it, and without its words for layers."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    line = re.sub(r",? \S+\.rs:\d+(:\d+)?$", "", line)
    line = re.sub(r"^(?:External error: |LanceError\(IO\): |Generic \w+ error: |Invalid user input: )+", "", line)
    line = re.sub(r"^Not found: \S.*/", "a file is gone: ", line)
    return line.replace("failed to fill whole buffer", "a file ends before it should")
