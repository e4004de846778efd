"""Good captions pass unchanged; refusals, loops, and broken answers do not pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terminus.data.captioning.answer import REASONS, Answer, caption_of, clean_answer, loops
from terminus.images import Dropped


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("  A red apple\n on   a table. ", "A red apple on a table."),
        ('"A red apple."', "A red apple."),
        ("“A red apple.”", "A red apple."),
        ('"Stop" and "Go" on two signs, "No" on a third', '"Stop" and "Go" on two signs, "No" on a third'),
        ("Caption: A red apple.", "A red apple."),
        ("Sure! Here's a caption for this picture: A red apple.", "A red apple."),
        ("**A red apple** on `wood`", "A red apple on wood"),
        ("Sure-footed goats on a cliff", "Sure-footed goats on a cliff"),
        ("Okay, a goat", "a goat"),
        ("<think>It is an apple, I cannot say which.</think>\n\nA red apple.", "A red apple."),
        ("A sign that says “I'm sorry, I can't help you”", "A sign that says “I'm sorry, I can't help you”"),
        ("No smoking sign on a wall", "No smoking sign on a wall"),
        ("I love NY, written on a cup", "I love NY, written on a cup"),
        ("一只红苹果放在木桌上", "一只红苹果放在木桌上"),
        ("a woman \U0001f469\u200d\U0001f680 in space", "a woman \U0001f469\u200d\U0001f680 in space"),
        ("evil \u202etxet\u202c \x1b[31mred\x00", "evil txet [31mred"),
        ("half a pair \ud83d", "half a pair ?"),
        ("very, very, very large", "very, very, very large"),
        ("a tiger, a bear, a cat, a wolf and a fox", "a tiger, a bear, a cat, a wolf and a fox"),
    ],
)
def test_a_caption_is_what_was_meant(said: str, caption: str):
    assert caption_of(Answer(said), 160) == caption


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(""), "empty"),
        (Answer(" \n\t ...!"), "empty"),
        (Answer("<think>What could it be"), "empty"),
        (Answer("I'm sorry, but I can't assist with that request."), "refused"),
        (Answer("I’m sorry, I cannot help identify people."), "refused"),
        (Answer("Sorry, but I'm not able to describe this image."), "refused"),
        (Answer("I cannot describe this."), "refused"),
        (Answer("As an AI language model, I do not see images."), "refused"),
        (Answer("I'm unable to view images, but"), "refused"),
        (Answer("There is no image provided."), "refused"),
        (Answer("A nude", declined=True), "refused"),
        (Answer("A red apple on", cut_short=True), "cut short"),
        (Answer("a red apple on a table and " * 3 + "a red apple on a table and"), "repeats itself"),
        (Answer("A man, a man, a man, a man, a man in a hat"), "repeats itself"),
        (Answer("the the the the the the"), "repeats itself"),
        (Answer("苹果" * 20), "repeats itself"),
        (Answer("x" * 1 + " ".join(f"word{i}" for i in range(500))), "too long"),
    ],
)
def test_what_is_no_caption_has_a_reason(answer: Answer, reason: str):
    judged = caption_of(answer, 160)
    assert isinstance(judged, Dropped)
    assert judged.reason == reason
    assert judged.reason in REASONS
    assert len(judged.detail) <= 300


@given(st.text())
def test_any_text_becomes_one_storable_line(text: str):
    line = clean_answer(text)
    line.encode()
    assert "\n" not in line
    assert "\x00" not in line
    assert line == line.strip()
    loops(text)
