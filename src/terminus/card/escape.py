"""Text from prompts, captions and recipes made harmless: in Markdown, in code, in a shell line, in BibTeX.

The card is Markdown that a web site renders, so it has the injections of HTML and of Markdown. Everything that a
template prints goes through `markdown`, unless it is already `Markup`.
"""

from __future__ import annotations

import json
import re
import shlex

from markupsafe import Markup

NOT_STATED = Markup("not stated")
LONGEST = 300
"""Characters of a text on the card."""

# Of Markdown's punctuation those that can begin something inside a line; `markdown` never begins a line.
_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "@": "&#64;", "#": "&#35;", "{": "&#123;"}
_ABSOLUTE = re.compile(r"^(?:[/\\~]|[A-Za-z]:[/\\]|.*\.\.[/\\])")


def markdown(text: str) -> Markup:
    """One line of plain text, shown as it is: no markup, no link, no line break."""
    escaped = _SPECIAL.sub(r"\\\1", line(text))
    escaped = "".join(_ENTITIES.get(char, char) for char in escaped)
    # What GitHub's dialect would make a link of.
    return Markup(re.sub(r"(?i)\bwww\.", "www&#46;", escaped.replace("://", "&#58;//")))


def code(text: str | None) -> Markup:
    """An inline code span."""
    if text is None:
        return NOT_STATED
    shown = line(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    ticks, space = "`" * (longest + 1), " " if "`" in shown else ""
    return Markup(f"{ticks}{space}{shown}{space}{ticks}") if shown else markdown("(empty)")


def python_string(text: str) -> Markup:
    """A Python (and JSON) string literal, ASCII only: no line of a code block can begin in it."""
    return Markup(json.dumps(line(text)))


def shell_word(text: str) -> Markup:
    """One word of a POSIX shell's command line."""
    return Markup(shlex.quote(line(text)))


def bibtex(text: str) -> str:
    """Letters, digits and punctuation that mean nothing to BibTeX."""
    return re.sub(r"[^\w .,:;/()+'-]|_", " ", line(text)).strip()


def bibtex_line(text: str) -> str:
    """A line of an entry that somebody wrote: printable, and no end of a code block."""
    return line(text).replace("`", "'")


def line(text: str) -> str:
    """Printable characters on one line, at most `LONGEST`."""
    words = " ".join(text[: 4 * LONGEST].split())
    shown = "".join(char for char in words if char.isprintable())
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def public_place(text: str | None) -> str | None:
    """A path or URI without what it tells about a machine or an account.

    Relative paths stay; of others the last part; of a URI neither user, password nor query.
    """
    if text is None:
        return None
    scheme, mark, rest = text.partition("://")
    if mark:
        return f"{scheme}://{re.split('[?#]', rest)[0].split('@')[-1]}"
    if _ABSOLUTE.match(text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1].lstrip("~") or "."
    return text
