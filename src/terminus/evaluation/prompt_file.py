"""A file of prompts, read and checked before torch is imported."""

from __future__ import annotations

import stat
from pathlib import Path

from terminus.errors import UserError

_LARGEST_FILE = 1 << 20
_RULE = (
    "A prompts file is UTF-8 text, one prompt a line as `terminus sample --prompt` takes it; empty lines do not count"
)


def read_prompts(path: Path) -> dict[int, str]:
    """The prompts of a file by line number; UserError for a file that has none or cannot be read."""
    found: dict[int, str] = {}
    for number, line in enumerate(_text(path).split("\n"), 1):
        line = line.strip()
        if not line.isprintable():
            strange = next(char for char in line if not char.isprintable())
            what = f"This line has a character that cannot be printed (U+{ord(strange):04X})"
            raise UserError(what, where=f"{path}:{number}", rule=_RULE, fix="Remove it")
        if line:
            found[number] = line
    if not found:
        raise UserError("This file has no prompts", where=str(path), rule=_RULE, fix="Write one or more into it")
    return found


def _text(path: Path) -> str:
    try:
        # A FIFO would wait for ever, and a device would be read without end.
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError("This is not a file", where=str(path), rule=_RULE)
        if about.st_size > _LARGEST_FILE:
            rule = f"{_RULE}, and at most {_LARGEST_FILE // 1024} KiB"
            raise UserError(f"This file has {about.st_size:,} bytes", where=str(path), rule=rule)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise UserError("This is not UTF-8", where=f"{path}:{number}", rule=_RULE, fix="Save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"This cannot be read ({error.strerror or error})", where=str(path), rule=_RULE) from error
