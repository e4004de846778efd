"""The grammar of prompts: weights in brackets, BREAK, {this|or that}, and more words than a text encoder reads.

The grammar is the one that A1111 published, because prompts travel between programs; docs/prompts.md shows it.
Captions in training are plain text and never come through here. What the grammar knows and we do not do is refused:
an image that quietly ignores half of its prompt teaches nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from terminus import runtime
from terminus.errors import UserError
from terminus.model.text import TextEncoders, TextFeatures

HEAVIEST = 10.0
"""The largest weight; useful ones are near 1."""
MOST_CHUNKS = 32
_LONGEST = 20_000
"""Characters of a prompt or template; both limits are there for what comes over a network."""
_BACKTRACK = 20 / 75
"""A chunk that is full ends after a comma, if there is one in its last part: 20 tokens of SDXL's 75, as in A1111."""
_AT_ONCE = 64
"""Chunks read in one call of a text encoder: every layer's states are kept until it returns."""

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENS = {")": "(", "]": "[", "}": "{"}
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?i:nan|inf)"
_TOKEN = re.compile(
    rf"""
      (?P<escape>  \\ .? )
    | (?P<network> < \w+ : [^<>]+ > )
    | (?P<file>    __ [^\W_] (?: [\w/*-]{{0,100}} [^\W_] )? __ )
    | (?P<number>  : \s* (?P<value> {_NUMBER} ) \s* [)\]] )
    | (?P<break>   \s* \b BREAK \b \s* )
    | (?P<mark>    [()\[\]{{}}|] )
    | (?P<text>    \w+ | \s+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_SPECIAL = re.compile(r"[\\()\[\]{}|<>:]|_(?=_)|\bB(?=REAK\b)")
_SHARE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_SEVERAL = re.compile(r"\s*(?:\d+|\d*-\d*)\$\$")


@dataclass(frozen=True)
class WeightedText:
    """Text, as the tokenizers get it, and the weight of its tokens."""

    text: str
    weight: float


@dataclass(frozen=True)
class Chunk:
    """The tokens that a text encoder reads at once: at most `model_max_length` − 2, each with its weight."""

    tokens: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def escape(text: str) -> str:
    """The prompt that means exactly this text, in brackets and in {a|b} too."""
    return _SPECIAL.sub(lambda special: "\\" + special[0], text)


def expand(prompt: str, seed: int) -> str:
    """The prompt with one option of every {a|b|c} in place of it, drawn by the image's seed.

    Each group has a draw of its own, which does not depend on what other groups became. `{2::a|b}` takes a twice as
    often. Braces without a bar, and braces that do not match, are text. Expanding what this returns changes nothing.
    UserError for what no prompt can ask here (see `parse`).
    """
    tokens = _tokens(prompt)
    _refuse(tokens)
    # A stack of open braces: the innermost collects its options.
    groups = 0
    outer: list[tuple[int, list[str]]] = []  # of each open brace: its number, and its options so far
    number, options = 0, [""]
    for token in tokens:
        kind, text = token.lastgroup, token[0]
        if kind == "mark" and text == "{":
            outer.append((number, options))
            groups += 1
            number, options = groups, [""]
        elif kind == "mark" and text == "}" and outer:
            chosen = _choose(options, seed, number) if len(options) > 1 else "{" + options[0] + "}"
            number, options = outer.pop()
            options[-1] += chosen
        elif kind == "mark" and text == "|" and outer:
            options.append("")
        else:
            options[-1] += text
    # Braces that were never closed are text.
    unmatched = [*(one for _, one in outer), options]
    return "{".join("|".join(one) for one in unmatched)


def parse_weights(prompt: str) -> tuple[tuple[WeightedText, ...], ...]:
    """The parts between BREAKs, each a tuple of spans without escapes; neighbours in a part differ in weight.

    `(text)` has weight 1.1, `(text:1.3)` 1.3, `[text]` 1/1.1; nested weights multiply. A bracket that is not closed
    holds to the end, one that was not opened is text. UserError for weights outside 0 .. `HEAVIEST`, for adapters and
    files in a prompt, and for prompts that change during sampling (`[a:b:0.5]`, `[a|b]`).
    """
    tokens = _tokens(prompt)
    _refuse(tokens)
    factors = _factors(tokens)
    # Round brackets nest in each other and square ones in each other, but not the two: "([a)]" is accepted.
    products = {"(": [1.0], "[": [1.0]}
    parts: list[list[WeightedText]] = [[]]
    for index, token in enumerate(tokens):
        kind, text = token.lastgroup, token[0]
        # A bracket that weighs begins a product or ends one; any other is text.
        if index in factors:
            product, factor = products[_OPENS.get(text[-1], text)], factors[index]
            if factor is None:
                product.pop()
            else:
                product.append(product[-1] * factor)
        elif kind == "break":
            parts.append([])
        elif literal := text[1:] if kind == "escape" else text:
            parts[-1].append(WeightedText(literal, _in_range(products["("][-1] * products["["][-1])))
    return tuple(tuple(_merged(part)) for part in parts)


def count_chunks(text_encoders: TextEncoders, prompt: str) -> int:
    """The number of readings of a text encoder that the prompt needs, at least 1. UserError for more than
    `MOST_CHUNKS`."""
    return max(len(_chunked(tokenizer, prompt)) for tokenizer in (text_encoders.tokenizer_1, text_encoders.tokenizer_2))


def encode_prompts(text_encoders: TextEncoders, prompts: Sequence[str], count: int) -> TextFeatures:
    """Features of expanded prompts, each in `count` chunks: float32, context [batch, count · tokens, width].

    A shorter prompt is followed by empty chunks. A token's context vector is multiplied by its weight; the pooled
    vector is that of the first chunk, without weights. A plain prompt of one chunk gives what `text_encoders.encode`
    gives.
    """
    tokenizers, length = (text_encoders.tokenizer_1, text_encoders.tokenizer_2), _length(text_encoders)
    rows: list[tuple[Chunk, Chunk]] = []
    for prompt in prompts:
        rows += _chunk_pairs(tokenizers, prompt, count)

    # Empty chunks and repeated prompts are read once.
    places: dict[tuple[tuple[int, ...], ...], int] = {}
    order = [places.setdefault(tuple(chunk.tokens for chunk in row), len(places)) for row in rows]
    ids = [
        torch.tensor([_framed(tokenizer, tokens[text_encoder], length) for tokens in places])
        for text_encoder, tokenizer in enumerate(tokenizers)
    ]
    read = TextFeatures.join(
        [text_encoders.read(*pair) for pair in zip(*(one.split(_AT_ONCE) for one in ids), strict=True)]
    )

    # A product with 1 keeps every bit, so prompts without weights need no path of their own.
    split = [text_encoders.text_encoder_1.config.hidden_size, text_encoders.text_encoder_2.config.hidden_size]
    halves = cast(tuple[Tensor, ...], read.context[order].split(split, dim=-1))
    weighted = [
        half * torch.tensor([_weights(row[text_encoder], length) for row in rows], device=half.device)[..., None]
        for text_encoder, half in enumerate(halves)
    ]
    context = torch.cat(weighted, dim=-1).reshape(len(prompts), count * length, sum(split))
    return TextFeatures(context, read.pooled[order[::count]])


def _chunk_pairs(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], prompt: str, count: int
) -> Iterator[tuple[Chunk, Chunk]]:
    """`count` chunks of a prompt for both text encoders, the last of them empty where it is shorter."""
    pair = [_chunked(tokenizer, prompt) for tokenizer in tokenizers]
    if max(map(len, pair)) > count:
        raise ValueError(f"a prompt of {max(map(len, pair))} chunks in {count}")
    first, second = (one + [Chunk()] * (count - len(one)) for one in pair)
    return zip(first, second, strict=True)


def _tokens(prompt: str) -> list[re.Match[str]]:
    if len(prompt) > _LONGEST:
        raise UserError(f"This prompt has {len(prompt)} characters", rule=f"A prompt has at most {_LONGEST}")
    return list(_TOKEN.finditer(prompt))


def _refuse(tokens: Sequence[re.Match[str]]) -> None:
    """UserError for the parts of the published grammar that are not done here."""
    bars: list[tuple[str, list[str]]] = []  # each open bracket, and the bars directly in it
    opened = dict.fromkeys("([{", 0)
    for token in tokens:
        kind, text = token.lastgroup, token[0]
        _refuse_file(kind, text)
        closes = _closes(token)
        # What [a:b:0.5] and [a|b] are shows where their bracket closes.
        if opened.get(closes):
            if kind == "number" and closes == "[":
                raise _changing(text)
            if _close(closes, bars, opened):
                raise _alternating()
        elif kind == "mark" and text == "|" and bars:
            bars[-1][1].append(text)
        elif kind == "mark" and text in opened:
            opened[text] += 1
            bars.append((text, []))


def _closes(token: re.Match[str]) -> str:
    """The bracket that a token closes, if it is open; "" for any other token."""
    return _OPENS.get(token[0][-1], "") if token.lastgroup in ("mark", "number") else ""


def _close(wanted: str, bars: list[tuple[str, list[str]]], opened: dict[str, int]) -> bool:
    """Closes a bracket, and those inside that were left open; tells whether it was [...|...]."""
    bracket, inside = "", [""]
    while bracket != wanted:
        bracket, inside = bars.pop()
        opened[bracket] -= 1
    return bracket == "[" and bool(inside)


def _changing(text: str) -> UserError:
    return UserError(
        f"The prompt has [...{text}",
        rule="Prompts that change during sampling, [from:to:when], are not supported",
        fix=r"Write \: if the colon is text, or (text:1.3) if a weight was meant",
    )


def _alternating() -> UserError:
    return UserError(
        "The prompt has [...|...]",
        rule="Prompts that alternate during sampling, [a|b], are not supported",
        fix=r"Write {a|b} to have one of the two drawn by the seed, or \| if the bar is text",
    )


def _refuse_file(kind: str | None, text: str) -> None:
    """UserError for a token that would open a file: an adapter or a wildcard."""
    if kind not in ("network", "file"):
        return
    shown = text if len(text) <= 60 else text[:60] + "..."
    if kind == "network":
        raise UserError(
            f"The prompt has {shown}",
            rule="A prompt cannot open files: adapters are given with --lora",
            fix=r"Take it out of the prompt, or write \< if it is text",
        )
    raise UserError(
        f"The prompt has {shown}",
        rule="A prompt cannot open files, so there are no wildcards from files",
        fix=r"Write the options into the prompt, {red|green|blue}, or \_ if it is text",
    )


def _choose(options: Sequence[str], seed: int, number: int) -> str:
    """One option of the group with this number."""
    shares: list[float] = []
    texts: list[str] = []
    for option in options:
        if _SEVERAL.match(option):
            raise UserError(
                f"A group of options begins with {option[:20]}",
                rule="A group stands for exactly one of its options; 2$$ (several at once) is not supported",
                fix="Write several groups",
            )
        # "3::red" has three shares.
        share = _SHARE.match(option)
        shares.append(float(share[1]) if share else 1.0)
        texts.append(option[share.end() :] if share else option)
    if not 0 < sum(shares) < math.inf:
        raise UserError(
            f"The weights of the options {{{'|'.join(options)[:60]}}} add up to {sum(shares)}",
            rule="At least one option must have a weight above 0, and all must be finite",
        )
    # All shares in a row, and a point in one of them.
    point = runtime.uniform(seed, number, "wildcard") * sum(shares)
    for share, text in zip(shares, texts, strict=True):
        if point < share:
            return text
        point -= share
    # Rounding in the subtractions can leave a point of 0 or a little more.
    return next(text for share, text in zip(reversed(shares), reversed(texts), strict=True) if share > 0)


def _factors(tokens: Sequence[re.Match[str]]) -> dict[int, float | None]:
    """Effect of the brackets, by position: one that opens multiplies by a number, None ends it; others are text."""
    factors: dict[int, float | None] = {}
    opened: dict[str, list[int]] = {bracket: [] for bracket in _FACTORS}
    for index, token in enumerate(tokens):
        kind, last = token.lastgroup, token[0][-1]
        if kind == "mark" and last in opened:
            opened[last].append(index)
            factors[index] = _FACTORS[last]
        elif kind in ("mark", "number") and opened.get(_OPENS.get(last, "")):
            start = opened[_OPENS[last]].pop()
            factors[index] = None
            if kind == "number":
                # A number stands in place of the usual factor.
                factors[start] = _in_range(float(token["value"]))
    return factors


def _in_range(weight: float) -> float:
    """Rounded, so that ([[(text)]]) weighs exactly 1."""
    if not 0 <= weight <= HEAVIEST:
        raise UserError(
            f"A weight of {weight:g} in the prompt",
            rule=f"Weights, and their products where brackets are nested, are from 0 to {HEAVIEST:g}",
            fix=r"Write \( and \) if the brackets are text",
        )
    return round(weight, 6)


def _merged(part: Sequence[WeightedText]) -> Iterator[WeightedText]:
    for weight, spans in groupby(part, key=lambda span: span.weight):
        yield WeightedText("".join(span.text for span in spans), weight)


def _length(text_encoders: TextEncoders) -> int:
    """Tokens of a chunk, begin and end included."""
    first, second = text_encoders.tokenizer_1.model_max_length, text_encoders.tokenizer_2.model_max_length
    if first != second:
        raise UserError(
            f"The first text encoder reads {first} tokens, the second {second}",
            rule="The context of SDXL is both text encoders side by side, token by token",
            fix="Set the same model_max_length in tokenizer/ and tokenizer_2/tokenizer_config.json",
        )
    return first


def _chunked(tokenizer: CLIPTokenizer, prompt: str) -> list[Chunk]:
    size = tokenizer.model_max_length - 2
    comma = cast(int, tokenizer.convert_tokens_to_ids(",</w>"))
    parts = [_words(tokenizer, spans) for spans in parse_weights(prompt)]
    # BREAK ends a chunk, an empty one too; after the last one nothing needs to be read.
    if len(parts) > 1 and not parts[-1].tokens:
        parts.pop()
    found: list[Chunk] = []
    for part in parts:
        found += _cut(part, size, comma)
        if len(found) > MOST_CHUNKS:
            raise UserError(
                f"The prompt needs more than {MOST_CHUNKS} chunks of {size} tokens",
                rule=f"A prompt has at most {MOST_CHUNKS} chunks; BREAK begins a new one",
            )
    return found


def _words(tokenizer: CLIPTokenizer, spans: Sequence[WeightedText]) -> Chunk:
    """A part of any length; a weight that begins within a word divides it in two."""
    texts = [span.text for span in spans]
    ids = cast(list[list[int]], tokenizer(texts, add_special_tokens=False, verbose=False).input_ids) if texts else []
    pairs = [(token, span.weight) for row, span in zip(ids, spans, strict=True) for token in row]
    return Chunk(tuple(token for token, _ in pairs), tuple(weight for _, weight in pairs))


def _cut(part: Chunk, size: int, comma: int) -> Iterator[Chunk]:
    """Chunks of at most `size` tokens, at least one."""
    start = 0
    while len(part.tokens) - start > size:
        end = start + size
        # As in A1111, there is no step back where the next token is a comma.
        if part.tokens[end] != comma:
            near = range(end - 1, end - int(size * _BACKTRACK) - 1, -1)
            end = next((index + 1 for index in near if part.tokens[index] == comma), end)
        yield Chunk(part.tokens[start:end], part.weights[start:end])
        start = end
    yield Chunk(part.tokens[start:], part.weights[start:])


def _framed(tokenizer: CLIPTokenizer, tokens: Sequence[int], length: int) -> list[int]:
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    row = [cast(int, begin), *tokens, cast(int, end)]
    return row + [cast(int, pad)] * (length - len(row))


def _weights(chunk: Chunk, length: int) -> list[float]:
    """Begin, end and padding weigh 1."""
    return [1.0, *chunk.weights] + [1.0] * (length - 1 - len(chunk.weights))
