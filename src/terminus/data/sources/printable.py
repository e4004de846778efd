"""Names and texts of strangers, made fit to be stored and shown."""

from __future__ import annotations


def printable_caption(text: str) -> str:
    """Valid Unicode for the store and harmless on a terminal: other bytes and control characters escaped."""
    valid = text.encode("utf-8", "backslashreplace" if _surrogates(text) else "strict").decode()
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in valid)


def _surrogates(text: str) -> bool:
    return any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
