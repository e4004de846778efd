"""The targets of `measure.py`: names with one home, comments that say why, functions that fit a reader's head."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house.measure import measure

SOURCE = Path(__file__).parents[2] / "src" / "terminus"
FOUND = measure(SOURCE)
MIN_COMMENTS = 3.8
"""Per 100 lines of code."""
MAX_COMPLEXITY_P95 = 9
"""Cyclomatic complexity that 95 of 100 functions stay below or reach; `measure.py` names the others."""


def imported(file: str) -> set[str]:
    """Dotted names of everything that a file imports from elsewhere, at its top or inside its functions."""
    nodes = ast.walk(ast.parse((SOURCE / file).read_text(encoding="utf-8")))
    return {f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def is_one_meaning(name: str, files: list[str]) -> bool:
    """A verb of the command line and the function that it runs: the first file imports it, or its module."""
    command, function = sorted(files, key=lambda file: not file.startswith("cli"))[:2]
    module = "terminus." + function.removesuffix(".py").replace("/", ".")
    verb = command.startswith("cli") and len(files) == 2
    return verb and bool({module, f"{module}.{name}"} & imported(command))


def test_a_public_name_has_one_meaning():
    """Search for a name finds its one definition, and the verb of the command line that runs it."""
    shared = FOUND.shared_names
    assert shared, "the verbs themselves, and so a sign that this test can see one"
    assert {name: files for name, files in shared.items() if not is_one_meaning(name, files)} == {}


def test_comments_say_why():
    """A number of comments per 100 lines of code; a rule of thumb, and no reason to restate the code."""
    assert FOUND.comments_per_100 >= MIN_COMMENTS


def test_functions_have_few_branches():
    values = sorted(FOUND.complexities, reverse=True)
    assert FOUND.complexity_p95 <= MAX_COMPLEXITY_P95, values[: len(values) // 20]
