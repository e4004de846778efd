"""Errors that users are told when something is wrong with their input, and the exit code that goes with it.

This is the lowest layer: every room may raise these, none needs to know who prints them.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_DEFECT = 1
EXIT_INPUT = 2
EXIT_STOPPED = 75
"""EX_TEMPFAIL: everything is saved, run the same command again."""


class UserError(Exception):
    """The user's input is wrong: one paragraph that says what, where, the rule, and what to do.

    `str(error)` is that paragraph. The process boundary (`terminus.cli`) prints it and exits with 2.
    """

    def __init__(self, what: str, *, where: str = "", rule: str = "", fix: str = "") -> None:
        self.what, self.where, self.rule, self.fix = what, where, rule, fix
        self.told = False
        """Another process of the same run prints it."""
        place = f"{where}: " if where else ""
        sentences = [f"{place}{what}", rule, fix]
        super().__init__(" ".join(_sentence(text) for text in sentences if text))


class Stopped(Exception):
    """A signal asked the process to end and everything is saved; the same command continues (exit 75)."""


def printable(text: str) -> str:
    """Control characters from a user's file spelled out: a terminal must not obey them."""
    return "".join(char if char == "\n" or char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "?", "!", "\n")) else f"{text}."
