"""The field's words: what decisions/0007-names.md has replaced does not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORMER = re.compile(r"(?<![a-z])(codecs?|towers?|pictures?)(?![a-z])", re.IGNORECASE)
PLACES = (
    "src/**/*.py",
    "src/**/*.j2",
    "recipes/**/*.yaml",
    "docs/**/*.md",
    "scripts/*.py",
    "benchmarks/**/*.md",
    "*.md",
)
ALLOWED = {
    "docs/decisions/0007-names.md": "the table of former words",
    "docs/nano/README.md": "the card of a run that was trained and judged before",
    "src/terminus/config/errors.py": "what a former setting is called now",
    "src/terminus/data/captioning/answer.py": "what captioning models say",
    "src/terminus/data/sources/coco.py": "Python's module of that name",
}


def files() -> list[Path]:
    found = {path for pattern in PLACES for path in ROOT.glob(pattern)}
    return sorted(path for path in found if str(path.relative_to(ROOT)) not in ALLOWED)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_former_words_do_not_come_back(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if FORMER.search(line)] == []


@pytest.mark.parametrize("name", ALLOWED)
def test_each_exception_is_needed(name: str):
    assert FORMER.search((ROOT / name).read_text(encoding="utf-8"))
