"""Judges answers: a model's text becomes a caption, or a reason why not. Models refuse, loop, run on and break off.

A bad caption is worse than none, because nobody reads a million of them before training does.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from terminus.images import Dropped

REASONS = ("empty", "refused", "cut short", "too long", "repeats itself")
CHARACTERS_PER_TOKEN = 8
"""More than this per allowed token, and the model was not held to its limit."""
LONGEST_PHRASE = 12
"""Words of a phrase whose repetition is looked for."""
REPEATS = 4
"""Times in a row from which on a phrase is a loop; a single word may be said once more ("very, very")."""

_THOUGHTS = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)
_LABEL = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok)[!,.:]*\s+)?"
    r"(?:here(?: is|'s) (?:a|the|your|my)\b[^:.\n]{0,80}:\s*)?"
    r"(?:(?:caption|description|answer)\s*:\s*)?",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"(\*\*|__|`)(?=\S)(.+?)(?<=\S)\1")
_QUOTES = {'"': '"', "“": "”", "«": "»", "'": "'", "「": "」"}
_REFUSAL = re.compile(
    r"^(?:oh,? )?(?:"
    r"(?:i'?m|i am|my apologies|i apologi[sz]e|sorry)\b[^.]{0,40}"
    r"\b(?:sorry|unable|not able|can'?t|cannot|can not|but)\b"
    r"|(?:i'?m|i am) (?:(?:very|really|so) )?(?:sorry|afraid)\b"
    r"|i (?:apologi[sz]e|(?:can ?not|can'?t|won'?t|will not|do not|don'?t|am unable to|must decline)\b)"
    r"|as an? (?:ai|artificial intelligence|language model)\b"
    r"|unfortunately,? i\b"
    r"|(?:there is |there's )?no (?:image|picture) (?:was |is |has been )?(?:provided|attached|given|included|uploaded)"
    r"|please (?:provide|upload|attach|share) (?:an?|the) (?:image|picture)\b"
    r")",
    re.IGNORECASE,
)
_CHARACTER_LOOP = re.compile(r"(.{2,40}?)\1{5,}")


@dataclass(frozen=True)
class Answer:
    """A model's text as it came back, before it is judged."""

    text: str
    cut_short: bool = False
    """The limit of tokens ended it."""
    declined: bool = False
    """The server's own filter, or the model in so many words of the protocol, refused."""
    model: str = ""
    """What the server says answered; a revision where the model is local."""
    prompt_tokens: int = 0
    """Of the question with its picture; 0 if unknown."""
    completion_tokens: int = 0
    """Of the answer; 0 if unknown."""
    first_token: tuple[tuple[str, float], ...] = ()
    """Likeliest first tokens with their log-probabilities; () where they were not asked for, or are not given."""


def caption_of(answer: Answer, max_tokens: int) -> str | Dropped:
    """The caption in an answer; `Dropped` with one of `REASONS` and the beginning of what was said."""
    text = clean_answer(answer.text)
    # In this order: a refusal may also be cut short, and what was cut short may also be too long.
    if answer.declined or _REFUSAL.match(text.replace("’", "'")):
        return Dropped("refused", _clipped(text))
    if answer.cut_short:
        return Dropped("cut short", _clipped(text))
    if not any(letter.isalnum() for letter in text):
        return Dropped("empty", _clipped(text))
    if len(text) > CHARACTERS_PER_TOKEN * max_tokens:
        return Dropped("too long", _clipped(text))
    if loops(text):
        return Dropped("repeats itself", _clipped(text))
    return text


def clean_answer(text: str) -> str:
    """One line of valid Unicode, without thoughts, greetings, labels, quotes and mark-up around the caption."""
    # Halves of characters become question marks before anything is compared.
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = _THOUGHTS.sub("", text)
    text = "" if text.lstrip().startswith("<think") else text  # thoughts that never ended
    text = _MARKUP.sub(r"\2", text)
    text = " ".join("".join(map(_visible, text)).split())
    # What stands around the caption: a greeting, a label, quotes.
    text = _LABEL.sub("", text, count=1)
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def loops(text: str) -> bool:
    """Whether a phrase follows itself again and again, as greedy decoding does when it is lost."""
    words = re.findall(r"\w+", text.casefold())
    for size in range(1, LONGEST_PHRASE + 1):
        # So many words in a row must equal the word one phrase before them.
        needed = size * (REPEATS - 1) + (size == 1)
        run = 0
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else 0
            if run >= needed:
                return True
    return _CHARACTER_LOOP.search(text) is not None


def _visible(letter: str) -> str:
    """The letter; a space for controls; nothing for what turns the direction of other letters around."""
    if "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069" or letter == "\ufeff":
        return ""
    return " " if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") else letter


def _clipped(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:299]}…"
