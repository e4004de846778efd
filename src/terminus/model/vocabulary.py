"""The vocabulary that both of SDXL's tokenizers share: single-file checkpoints carry none.

Its 49,408 entries follow from one list of 48,894 merges (`assets/clip`): the 256 bytes, the same at the end of a
word, the merges in order, and the two marks of a text.
"""

from __future__ import annotations

import gzip
from functools import cache
from itertools import chain

from transformers import CLIPTokenizer

from terminus.model.text_encoders import build_tokenizer
from terminus.model.weights import ASSETS

START, END = "<|startoftext|>", "<|endoftext|>"


@cache
def clip_merges() -> tuple[tuple[str, str], ...]:
    """The merges in order of rank."""
    lines = gzip.decompress((ASSETS / "clip" / "merges.txt.gz").read_bytes()).decode("utf-8").splitlines()
    return tuple((first, second) for first, second in (line.split(" ") for line in lines))


@cache
def clip_vocabulary() -> dict[str, int]:
    """Entry -> id; do not change the one dictionary that all callers get."""
    letters = _byte_letters()
    merged = (first + second for first, second in clip_merges())
    entries = chain(letters, (letter + "</w>" for letter in letters), merged, (START, END))
    return {entry: number for number, entry in enumerate(entries)}


def clip_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """The two tokenizers of SDXL: the first pads with the end of the text, the second with "!", which has id 0."""
    first, second = (build_tokenizer(clip_vocabulary(), list(clip_merges()), 77, pad) for pad in (END, "!"))
    return first, second


def _byte_letters() -> list[str]:
    """One visible character per byte (the alphabet of GPT-2): printable Latin-1 for itself, the rest from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + number) for number in range(others)]
