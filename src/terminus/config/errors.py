"""Messages about wrong settings: every problem at once, each in its place in their text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from terminus.errors import UserError

LONGEST_EXCERPT = 100

RENAMED = {
    "checkpointing": "activation_checkpointing",
    "codec": "vae",
    "text": "text_encoders",
    "text_rate": "text_encoder_rate",
    "towers": "text_encoders",
    "train_text": "train_text_encoders",
}
"""Settings and values that were called otherwise before 0.1."""


@dataclass(frozen=True)
class Origin:
    """The place where something was written: a line in a file, or an argument of the command line."""

    place: str
    """`recipes/nano.yaml:12:7` (line and column from 1), or `command line: key.path=value`."""

    excerpt: str
    """The source line, or the argument."""

    caret: int
    """Column in the excerpt, from 0, at which it starts."""

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and the rule or the nearest right answer."""

    origin: Origin
    what: str
    rule: str = ""

    def __str__(self) -> str:
        sentences = " ".join(text for text in (self.what, self.rule) if text)
        return f"{self.origin.place}: {sentences}\n{_excerpt(self.origin)}"


class ConfigError(UserError):
    """Every problem of a recipe and its overrides, none held back for the next attempt."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        heading = f"{len(self.problems)} problems in the settings:\n\n" if len(self.problems) > 1 else ""
        text = heading + "\n".join(str(problem) for problem in self.problems)
        super().__init__(text)
        self.args = (text.rstrip(),)  # as it is: a full stop behind a caret would only confuse


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """A question that names the nearest valid word; empty when none is near."""
    known = list(valid)
    # A setting that was renamed is known, however little its new name looks like it.
    if RENAMED.get(wrong) in known:
        return f"Did you mean `{RENAMED[wrong]}`? It was called `{wrong}`."
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"Did you mean `{near[0]}`?" if near else ""


def _excerpt(origin: Origin) -> str:
    """The line with a caret under the place; a long line is cut around it."""
    # The caret stays in the middle of what is shown.
    start = max(0, origin.caret - LONGEST_EXCERPT // 2)
    line = origin.excerpt[start : start + LONGEST_EXCERPT].replace("\t", " ")
    return f"    {line}\n    {' ' * (origin.caret - start)}^\n"
