"""Several models or folders beside the first of them: the same prompts and seeds, so that differences are of pairs.

A prompt that is hard is hard for all; the difference of a pair is free of it. Its interval is therefore much narrower
than the two intervals of the means let one think.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from terminus.errors import UserError
from terminus.evaluation.distribution.measure import Distribution
from terminus.evaluation.luminance import Mean, mean_of
from terminus.evaluation.rows import EvaluationRow

FORMAT = 1
DEFINITIONS = {
    "difference": "mean over pairs of images (same prompt and seed) of the second's number minus the first's, with the "
    "95 % percentile interval of 1000 bootstrap resamples over pairs; `clear` where the interval excludes 0",
    "larger": "share of pairs in which the second's number is the larger one",
    "luma error": "absolute difference between the border luminance of an image and the luma of the colour asked for",
    "luma, asked dark / bright": "mean luma of whole images",
}


@dataclass(frozen=True)
class Difference:
    """One number of one subject beside the first subject's, over pairs."""

    number: str
    pairs: int
    first: float
    """Mean of the first subject."""
    other: float
    difference: Mean
    larger: float
    clear: bool

    @property
    def in_unit(self) -> bool:
        """Whether the number lies in 0..1, and can share an axis with others that do."""
        return not self.number.startswith("score")


@dataclass(frozen=True)
class Subject:
    """One model or folder, beside the first."""

    name: str
    folder: str
    """Of its own evaluation, in the comparison's."""
    distributions: tuple[Distribution, ...]
    differences: tuple[Difference, ...]
    """() for the first."""


@dataclass(frozen=True)
class Comparison:
    """Everything in `metrics.json` of a comparison."""

    subjects: tuple[Subject, ...]
    definitions: Mapping[str, str]
    kind: str = "comparison"
    format: int = FORMAT


def differences(
    first: Sequence[EvaluationRow], other: Sequence[EvaluationRow], where: str = ""
) -> tuple[Difference, ...]:
    """Of every number that both have; UserError where no image of one has a partner in the other."""
    ours, theirs = {row.key: row.values for row in first}, {row.key: row.values for row in other}
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise UserError(
            "No image of it has a partner in the first",
            where=where,
            rule="Pairs are images of the same prompt and seed; in folders, files of the same name",
            fix="Compare models with the same --prompts and --seed, or folders whose files are named alike",
        )
    found: list[Difference] = []
    names = dict.fromkeys(name for key in shared for name in ours[key] if name in theirs[key])
    for name in names:
        keys = [key for key in shared if name in ours[key] and name in theirs[key]]
        a, b = (np.array([values[key][name] for key in keys]) for values in (ours, theirs))
        change = mean_of(b - a)
        low, high = change.ci95
        clear = len(keys) > 1 and (low > 0 or high < 0)
        larger = float((b > a).mean())
        found.append(Difference(name, len(keys), float(a.mean()), float(b.mean()), change, larger, clear))
    return tuple(found)
