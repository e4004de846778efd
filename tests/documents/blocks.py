"""The fenced code blocks of README.md and docs/: where each is, what language it is, and whether it says it cannot run.

A block that cannot be run here has a line `<!-- not run: REASON -->` above it. Readers do not see it; the tests count
the reasons, so none is added in silence.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^>]*?) -->\n+)?"
    r"^[ ]*```(?P<language>\w*)\n(?P<text>.*?)^[ ]*```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    """Below the repository: `docs/start.md`."""
    line: int
    language: str
    text: str
    """Without the indentation of its fence."""
    reason: str | None
    """Why it is not run; None: it is."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    """Every block, page by page, in the order of the page."""
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(content):
            line = content[: match.start("language")].count("\n") + 1
            text = textwrap.dedent(match["text"])
            yield Block(str(page.relative_to(ROOT)), line, match["language"], text, match["reason"])


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, comments left out, lines that end in a backslash joined."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        command: list[str] = []
        for token in lexer:
            if set(token) <= set("|&;"):
                yield command
                command = []
            else:
                command.append(token)
        if command:
            yield command


def ours(command: list[str]) -> list[str] | None:
    """The arguments of `terminus` in a command, also behind `torchrun ... -m`; None where it is another program."""
    for index, token in enumerate(command):
        if token == "terminus" or token.endswith("/terminus"):
            return command[index + 1 :] if index == 0 or command[index - 1] in ("-m", "exec") else None
    return None
