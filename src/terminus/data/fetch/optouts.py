"""Whether the answer to a request reserves the content against training, in a form that machines read.

Three conventions are honoured, and where one is written carelessly it is read in favour of who wrote it:
`X-Robots-Tag` (noai and noimageai, and the search directives noindex, noimageindex and none), `tdm-reservation`
(W3C TDM Reservation Protocol, 2024) and `Content-Usage` (IETF drafts aipref-attach-05 and aipref-vocab-08, with the
labels of earlier drafts) together with its relative `Content-Signal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NO_AI = re.compile(r"\bno(?:image)?ai\b")
_NO_SEARCH = frozenset({"noindex", "noimageindex", "none"})
_AGENT = re.compile(r"[\w.*-]+")
# The current label, and those of earlier drafts that include training, from the particular to the general.
_TRAINING = ("train-ai", "train-genai", "genai", "ai", "tdm", "bots", "all")
_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
"""Directives of `X-Robots-Tag` with a colon that names no agent."""


def reservation(headers: Sequence[tuple[str, str]], agent: str) -> str | None:
    """The first header that reserves the content, as "name: what it says"; None where none does.

    `headers` are pairs (name, value) in the order received, a name as often as it came; `agent` is the
    name by which `X-Robots-Tag` may address us alone.
    """
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value.lower())
    for value in fields.get("x-robots-tag", ()):
        if said := _robots(value, agent.lower()):
            return f"X-Robots-Tag: {said}"
    # The protocol's values are 1 and 0; quotes or a list around the 1 are taken for what they mean.
    if any(re.search(r"\b1\b", value) for value in fields.get("tdm-reservation", ())):
        return "tdm-reservation: 1"
    usage = _members(fields.get("content-usage", ()))
    for label in _TRAINING:
        if (said := usage.get(label)) == "n":
            return f"Content-Usage: {label}=n"
        if said == "y":
            break
    if _members(fields.get("content-signal", ())).get("ai-train") == "no":
        return "Content-Signal: ai-train=no"
    return None


def _robots(value: str, agent: str) -> str | None:
    # Whoever forbids AI to a crawler by name could not know ours, so this counts whomever it addresses.
    if found := _NO_AI.search(value):
        return found.group()
    addressed = True
    for part in re.split(r"[,;]", value):
        name, colon, directive = (text.strip() for text in part.partition(":"))
        if not colon or name in _WITH_VALUE:
            directive = name
        elif _AGENT.fullmatch(name):
            addressed = name in ("*", agent)
        if addressed and directive in _NO_SEARCH:
            return directive
    return None


def _members(values: Sequence[str]) -> Mapping[str, str]:
    """A structured-field dictionary (RFC 9651) whose lines are one list and whose last duplicate counts."""
    members = (part.partition(";")[0].partition("=") for part in ",".join(values).split(","))
    return {key.strip(): value.strip() for key, _, value in members}
