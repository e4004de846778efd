"""Errors as clients get them: a sentence, a rule and a way out, and nothing about the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from terminus.errors import UserError, printable

_PATH = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\"`<>|:,;()]+)+[/\\]?")
"""Absolute paths, as they come up in the messages of libraries."""


class Refusal(Exception):
    """An answer other than 200: status, the parts of the error, and further headers."""

    def __init__(self, status: int, error: UserError, field: str | None = None, **headers: str) -> None:
        super().__init__(str(error))
        self.status, self.error, self.field = status, error, field
        self.headers: Mapping[str, str] = headers


def refused(status: int, what: str, *, rule: str = "", fix: str = "", where: str = "", **headers: str) -> Refusal:
    """A refusal in one line; names of headers are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Refusal(status, UserError(what, where=where, rule=rule, fix=fix), **named)


def not_found(what: str) -> Refusal:
    """The same answer for what is not there and for what is another user's."""
    return refused(404, f"There is no such {what}", rule="It was deleted, never was, or belongs to another user")


def without_paths(text: str) -> str:
    """The text with every absolute path cut down to its last name."""
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def error_parts(error: UserError) -> dict[str, str]:
    """What an error says, ready for a client."""
    said = {"message": error.what, "where": error.where, "rule": error.rule, "fix": error.fix}
    return {name: printable(without_paths(text)) for name, text in said.items()}


def body(error: UserError, field: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    return {"error": {**error_parts(error), **({"field": field} if field else {})}}


def from_validation(problems: list[Mapping[str, Any]]) -> tuple[UserError, str]:
    """One paragraph for a body that is not what it should be, and the field that it is about."""
    first = problems[0]
    places = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "header")]
    field = ".".join(places)[:200]
    more = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
    fix = "Leave it out" if first.get("type") == "extra_forbidden" else ""
    return UserError(
        f"{first.get('msg', 'Not valid')}{more}", where=field, rule="openapi.json describes every field", fix=fix
    ), field
