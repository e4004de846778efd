"""The process among others: its streams, and what the user's machine refuses.

A full disk, a name that is too long, output that cannot be written: none of it is a defect of ours, so a command that
meets it ends as for any other wrong input.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import sys

from terminus.errors import EXIT_STOPPED, printable

_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENXIO,
}  # fmt: skip
"""ENOENT is none: a file that may be missing is looked for before it is opened."""
_LONGEST_NAME = 255


def refusal(error: OSError) -> str | None:
    """The paragraph for an error of the user's machine, whichever file it was about; None for any other."""
    if error.errno not in _REFUSALS:
        return None
    if error.filename is None:
        return f"The system refused to read or write ({error.strerror})."
    name = str(error.filename)
    where = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}... ({len(name)} characters)"
    return f"{where}: The system refused to read or write this ({error.strerror})."


def unwritten() -> str | None:
    """The paragraph for printed lines that did not arrive; None if all did.

    They are let go then: Python would try once more at its end, and end with code 120.
    """
    problem: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            problem = problem or error
            # The null device takes what is left in the buffer, at the end of Python too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if problem is None:
        return None
    return (
        f"The output could not be written ({problem.strerror or problem}). "
        "Send it where there is room, and run the command again: what it has saved is kept."
    )


def prepare_streams() -> None:
    """Output that is closed (`>&-`) or that cannot hold every character must not fail work that is done."""
    # Python's stream for a descriptor that is closed.
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays open to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def log_to_stderr() -> None:
    """Sends log messages, which are for the user, to stderr as plain lines: stdout holds results alone."""
    logger = logging.getLogger("terminus")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def fail(paragraph: str, code: int, debug: bool) -> int:
    """Prints the paragraph to stderr and returns `code`.

    Without wrapping, which would break `file:line:column` apart, and without markup.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    text = Text.assemble(("error: ", "bold red") if code != EXIT_STOPPED else "", printable(paragraph))
    with contextlib.suppress(OSError):  # nowhere to say it: the code still does
        if debug:
            console.print_exception()
        console.print(text, soft_wrap=True)
    return code


def reader_is_gone() -> bool:
    """Whether whoever read stdout has closed it."""
    stdout = sys.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, 0)
    # A pipe without a reader is in error; nothing is written to find that out.
    broken = any(event & select.POLLERR for _, event in poll.poll(0))
    # rich has already put the null device there when it meets a closed pipe
    return broken or os.path.samestat(os.fstat(stdout), os.stat(os.devnull))
