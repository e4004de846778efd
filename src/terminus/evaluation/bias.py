"""What does a model draw where a prompt leaves it open? Images of declared prompts, told apart by declared answers.

The choice is CLIP's zero-shot classification (Radford et al. 2103.00020, section 3.1): of the captions that an axis
declares, the one nearest to the image. How far that can be believed is measured beside it, on images that were asked
for each answer in words. The shares are what one extractor sees in the images of these prompts, and nothing beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from terminus.evaluation.bias_file import PLACE, BiasQuestions
from terminus.evaluation.captions import DrawnCaption, ImageSource
from terminus.evaluation.distribution.extractors import Extractor
from terminus.evaluation.memorised import Rate, wilson_rate
from terminus.sampling.prompts import escape

LEAST_ASKED = 4
DEFINITION = (
    "of the images of a group of prompts, the share to which the extractor finds each declared answer nearest (by the "
    "cosine of image and caption), with Wilson's interval; what is recognised is the share of those asked for that "
    "answer in words in which the extractor finds it: a share says no more than that allows, and nothing beyond these "
    "prompts"
)


@dataclass(frozen=True)
class BiasAsked:
    """One image that is drawn: of a group as it stands, or of one answer in words."""

    caption: DrawnCaption
    group: str
    prompt: str
    """The group's prompt in it."""
    asked: tuple[str, str] | None = None
    """Axis and answer that it names; None for the prompt alone."""


@dataclass(frozen=True)
class BiasAnswer:
    """How often one answer was seen."""

    caption: str
    """Its declared text."""
    groups: dict[str, Rate]
    """By group, where nothing was said of the axis."""
    recognised: Rate
    """Of the images that were asked for it."""


@dataclass(frozen=True)
class BiasAxis:
    """One axis, as one extractor sees it."""

    axis: str
    extractor: str
    fingerprint: str
    answers: dict[str, BiasAnswer]


@dataclass(frozen=True)
class Bias:
    """The whole probe."""

    groups: dict[str, tuple[str, ...]]
    """Prompts that were drawn."""
    images: int
    """Of each group."""
    axes: tuple[BiasAxis, ...]


def bias_prompts(questions: BiasQuestions, count: int, seed: int) -> list[BiasAsked]:
    """`count` images of each group, then a quarter as many (4 at least) of each answer in words."""
    groups = list(questions.groups)
    found = [_asked(questions, group, number, seed) for group in groups for number in range(count)]
    for axis, answers in questions.axes.items():
        for answer in answers:
            for number in range(max(LEAST_ASKED, count // 4)):
                group = groups[number % len(groups)]
                found.append(_asked(questions, group, number // len(groups), seed, (axis, answer)))
    return found


def _asked(
    questions: BiasQuestions, group: str, number: int, seed: int, named: tuple[str, str] | None = None
) -> BiasAsked:
    prompt = questions.prompt_of(group, number)
    text = prompt if named is None else questions.axes[named[0]][named[1]].replace(PLACE, prompt)
    # The same seeds for every group and answer: what differs is what was said.
    return BiasAsked(DrawnCaption(text, escape(text), seed + number), group, prompt, named)


def measure_bias(
    questions: BiasQuestions,
    asked: Sequence[BiasAsked],
    images: Sequence[ImageSource],
    extractors: Sequence[Extractor],
    advance: Callable[[int], None] = lambda count: None,
) -> Bias:
    """Of image i for prompt i of `bias_prompts`, by every extractor that reads."""
    axes: list[BiasAxis] = []
    for extractor in extractors:
        if extractor.read is None:
            continue
        seen = extractor.images(images, advance)
        for axis, answers in questions.axes.items():
            chosen = _chosen(extractor, list(answers.values()), asked, seen)
            found = dict(_answers(axis, answers, asked, chosen))
            axes.append(BiasAxis(axis, extractor.name, extractor.fingerprint, found))
    first = next(iter(questions.groups))
    images_of_group = sum(one.asked is None and one.group == first for one in asked)
    return Bias(dict(questions.groups), images_of_group, tuple(axes))


def _chosen(extractor: Extractor, captions: Sequence[str], asked: Sequence[BiasAsked], seen: np.ndarray) -> np.ndarray:
    """For each image the number of the nearest answer, in the words of the image's own prompt."""
    chosen = np.zeros(len(asked), int)
    for prompt in dict.fromkeys(one.prompt for one in asked):
        rows = [row for row, one in enumerate(asked) if one.prompt == prompt]
        read = extractor.captions([caption.replace(PLACE, prompt) for caption in captions])
        chosen[rows] = (seen[rows] @ read.T).argmax(axis=1)
    return chosen


def _answers(
    axis: str, answers: dict[str, str], asked: Sequence[BiasAsked], chosen: np.ndarray
) -> Iterator[tuple[str, BiasAnswer]]:
    open_rows: dict[str, list[int]] = {}
    for row, one in enumerate(asked):
        if one.asked is None:
            open_rows.setdefault(one.group, []).append(row)

    def share(number: int, rows: list[int]) -> Rate:
        return wilson_rate(int((chosen[rows] == number).sum()), len(rows))

    for number, (answer, caption) in enumerate(answers.items()):
        named = [row for row, one in enumerate(asked) if one.asked == (axis, answer)]
        shares = {group: share(number, rows) for group, rows in open_rows.items()}
        yield answer, BiasAnswer(caption, shares, share(number, named))
