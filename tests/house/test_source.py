"""The limits that CONTRIBUTING.md states, on every source file: sizes, names, layers, lint, types."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
WRITTEN = sorted(
    path
    for folder, pattern in (
        ("src", "*.py"),
        ("docs", "*.md"),
        ("recipes", "*.yaml"),
        ("benchmarks", "*.py"),
        (".", "*.md"),
    )
    for path in ((ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern))
)
MAX_FILE = 400
MAX_FUNCTION = 60


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def lines_matching(pattern: str, paths: list[Path]) -> list[str]:
    found = re.compile(pattern)
    return [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if found.search(line)
    ]


def test_there_is_source_to_check():
    assert len(SOURCES) > 20


def test_files_are_short():
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_functions_are_short():
    long = [
        f"{relative(path)}:{node.lineno} {node.name} has {length} lines"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    ]
    assert long == []


def test_every_file_says_why_it_exists():
    silent = [relative(path) for path in SOURCES if path.stat().st_size and not ast.get_docstring(tree(path))]
    assert silent == []


def test_no_name_is_a_drawer_for_anything():
    drawers = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")
    named = [path for path in (ROOT / "src").rglob("*") if drawers.search(path.stem)]
    assert named == []


def test_nothing_is_left_for_later():
    assert lines_matching(r"\b(TODO|FIXME|XXX|HACK)\b", SOURCES) == []


def test_no_path_of_one_machine():
    assert lines_matching(r"(?<![\w.:/-])/(work|home|Users|root|tmp)/", WRITTEN) == []


def catch_alls(module: ast.Module) -> Iterator[ast.ExceptHandler]:
    """Handlers of everything. One that raises again is a clean-up, not a catch."""
    for node in ast.walk(module):
        if isinstance(node, ast.ExceptHandler):
            name = node.type.id if isinstance(node.type, ast.Name) else None
            raises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            if (node.type is None or name in ("Exception", "BaseException")) and not raises:
                yield node


def test_only_the_process_boundary_catches_everything():
    found = [f"{relative(path)}:{node.lineno}" for path in SOURCES for node in catch_alls(tree(path))]
    assert [place for place in found if not place.startswith("src/terminus/cli.py:")] == []
    assert len(found) == 1, "the boundary itself, and so a sign that this test can see one"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)


def script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff(arguments: tuple[str, ...]):
    result = run(script("ruff"), *arguments, "--no-cache", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_imports_go_downwards_only():
    result = run(script("lint-imports"), "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_types_are_strict():
    result = run(script("pyright"), "--pythonpath", sys.executable)
    assert result.returncode == 0, result.stdout + result.stderr


def test_scripts_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
