"""How much an evaluation draws, and how: recorded in `metrics.json`, because every number depends on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from terminus.sampling.settings import Settings


@dataclass(frozen=True)
class EvaluationSettings:
    """The defaults are those of `terminus evaluate`."""

    extreme_images: int = 64
    """Pictures asked for on black, and as many on white."""
    color_images: int = 4
    """Pictures asked for on each other background."""
    seed: int = 0
    """Decides the subjects, and is the first picture's seed; the others count on."""
    batch: int = 32
    """Pictures per forward pass; no influence on the numbers beyond rounding."""
    sampling: Settings = field(default_factory=Settings)


FULL = EvaluationSettings()
QUICK = replace(FULL, sampling=replace(FULL.sampling, steps=16))
"""As many pictures as `FULL` with fewer solver steps: for the demo."""
