"""Is a card still what its run says? Compares a README.md with what would be written now.

People may add prose to a card; what they may not do is change, drop or add a number that the run's files do not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import yaml
from huggingface_hub import ModelCard

BLANK = "[More Information Needed]"
HEADINGS = (
    "## Model Details", "### Model Description", "### Model Sources",
    "## Uses", "### Direct Use", "### Downstream Use", "### Out-of-Scope Use",
    "## Bias, Risks, and Limitations", "### Recommendations", "## How to Get Started with the Model",
    "## Training Details", "### Training Data", "### Training Procedure", "#### Preprocessing",
    "#### Training Hyperparameters", "#### Speeds, Sizes, Times",
    "## Evaluation", "### Testing Data, Factors & Metrics", "#### Testing Data", "#### Factors", "#### Metrics",
    "### Results", "#### Summary", "## Model Examination", "## Environmental Impact",
    "## Technical Specifications", "### Model Architecture and Objective", "### Compute Infrastructure",
    "#### Hardware", "#### Software", "## Citation", "## Glossary", "## More Information", "## Model Card Authors",
    "## Model Card Contact",
)  # fmt: skip
"""Every section of huggingface_hub's template, in its order."""

_NUMBER = re.compile(r"\d[\d,.]*(?:e[+-]?\d+)?")
_MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:home|Users|root|tmp|mnt|work|var)/")


@dataclass(frozen=True)
class _Card:
    """Front matter and body; the body by line."""

    data: dict[str, object]
    lines: tuple[str, ...]


def card_problems(card: str, expected: str) -> list[str]:
    """Problems of a card, beside the one that the run's files make; empty if there are none."""
    try:
        found = _parsed(card)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        return [f"the YAML front matter cannot be read ({' '.join(str(error).split())})"]
    # What the run's files make now is the measure, so that nothing is stated twice.
    right = _parsed(expected)
    texts = [f"{BLANK} occurs {card.count(BLANK)} times"] if BLANK in card else []
    if _MACHINE_PATH.search(card):
        texts.append("it names a path of one machine")
    return [*_metadata(found, right), *_sections(found.lines), *texts, *_numbers(found.lines, right.lines)]


def document_problems(found: str, right: str) -> list[str]:
    """Problems of a document without front matter: headings, blanks, and numbers, as those of a card."""
    lines, expected = [[line.rstrip() for line in text.splitlines()] for text in (found, right)]
    headings = [[line for line in some if re.match(r"#{1,4} ", line)] for some in (lines, expected)]
    problems = [f"the section `{heading}` is missing" for heading in headings[1] if heading not in headings[0]]
    if BLANK in found:
        problems.append(f"{BLANK} occurs {found.count(BLANK)} times")
    if _MACHINE_PATH.search(found):
        problems.append("it names a path of one machine")
    return [*problems, *_numbers(lines, expected)]


def _parsed(text: str) -> _Card:
    card = ModelCard(text)
    data = cast(dict[str, object], card.data.to_dict())
    if not data:
        raise ValueError("there is none")
    return _Card(data, tuple(line.rstrip() for line in card.text.splitlines()))


def _metadata(found: _Card, right: _Card) -> Iterator[str]:
    for key, value in right.data.items():
        if found.data.get(key) != value:
            yield f"`{key}` of the front matter is {found.data.get(key)!r}, the run says {value!r}"


def _sections(lines: Sequence[str]) -> Iterator[str]:
    headings = [line for line in lines if line in HEADINGS]
    missing = [heading for heading in HEADINGS if heading not in headings]
    for heading in missing:
        yield f"the section `{heading}` is missing"
    # Said only where none is missing: every missing one would shift the order too.
    if not missing and headings != list(HEADINGS):
        yield "the sections are not in the template's order, or one is there twice"
    for heading in _empty(lines):
        yield f"the section `{heading}` is empty"


def _empty(lines: Sequence[str]) -> Iterator[str]:
    """Headings without text, in their order; sections of a deeper level count as text."""
    # A section ends where the next heading begins, of whatever level.
    places = [index for index, line in enumerate(lines) if line in HEADINGS]
    for index, end in zip(places, [*places[1:], len(lines)], strict=True):
        deeper = end < len(lines) and _depth(lines[end]) > _depth(lines[index])
        if not deeper and not any(line.strip() for line in lines[index + 1 : end]):
            yield lines[index]


def _numbers(found: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """Every line with numbers must be there as the run says it; other lines may hold no other numbers."""
    said, there = set(right), set(found)
    for line in right:
        if _NUMBER.search(line) and line not in there:
            yield f"missing or changed: {line.strip()}"
    # Prose that people add may repeat a number of the run; any other would be a claim without a source.
    known = {number for line in right for number in _values(line)}
    for line in found:
        strange = [number for number in _values(line) if number not in known]
        if line not in said and strange:
            yield f"{', '.join(strange)} is not in the run's files: {line.strip()}"


def _values(line: str) -> list[str]:
    return [number.rstrip(".,") for number in _NUMBER.findall(line)]


def _depth(heading: str) -> int:
    return len(heading) - len(heading.lstrip("#"))
