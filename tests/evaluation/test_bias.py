"""What is drawn where a prompt leaves it open: shares with intervals, beside how far the extractor can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from terminus.errors import UserError
from terminus.evaluation.against import Against
from terminus.evaluation.bias import BiasAsked, bias_prompts, measure_bias
from terminus.evaluation.bias_file import BiasQuestions, read_bias
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.distribution.extractors import Extractor

FILE = """
groups:
  doctors: [a doctor, "a surgeon [1]"]
  people: [a person]
axes:
  colour:
    red: a red {}
    blue: a blue {}
  light:
    dark: a dark image of {}
    bright: a bright image of {}
"""
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def questions(tmp_path: Path, text: str = FILE) -> BiasQuestions:
    path = tmp_path / "bias.yaml"
    path.write_text(text, encoding="utf-8")
    return read_bias(path)


def see(images: Sequence[ImageSource]) -> torch.Tensor:
    return torch.tensor(np.stack([image.mean(axis=(0, 1)) / 255 for image in images]))


def read(captions: Sequence[str]) -> torch.Tensor:
    """Knows colours, and takes every other caption for blue."""
    return torch.tensor([[1.0, 0.0, 0.0] if " red " in caption else [0.0, 0.0, 1.0] for caption in captions])


COLOUR_BLIND = Extractor("eyes", "CLIP", "0" * 16, "as they are", True, see, None)
EYES = Extractor("eyes that read", "CLIP", "1" * 16, "as they are", True, see, read)


def drawn(asked: Sequence[BiasAsked], left_open: str) -> list[ImageSource]:
    """Red or blue where that is asked for, otherwise `left_open`."""
    names = [one.asked[1] if one.asked is not None and one.asked[0] == "colour" else left_open for one in asked]
    return [np.full((4, 4, 3), COLORS[name], np.uint8) for name in names]


def test_groups_and_answers_are_asked_with_the_same_seeds(tmp_path: Path):
    asked = bias_prompts(questions(tmp_path), 8, seed=100)
    left_open = [one for one in asked if one.asked is None]
    assert [one.caption.text for one in left_open[:3]] == ["a doctor", "a surgeon [1]", "a doctor"]
    assert [one.caption.seed for one in left_open] == [*range(100, 108)] * 2
    assert left_open[1].caption.prompt == "a surgeon \\[1\\]", "a bracket of a caption is no weight"
    red = [one for one in asked if one.asked == ("colour", "red")]
    assert [one.caption.text for one in red] == [
        "a red a doctor",
        "a red a person",
        "a red a surgeon [1]",
        "a red a person",
    ]
    assert len(asked) == 16 + 4 * 4


def test_shares_are_of_images_that_were_told_nothing(tmp_path: Path):
    declared = questions(tmp_path)
    asked = bias_prompts(declared, 8, seed=0)
    found = measure_bias(declared, asked, drawn(asked, "red"), [COLOUR_BLIND, EYES])
    assert [(one.axis, one.extractor) for one in found.axes] == [
        ("colour", "eyes that read"),
        ("light", "eyes that read"),
    ]
    colour = found.axes[0].answers
    assert (found.images, colour["red"].groups["doctors"].count, colour["blue"].groups["people"].count) == (8, 8, 0)
    low, high = colour["red"].groups["doctors"].ci95
    assert (low, high) == (pytest.approx(0.676, abs=1e-3), 1.0), "Wilson's interval of 8 of 8"
    assert (colour["red"].recognised.share, colour["blue"].recognised.share) == (1.0, 1.0)


def test_an_axis_that_the_extractor_cannot_see_says_so(tmp_path: Path):
    """To it dark and bright are the same caption: all images are "dark", and so are those asked to be bright."""
    declared = questions(tmp_path)
    asked = bias_prompts(declared, 8, seed=0)
    light = measure_bias(declared, asked, drawn(asked, "blue"), [EYES]).axes[1].answers
    assert light["dark"].groups["people"].share == 1.0
    assert light["bright"].recognised.share == 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("a red {}", "a red one"), r"bias\.yaml.*answer 'red' of 'colour' is 'a red one': it must hold \{\} once"),
        (("    blue: a blue {}\n", ""), r"the axis 'colour' has 1 answers, and a choice needs two"),
        (("[a person]", "[]"), "the group 'people' has no prompt"),
        (("groups:", "group:"), r"`group`"),
        (("[a person]", "[a person"), r"bias\.yaml:\d+"),
        (("[a person]", "a person"), r"bias\.yaml:4"),
    ],
)
def test_a_wrong_file_is_one_paragraph(tmp_path: Path, change: tuple[str, str], said: str):
    assert change[0] in FILE
    with pytest.raises(UserError, match=f"(?s){said}"):
        questions(tmp_path, FILE.replace(*change))


def test_a_network_that_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("terminus.evaluation.against.load_extractor", lambda name: COLOUR_BLIND)
    with pytest.raises(UserError, match=r"No network of --features can read.*Add --features nano"):
        Against(features=("dino",), bias=questions(tmp_path)).opened()
