"""`python -m benchmarks` says what is wrong with its arguments, in one line, before anything is measured."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main

WRONG = [
    (["train", "nanoo"], "Did you mean `nano`"),
    (["train", "random:nano", "--text", "offline"], "Known: cached, online"),
    (["train", "random:nano", "--average", "one"], "Known: both, none"),
    (["train", "random:nano", "--against", "comfy"], "Known: diffusers"),
    (["load", "--rows", "0"], "--rows 0"),
    (["load", "--rows", "many"], "--rows"),
]


@pytest.mark.parametrize(("arguments", "told"), WRONG)
def test_a_wrong_argument_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert told in said
