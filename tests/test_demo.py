"""The demo teaches one colour beside all that its parent knows, and says of every one what became of it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console

from terminus import demo, runtime
from terminus.config.load import load
from terminus.data.emoji import BACKGROUNDS
from terminus.data.sources.embedded import EmbeddedSource
from terminus.training.recipe import Recipe


def backgrounds_of(recipe: str) -> dict[str, set[str]]:
    sources = load(recipe, Recipe).value.data.sources
    return {one.name: set(one.colors) for one in sources if isinstance(one, EmbeddedSource)}


def test_every_colour_that_the_parent_knows_is_shown_again():
    (known,) = backgrounds_of("nano-focus").values()
    assert backgrounds_of("demo") == {demo.TAUGHT: {demo.TAUGHT}, "known colours": known}
    assert known == set(BACKGROUNDS) - {demo.TAUGHT}


def test_it_trains_in_a_format_that_every_cpu_has():
    assert load("demo", Recipe).value.training.precision == "fp32"


@pytest.mark.parametrize(
    ("has", "precision", "slow"), [(False, "bf16", True), (True, "bf16", False), (False, "fp32", False)]
)
def test_bfloat16_without_instructions_is_known(has: bool, precision: Any, slow: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "_has_bf16", lambda: has)
    assert runtime.computes_in_software(torch.device("cpu"), precision) is slow
    assert runtime.computes_in_software(torch.device("meta"), precision) is False


def test_what_was_forgotten_is_said():
    console = Console(width=120, record=True, file=io.StringIO())
    before = {"teal": 0.48, "yellow": 0.02, "red": 0.02}
    for part in demo.colors(before, {"teal": 0.06, "yellow": 0.4, "red": 0.05}):
        console.print(part)
    text = console.export_text()
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert lines["teal"] == ["0.480", "0.060", "better"]
    assert lines["yellow"] == ["0.020", "0.400", "worse"]
    assert lines["red"] == ["0.020", "0.050"]
    assert "Better by more than 0.05: teal. Worse: yellow." in text
