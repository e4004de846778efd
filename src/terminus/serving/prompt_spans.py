"""A prompt's parts, for a page that colours them; the grammar's own rules are in `sampling.prompts`."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_PARTS = re.compile(
    rf"""
      (?P<escape>   \\ . )
    | (?P<adapter>  < \w+ : [^<>]+ > )
    | (?P<weight>   : \s* {_NUMBER} \s* (?=[)\]]) | [()\[\]] )
    | (?P<break>    \b BREAK \b )
    | (?P<wildcard> [{{}}|] | \d+(?:\.\d*)? :: | __ [^\W_] [\w/*-]{{0,100}} __ )
    | (?P<text>     [^\\<>()\[\]{{}}|:B_\d]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)


def spans(prompt: str) -> list[dict[str, Any]]:
    """Neighbouring spans that cover the prompt, in Unicode code points: start, end, kind, and the weight in force."""
    found: list[dict[str, Any]] = []
    parts = list(_PARTS.finditer(prompt))
    factors = _factors(parts)
    weight, opened = 1.0, list[float]()
    for number, part in enumerate(parts):
        kind = part.lastgroup or "text"
        kind = "text" if kind == "escape" else kind
        if number in factors:
            opened.append(weight)
            weight = round(weight * factors[number], 6)
        now = weight
        if part[0] in (")", "]") and opened:
            weight = opened.pop()
        last = found[-1] if found else None
        # Neighbours of one look are one span, or a page would hold an element for each letter.
        if last is not None and last["kind"] == kind == "text" and last["weight"] == now:
            last["end"] = part.end()
        else:
            found.append({"start": part.start(), "end": part.end(), "kind": kind, "weight": now})
    return found


def _factors(parts: list[re.Match[str]]) -> dict[int, float]:
    """What each bracket that opens multiplies by: 1.1, its inverse, or the number before its end."""
    factors: dict[int, float] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for number, part in enumerate(parts):
        if part[0] in opened:
            opened[part[0]].append(number)
            factors[number] = 1.1 if part[0] == "(" else 1 / 1.1
        elif part[0] in (")", "]") and opened["(" if part[0] == ")" else "["]:
            start = opened["(" if part[0] == ")" else "["].pop()
            # "(word:1.3)": the number stands before the bracket that closes.
            before = parts[number - 1][0]
            if number and before.startswith(":") and len(before) > 1:
                factors[start] = float(before[1:])
    return factors
