"""A finding as aligned lines: plain text only, since every word of it may come from a stranger's file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from terminus.inspection.findings import Checkpoint, Finding, Hashes, NetworkFinding, Probe
from terminus.model.detect import Evidence

_LABELS = {
    "zero_terminal": "zero terminal SNR",
    "ema": "EMA beside it",
    "sha256": "SHA-256",
    "native_pixels": "trained at",
    "tensors_sha256": "of the tensors",
    "stated": "stated hash is",
}
_LONGEST = 400
"""Characters of one line; `--json` has more."""
_TOGETHER = 80
"""Characters up to which several entries share a line."""


def show_finding(finding: Finding | Probe, console: Console) -> None:
    """Prints a finding; wrapped by the terminal alone, so that hashes and paths can be copied."""
    _section(finding, finding.kind, console)


def _section(finding: Finding | Probe, title: str, console: Console) -> None:
    console.print(Text.assemble((f"{title}  ", "bold"), printable_line(finding.path)), soft_wrap=True)
    # Labels in one column; a label stands at the first of its lines alone.
    rows = [(label, lines or ["none"]) for label, lines in _rows(finding)]
    width = max(len(label) for label, _ in rows) + 2
    for label, lines in rows:
        style = "yellow" if label == "conflicts" and lines != ["none"] else ""
        for number, line in enumerate(lines):
            shown = "" if number else label
            text = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
            console.print(Text.assemble((f"  {shown:<{width}}", "bold"), (printable_line(text), style)), soft_wrap=True)
    nested = getattr(finding, "model", None)
    if isinstance(nested, Checkpoint):
        _section(nested, "its model", console)


def _rows(finding: Finding | Probe) -> Iterator[tuple[str, list[str]]]:
    # Hashes have a line each, everything else one for the whole field.
    for entry in fields(finding):
        value = getattr(finding, entry.name)
        if entry.name in ("kind", "path", "model"):
            continue
        if isinstance(value, Hashes):
            for field in fields(value):
                if getattr(value, field.name) is not None:
                    yield _label(field.name), [str(getattr(value, field.name))]
        else:
            yield _label(entry.name), _lines(value, entry.name)


def _lines(value: Any, name: str) -> list[str]:
    # Entries of a mapping or tuple share a line if it is short; evidence has a line each.
    if isinstance(value, Mapping):
        pairs = cast(Mapping[str, Any], value).items()
        return _joined([f"{key}: {line}" for key, item in pairs for line in _lines(item, key)])
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        entries = [line for item in items for line in _lines(item, name)]
        return entries if any(isinstance(item, Evidence) for item in items) else _joined(entries)
    return [_word(value, name)]


def _joined(entries: list[str]) -> list[str]:
    """On one line if that is short."""
    line = ", ".join(entries)
    return [line] if entries and len(line) <= _TOGETHER else entries


def _word(value: Any, name: str) -> str:
    if isinstance(value, Evidence):
        return f"{value.source}: {value.says}"
    if isinstance(value, NetworkFinding):
        return f"{value.parameters:,} parameters, {' and '.join(value.dtypes) or 'empty'}, {value.bytes / 1e6:,.1f} MB"
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "native_pixels":
        return f"{value} × {value} pixels"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " "))


def finding_json(value: Any) -> Any:
    """A finding as JSON has it: dataclasses as objects, tuples as lists."""
    if is_dataclass(value):
        return {entry.name: finding_json(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): finding_json(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, tuple | list):
        return [finding_json(item) for item in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON knows no other word for it
    return value


def printable_line(text: str) -> str:
    """Line breaks as spaces, and what a terminal could obey spelled out."""
    line = " ".join(text.split()) if any(char in text for char in "\n\r\t") else text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
