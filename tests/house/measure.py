"""Measures how dense the source is: `python tests/house/measure.py [FOLDER]` prints the table.

A decision is an `if`, a loop, an `except`, a `case`, a conditional expression, each `and` or `or`, and each `for` and
`if` of a comprehension. Cyclomatic complexity (McCabe 1976) is one more than the decisions of a function. Code lines
are neither blank nor comments; decisions are counted over the lines of function bodies without their docstrings.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
ONE_DECISION = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)


@dataclass
class Density:
    """Counts over one tree of sources."""

    files: int = 0
    code_lines: int = 0
    body_lines: int = 0
    comments: int = 0
    decisions: int = 0
    complexities: list[tuple[int, str]] = field(default_factory=list)
    """Of each function, with its place."""
    homes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Public top-level name to the files that define it."""
    nested: list[str] = field(default_factory=list)
    """Places of conditional expressions inside others."""
    crowded: list[str] = field(default_factory=list)
    """Places of comprehensions with more than one `if` or more than two `for`s."""
    casts: int = 0

    @property
    def comments_per_100(self) -> float:
        return 100 * self.comments / self.code_lines

    @property
    def decisions_per_100(self) -> float:
        return 100 * self.decisions / self.body_lines

    @property
    def complexity_p95(self) -> int:
        ordered = sorted(value for value, _ in self.complexities)
        return ordered[int(0.95 * len(ordered))]

    @property
    def shared_names(self) -> dict[str, list[str]]:
        return {name: files for name, files in self.homes.items() if len(files) > 1}


def decisions(node: ast.AST) -> int:
    """All decisions below a node."""
    found = 0
    for inner in ast.walk(node):
        if isinstance(inner, ONE_DECISION):
            found += 1
        elif isinstance(inner, ast.comprehension):
            found += 1 + len(inner.ifs)
        elif isinstance(inner, ast.BoolOp):
            found += len(inner.values) - 1
    return found


def functions(node: ast.AST) -> Iterator[Function]:
    return (inner for inner in ast.walk(node) if isinstance(inner, Function))


def body_lines(module: ast.Module, lines: list[str]) -> set[int]:
    """Numbers of the code lines inside function bodies, docstrings left out."""
    numbers: set[int] = set()
    for function in functions(module):
        for statement in function.body[1 if ast.get_docstring(function) else 0 :]:
            numbers.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
    return {number for number in numbers if is_code(lines[number - 1])}


def is_code(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


def is_crowded(node: ast.AST) -> bool:
    if not isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return False
    return len(node.generators) > 2 or sum(len(part.ifs) for part in node.generators) > 1


def measure(root: Path) -> Density:
    """The counts over every Python file below `root`."""
    result = Density()
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines, module, name = text.splitlines(), ast.parse(text), str(path.relative_to(root))
        result.files += 1
        result.code_lines += sum(is_code(line) for line in lines)
        result.body_lines += len(body_lines(module, lines))
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        result.comments += sum(token.type == tokenize.COMMENT for token in tokens)
        result.decisions += decisions(module)
        result.complexities += [(1 + decisions(one), f"{name}:{one.lineno} {one.name}") for one in functions(module)]
        for statement in module.body:
            if isinstance(statement, Function | ast.ClassDef) and not statement.name.startswith("_"):
                result.homes[statement.name].append(name)
        for node in ast.walk(module):
            if isinstance(node, ast.IfExp) and any(
                isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node
            ):
                result.nested.append(f"{name}:{node.lineno}")
            if is_crowded(node):
                result.crowded.append(f"{name}:{node.lineno}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "cast":
                result.casts += 1
    return result


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "src" / "terminus"
    found = measure(root)
    values = sorted((value for value, _ in found.complexities), reverse=True)
    print(f"files {found.files}, code lines {found.code_lines}, in function bodies {found.body_lines}")
    print(f"comments per 100 code lines {found.comments_per_100:.1f}")
    print(f"decisions per 100 lines of function bodies {found.decisions_per_100:.1f}")
    print(f"cyclomatic complexity: mean {sum(values) / len(values):.1f}, p95 {found.complexity_p95}, max {values[0]}")
    print(f"public names in several files {len(found.shared_names)} of {len(found.homes)}; casts {found.casts}")
    print(f"conditional expressions inside others {len(found.nested)}, crowded comprehensions {len(found.crowded)}")
    for value, place in sorted(found.complexities, reverse=True)[:40]:
        if value > 13:
            print(f"  {value} {place}")


if __name__ == "__main__":
    main()
