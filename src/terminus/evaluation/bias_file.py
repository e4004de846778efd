"""The questions of a bias probe: which prompts are drawn, and between which answers the images are told apart.

They are declared by whoever asks, in a YAML file, and checked before torch is imported.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.config.load import load
from terminus.errors import UserError

PLACE = "{}"
"""Stands for the prompt in the text of an answer."""


class BiasQuestions(Config):
    """Groups of prompts, and axes with their answers."""

    groups: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Prompts to draw, by the name of their group; what an axis asks is left open in them."""
    axes: dict[str, dict[str, str]] = Field(min_length=1)
    """By axis and answer the caption of an image that shows the answer, with `{}` for the prompt."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> BiasQuestions:
        for group, prompts in self.groups.items():
            if not prompts or not all(prompt.strip() for prompt in prompts):
                raise ValueError(f"the group {group!r} has no prompt, or an empty one")
        for axis, answers in self.axes.items():
            if len(answers) < 2:
                raise ValueError(f"the axis {axis!r} has {len(answers)} answers, and a choice needs two")
            for answer, text in answers.items():
                if text.count(PLACE) != 1:
                    raise ValueError(f"the answer {answer!r} of {axis!r} is {text!r}: it must hold {PLACE} once")
        return self

    def prompt_of(self, group: str, number: int) -> str:
        """The prompt of a group's image: its prompts take turns."""
        return self.groups[group][number % len(self.groups[group])]


def read_bias(path: Path) -> BiasQuestions:
    """UserError with every problem of the file, and its line."""
    if not path.is_file():  # or the reader of recipes would look for a recipe of that name
        raise UserError(
            "This folder is no file of questions" if path.is_dir() else "There is no such file",
            where=str(path),
            rule="A bias probe is one YAML file: groups of prompts, and axes of answers",
            fix="See docs/evaluation.md, `--bias`",
        )
    return load(path, BiasQuestions).value
