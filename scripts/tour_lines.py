"""Links every name of docs/tour.md to the line where it is defined.

    python scripts/tour_lines.py

A test compares the page with what this would write, so the lines stay true as the code moves.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.md"
NAME = re.compile(r"(?:\[)?`(terminus(?:\.\w+)+)`(?:\]\([^)]*\))?")


def linked(text: str) -> str:
    """The page with each `terminus.room.file.name` linked to its file and line; KeyError for one that is not there."""
    return NAME.sub(lambda match: f"[`{match[1]}`](../{place(match[1])})", text)


def place(name: str) -> str:
    """Where a dotted name is defined: `src/terminus/training/loop.py#L61`, or the file or folder of a module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath("src", *parts[:length])
        file = module.with_suffix(".py")
        if file.is_file():
            inside = parts[length:]
            path = file.relative_to(ROOT).as_posix()
            return f"{path}#L{line(file, inside)}" if inside else path
        if module.is_dir() and length == len(parts):
            return module.relative_to(ROOT).as_posix()
    raise KeyError(name)


def line(file: Path, names: list[str]) -> int:
    """The line, from 1, on which a function, class, method or constant of a file begins."""
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    found = 0
    for name in names:
        statement = next((one for one in body if name in defined(one)), None)
        if statement is None:
            raise KeyError(f"{'.'.join(names)} in {file.relative_to(ROOT)}")
        found = statement.lineno
        body = statement.body if isinstance(statement, ast.ClassDef) else []
    return found


def defined(statement: ast.stmt) -> set[str]:
    """The names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


if __name__ == "__main__":
    TOUR.write_text(linked(TOUR.read_text(encoding="utf-8")), encoding="utf-8")
