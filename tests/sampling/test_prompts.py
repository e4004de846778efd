"""Prompts: the published grammar, groups of options, and features that only a prompt's own text decides."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import load_components, load_text_encoders
from terminus.model.text import TextEncoders
from terminus.model.text_encoders import build_tokenizer
from terminus.model.vocabulary import clip_tokenizers
from terminus.sampling.network import network
from terminus.sampling.network import prompt_chunks as needed
from terminus.sampling.prompts import (
    HEAVIEST,
    MOST_CHUNKS,
    Chunk,
    _chunked,
    _cut,
    count_chunks,
    encode_prompts,
    escape,
    expand,
    parse_weights,
)
from terminus.sampling.settings import ImageRequest, Settings

GRAMMAR = st.text(alphabet=st.sampled_from("([{|}])\\:<>_ ,.019enaBREAK$\n"), max_size=40)
HOUSE = ("a ", "house", " ", "on", " a ", "hill", ", sun, ", "sky", ".")
ANYTHING = GRAMMAR | st.text(max_size=40) | st.lists(GRAMMAR | st.just("BREAK")).map(" ".join)


@pytest.fixture(scope="module")
def text_encoders(random_nano: Path) -> TextEncoders:
    return load_text_encoders(random_nano)


def spans(prompt: str) -> list[tuple[str, float]]:
    """Of a prompt without BREAK."""
    (part,) = parse_weights(prompt)
    return [(span.text, span.weight) for span in part]


# The grammar


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # the examples that A1111 published with its parser
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            list(zip(HOUSE, (1, 1.573, 1.1, 1, 1.1, 0.55, 1.1, 1.4641, 1.1), strict=True)),
        ),
        # brackets that do not match
        ("a) b]", [("a) b]", 1)]),
        ("a:1.3)", [("a:1.3)", 1)]),
        ("[faint", [("faint", 0.909091)]),
        ("([a)b]", [("a", 1), ("b", 0.909091)]),
        ("()", []),
        # weights
        ("(a: 1.25 )", [("a", 1.25)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:+2)", [("a", 2)]),
        ("(a:0)b", [("a", 0), ("b", 1)]),
        ("([[(a)]])", [("a", 1)]),
        ("((a:1.2):1.5)", [("a", 1.8)]),
        ("((a:1.1):1.2)", [("a", 1.32)]),
        ("[a]", [("a", 0.909091)]),
        ("[[a]]", [("a", 0.826446)]),
        ("(a:1.2", [("a:1.2", 1.1)]),
        ("((a:1.2)", [("a", 1.32)]),
        ("( a b : 1.2 ) c", [(" a b ", 1.2), (" c", 1)]),
        ("(a:1.2)b)", [("a", 1.2), ("b)", 1)]),
        ("(🍎, 犬:1.3) 👩‍👩‍👧", [("🍎, 犬", 1.3), (" 👩‍👩‍👧", 1)]),
        ("(a:noon)", [("a:noon", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        (r"(a\:1.2)", [("a:1.2", 1.1)]),
        # escapes
        (r"\\(a\\)", [("\\", 1), ("a\\", 1.1)]),
        (r"\\\\", [("\\\\", 1)]),
        (r"\(a:1.2\)", [("(a:1.2)", 1)]),
        (r"C:\dogs", [("C:dogs", 1)]),
        ("ends in \\", [("ends in ", 1)]),
        (r"\{a\|b\}", [("{a|b}", 1)]),
        (r"\<lora:x:1>", [("<lora:x:1>", 1)]),
        (r"[a\|b] [c\:0.5]", [("a|b", 0.909091), (" ", 1), ("c:0.5", 0.909091)]),
        # text
        ("at 10:30, a|b, {x}, <3, AND", [("at 10:30, a|b, {x}, <3, AND", 1)]),
        ("BREAKFAST aBREAK break", [("BREAKFAST aBREAK break", 1)]),
        (r"\BREAK", [("BREAK", 1)]),
        ("snake__case", [("snake__case", 1)]),
        ("", []),
    ],
)
def test_spans(prompt: str, expected: list[tuple[str, float]]):
    assert spans(prompt) == expected


def test_break_divides_and_brackets_hold_across_it():
    assert [[(one.text, one.weight) for one in part] for part in parse_weights("a (b BREAK c:1.5), BREAK,BREAK d")] == [
        [("a ", 1.0), ("b", 1.5)],
        [("c", 1.5), (",", 1.0)],
        [(",", 1.0)],
        [("d", 1.0)],
    ]


@given(st.text(max_size=60) | ANYTHING)
def test_escaped_text_means_itself(text: str):
    wanted = [(text, 1.0)] if text else []
    assert spans(escape(text)) == wanted
    assert expand(escape(text), 0) == escape(text)
    # and nothing of it reaches what is around it
    around = expand(f"({{{escape(text)}|{escape(text)}}}:1.5)", 3)
    assert spans(around) == [(text, 1.5) for text, _ in wanted]


@given(ANYTHING)
@settings(max_examples=500)
def test_any_text_is_read_or_refused(text: str):
    try:
        parts = parse_weights(expand(text, 1))
    except UserError:
        return
    for part in parts:
        assert all(0 <= span.weight <= HEAVIEST and span.text for span in part)
        assert all(one.weight != two.weight for one, two in pairwise(part))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:watercolour:0.8> dog", "<lora:watercolour:0.8>.*--lora"),
        ("(<hypernet:x>:1.2)", "<hypernet:x>"),
        ("a __colors__ dog", "__colors__.*red.green.blue"),
        ("a __animals/big-cats__", "__animals/big-cats__"),
        ("a [cat:dog:0.5]", r"\[\.\.\.:0.5\].*change during sampling"),
        ("a [cat::3]", "change during sampling"),
        ("a [(cat):.2]", "change during sampling"),
        ("a [cat|dog]", "alternate during sampling.*{a.b}"),
        ("[a|]", "alternate"),
        ("[a (b) | (c]", "alternate"),
        ("(a:11)", "weight of 11 .* 0 to 10"),
        ("(a:-1)", "weight of -1"),
        ("(a:1e999)", "weight of inf"),
        ("(a:nan)", "weight of nan"),
        ("((a:4):4)", "weight of 16"),
        ("(" * 30 + "a", "weight of 17.4"),
        ("(" * 9000 + "[" * 9000 + "a", "weight of inf"),
        ("(" * 9000 + "(a:0)", "weight of nan"),
        ("x" * 20_001, "20001 characters"),
    ],
)
def test_what_is_refused(prompt: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_weights(prompt)
    with pytest.raises(UserError, match=message):
        parse_weights(expand(prompt, 0))


@pytest.mark.parametrize(
    "unit", ["{", "{a|", "([", "((", "<a:", "__a/", ": 1", ":1", " ", "\\", "a", "|", "]", "{a|b}", "[|"]
)
def test_hostile_prompts_take_no_time(unit: str):
    prompt = unit * (20_000 // len(unit))
    begin = time.process_time()
    for read in (lambda: expand(prompt, 0), lambda: parse_weights(prompt)):
        try:
            read()
        except UserError:
            continue
    assert time.process_time() - begin < 5


# Options


def test_the_seed_draws_and_groups_are_independent():
    drawn = Counter(expand("{a|b} {a|b}", seed) for seed in range(400))
    assert set(drawn) == {"a a", "a b", "b a", "b b"}
    assert all(60 < count < 140 for count in drawn.values())
    assert [expand("{a|b} {a|b}", 7) for _ in range(3)] == [expand("{a|b} {a|b}", 7)] * 3


def test_weights_of_options():
    drawn = Counter(expand("{3::a| 0::b|c}", seed) for seed in range(400))
    assert set(drawn) == {"a", "c"}
    assert 260 < drawn["a"] < 340


def test_a_nested_group_draws_the_same_whether_or_not_another_became_something_else():
    later = [expand("{x {a|b}|y} {c|d}", seed).split()[-1] for seed in range(50)]
    assert later == [expand("{y|x {a|b}} {c|d}", seed).split()[-1] for seed in range(50)]
    assert {expand("{x {a|b}|y}", seed) for seed in range(50)} == {"x a", "x b", "y"}


@pytest.mark.parametrize(
    ("template", "results"),
    [
        ("{|very }big", {"big", "very big"}),
        ("{a}", {"{a}"}),
        ("{x{a|b}}", {"{xa}", "{xb}"}),
        ("{a|b", {"{a|b"}),
        ("a|b}", {"a|b}"}),
        ("{c|{a|b}", {"{c|a", "{c|b"}),
        (r"{a\|b|c\}}", {r"a\|b", r"c\}"}),
        (r"{2\::a|b}", {r"2\::a", "b"}),
        ("(dog:1.{2|5})", {"(dog:1.2)", "(dog:1.5)"}),
        ("[{a|b}]", {"[a]", "[b]"}),
    ],
)
def test_templates(template: str, results: set[str]):
    assert {expand(template, seed) for seed in range(40)} == results


@given(ANYTHING, st.integers(0, 3))
@settings(max_examples=500)
def test_what_was_expanded_stays_as_it_is(text: str, seed: int):
    """Metadata keeps the expanded prompt; drawing from it again must not draw other options."""
    try:
        once = expand(text, seed)
        parse_weights(once)
    except UserError:
        return
    assert expand(once, seed + 1) == once


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{2$$a|b|c}", "several at once"),
        ("{1-2$$a|b}", "several at once"),
        ("{0::a|0::b}", "add up to 0"),
        (f"{{{'9' * 400}::a|b}}", "add up to inf"),
        ("{[a|b]|c}", "alternate"),
        ("{<lora:a:1>|b}", "--lora"),
    ],
)
def test_groups_that_are_refused(template: str, message: str):
    for seed in range(3):
        with pytest.raises(UserError, match=message):
            expand(template, seed)


# Chunks

TIME = torch.tensor([999])
LONG = "a photo of a red apple, a green pear, and a blue bird on a black background with stars, "


def test_a_plain_prompt_is_read_as_a_caption(text_encoders: TextEncoders):
    for prompt in ("a red apple on a black background", "", "a, b; c: d. 雪 e\u0301 <|endoftext|>", "dog " * 30):
        assert count_chunks(text_encoders, prompt) == 1
        features, caption = encode_prompts(text_encoders, [prompt], 1), text_encoders.encode([prompt])
        assert torch.equal(features.context, caption.context)
        assert torch.equal(features.pooled, caption.pooled)


@given(st.lists(st.sampled_from("aaabbb,"), max_size=170), st.integers(1, 30) | st.just(75))
def test_cutting_agrees_with_filling_token_by_token(letters: list[str], size: int):
    """The rule as others state it: fill a chunk; when it is full, move what follows a comma close by to the next."""
    done: list[list[str]] = []
    filling: list[str] = []
    comma = -1
    for letter in letters:
        if letter == ",":
            comma = len(filling)
        elif len(filling) == size and comma >= 0 and size - comma <= {75: 20, 30: 8}.get(size, size * 20 // 75):
            done.append(filling[: comma + 1])
            filling, comma = filling[comma + 1 :], -1
        if len(filling) == size:
            done.append(filling)
            filling, comma = [], -1
        filling.append(letter)
    if filling or not done:
        done.append(filling)
    part = Chunk(tuple(map(ord, letters)), (1.0,) * len(letters))
    assert [list(map(chr, chunk.tokens)) for chunk in _cut(part, size, ord(","))] == done


@pytest.fixture(scope="module")
def sdxl() -> CLIPTokenizer:
    return clip_tokenizers()[0]


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["dog"] * 75, [75]),
        (["dog"] * 76, [75, 1]),
        (["dog"] * 150, [75, 75]),
        (["dog"] * 151, [75, 75, 1]),
        # a comma among the last 20 of a full chunk ends it; one before these, or the first of the next, does not
        (["dog"] * 74 + [","], [75]),
        (["dog"] * 74 + [",", "dog"], [75, 1]),
        (["dog"] * 60 + [","] + ["dog"] * 20, [61, 20]),
        (["dog"] * 55 + [","] + ["dog"] * 20, [56, 20]),
        (["dog"] * 54 + [","] + ["dog"] * 21, [75, 1]),
        (["dog"] * 75 + [","] + ["dog"], [75, 2]),
        (["dog"] * 60 + [","] + ["dog"] * 13 + [",", "dog"], [75, 1]),
        (["dog"] * 10 + ["BREAK"] + ["dog"] * 75, [10, 75]),
        (["dog"] * 75 + ["BREAK"] + ["dog"], [75, 1]),
        (["BREAK"] + ["dog"] * 76 + ["BREAK"], [0, 75, 1]),
    ],
)
def test_borders_of_sdxls_chunks(sdxl: CLIPTokenizer, words: list[str], sizes: list[int]):
    assert [len(chunk.tokens) for chunk in _chunked(sdxl, " ".join(words))] == sizes


@given(ANYTHING)
@settings(max_examples=60, deadline=None)
def test_any_text_is_encoded_or_refused(text_encoders: TextEncoders, text: str):
    try:
        prompt = expand(text, 1)
        count = count_chunks(text_encoders, prompt)
    except UserError:
        return
    assert 1 <= count <= MOST_CHUNKS
    features = encode_prompts(text_encoders, [prompt], count)
    assert features.context.shape == (1, count * 32, 64)
    assert features.context.isfinite().all()


def test_a_negative_prompt_that_is_longer_than_the_prompt(random_nano: Path):
    """Both get as many chunks as the longer needs, and what its last chunk says is seen."""
    components = load_components(random_nano)

    def asked(negative: str, guidance: float = 4.0) -> int:
        return needed(components, ImageRequest("a dog", 1, negative), Settings(guidance=guidance))

    assert (asked(""), asked(LONG * 2), asked(LONG * 3), asked(LONG * 2, guidance=1.0)) == (1, 2, 3, 1)
    one, other, short = (
        network(components, [ImageRequest("a dog", 1, text)], Settings(), Size(32, 32))(torch.zeros(1, 4, 16, 16), TIME)
        for text in (LONG + LONG, LONG + LONG.replace("black", "white"), "a")
    )
    assert one.isfinite().all()
    assert not torch.equal(one, other)
    assert not torch.equal(one, short)


def test_a_long_prompt_loses_no_word(text_encoders: TextEncoders):
    prompt = LONG * 8
    found = _chunked(text_encoders.tokenizer_1, prompt)
    assert len(found) == count_chunks(text_encoders, prompt) > 4
    whole = text_encoders.tokenizer_1(prompt, add_special_tokens=False, verbose=False).input_ids
    assert [token for chunk in found for token in chunk.tokens] == whole
    comma = text_encoders.tokenizer_1.convert_tokens_to_ids(",</w>")
    for before, after in pairwise(found):
        full = len(before.tokens) == 30
        assert full or before.tokens[-1] == comma
        # a comma that begins a chunk is one for which there was no place
        assert not full or after.tokens[0] == comma or comma not in before.tokens[-8:-1]
    assert {len(chunk.tokens) for chunk in found[:-1]} >= {30, 23}


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("", 1), ("a BREAK b", 2), ("a BREAK", 1), ("BREAK a", 2), ("a BREAK BREAK b", 3), ("BREAK", 1), ("a " * 31, 2)],
)
def test_counts(text_encoders: TextEncoders, prompt: str, count: int):
    assert count_chunks(text_encoders, prompt) == count


def test_chunks_are_readings_side_by_side(text_encoders: TextEncoders):
    """Of the first comes the pooled vector; both text encoders pad as SDXL's do; what is missing is the empty
    prompt.
    """
    features = encode_prompts(text_encoders, ["a red apple BREAK a dog"], 3)
    alone = text_encoders.encode(["a red apple", "a dog", ""])
    torch.testing.assert_close(features.context[0], alone.context.flatten(0, 1))
    torch.testing.assert_close(features.pooled[0], alone.pooled[0])


def test_too_long_and_too_short(text_encoders: TextEncoders):
    with pytest.raises(UserError, match=f"more than {MOST_CHUNKS} chunks of 30 tokens"):
        count_chunks(text_encoders, LONG * 100)
    with pytest.raises(UserError, match=f"more than {MOST_CHUNKS} chunks"):
        count_chunks(text_encoders, "BREAK a " * 40)
    with pytest.raises(ValueError, match="3 chunks in 1"):
        encode_prompts(text_encoders, ["a BREAK b BREAK c"], 1)


# Features


def test_a_weight_multiplies_the_vectors_of_its_tokens_alone(text_encoders: TextEncoders):
    plain = encode_prompts(text_encoders, ["a red apple, black"], 1)
    tokens = text_encoders.tokenizer_1("a red apple, black").input_ids
    weighted = encode_prompts(text_encoders, ["a (red apple:1.5), [black]"], 1)
    factor = torch.ones(32)
    factor[2:4], factor[5] = 1.5, 0.909091
    assert len(tokens) == 7  # begin, a, red, apple, comma, black, end
    assert torch.equal(weighted.context[0], plain.context[0] * factor[:, None])
    assert torch.equal(weighted.pooled, plain.pooled)


def test_weights_reach_the_tokens_of_later_chunks(text_encoders: TextEncoders):
    prompt = LONG + LONG
    size = len(text_encoders.tokenizer_1(LONG, add_special_tokens=False).input_ids)
    assert 15 < size < 30
    plain, weighted = (
        encode_prompts(text_encoders, [prompt], 2),
        encode_prompts(text_encoders, [f"{LONG} ({LONG}:2)"], 2),
    )
    words = [token for chunk in _chunked(text_encoders.tokenizer_1, prompt) for token in chunk.tokens]
    found = [token for chunk in _chunked(text_encoders.tokenizer_1, f"{LONG} ({LONG}:2)") for token in chunk.tokens]
    assert found == words == words[:size] * 2
    factor = torch.ones(64)
    factor[1 + size : 31], factor[33 : 33 + 2 * size - 30] = 2, 2  # between them an end and a begin
    assert torch.equal(weighted.context[0], plain.context[0] * factor[:, None])


def test_features_do_not_depend_on_the_batch(text_encoders: TextEncoders):
    prompts = ["a (dog:1.3)", LONG * 2, "", "a cat BREAK [a dog]", "a (dog:1.3)", "a dog"] * 3
    together = encode_prompts(text_encoders, prompts, 4)
    assert together.context.shape == (18, 4 * 32, 64)
    for row in range(6):
        alone = encode_prompts(text_encoders, [prompts[row]], 4)
        torch.testing.assert_close(alone.context[0], together.context[row])
        torch.testing.assert_close(alone.pooled[0], together.pooled[row])


def test_equal_chunks_are_read_once_and_at_most_64_at_a_time(text_encoders: TextEncoders):
    seen: list[int] = []
    handle = text_encoders.text_encoder_1.register_forward_pre_hook(
        lambda _, __, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    encode_prompts(text_encoders, ["a dog", "a (dog:1.2)", "a cat BREAK a dog", ""], 3)
    assert seen == [3]  # a dog, a cat, and the empty one
    encode_prompts(text_encoders, [f"number {number}" for number in range(100)], 1)
    handle.remove()
    assert seen == [3, 64, 36]


def other_words(text_encoders: TextEncoders) -> TextEncoders:
    """The second tokenizer with half of the merges: it needs more tokens for the same words."""
    tokenizer = text_encoders.tokenizer_2
    vocab = tokenizer.get_vocab()
    merges: Sequence[tuple[str, str]] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    fewer = [(one, two) for one, two in merges[: len(merges) // 4]]
    return replace(text_encoders, tokenizer_2=build_tokenizer(vocab, fewer, 32, "!"))


def test_tokenizers_with_other_words(text_encoders: TextEncoders):
    """Each text encoder counts and weights its own tokens."""
    foreign = other_words(text_encoders)
    prompt = "a photo of a background with strawberries, butterflies"
    first, second = (len(one(prompt).input_ids) for one in (foreign.tokenizer_1, foreign.tokenizer_2))
    assert first < second
    assert torch.equal(encode_prompts(foreign, [prompt], 1).context, foreign.encode([prompt]).context)
    plain, weighted = (encode_prompts(foreign, [text], 1).context[0] for text in (prompt, f"({prompt}:2)"))
    doubled = (weighted / plain).round()
    assert (doubled[:, :32].mean(-1) == 2).sum() == first - 2
    assert (doubled[:, 32:].mean(-1) == 2).sum() == second - 2
    long = "butterflies " * 20
    assert count_chunks(foreign, long) > count_chunks(text_encoders, long)
    assert encode_prompts(foreign, [long], count_chunks(foreign, long)).context.isfinite().all()


def test_text_encoders_of_different_length_are_refused(text_encoders: TextEncoders):
    vocab = text_encoders.tokenizer_2.get_vocab()
    short = replace(text_encoders, tokenizer_2=build_tokenizer(vocab, [], 16, "!"))
    with pytest.raises(UserError, match="reads 32 tokens, the second 16"):
        encode_prompts(short, ["a"], 1)
