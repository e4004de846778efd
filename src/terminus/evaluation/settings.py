"""The extent and settings of an evaluation: recorded in `metrics.json`, because every number depends on it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from terminus.sampling.settings import Settings


@dataclass(frozen=True)
class EvaluationSettings:
    """The defaults are those of `terminus evaluate`."""

    captions: int = 32
    """Held-out captions of the run's own data; prompts of a file are drawn all."""
    extreme_images: int = 32
    """Images that the contrast probe asks for on black, and as many on white."""
    color_images: int = 4
    """Images that it asks for on each other background."""
    light_images: int = 16
    """Images that are asked to be dark, and as many to be bright."""
    inpainted_images: int = 4
    """Images of the probe in whose middle the model paints a hole, each in four ways."""
    seed: int = 0
    """Decides the captions and the probe's subjects, and is the first image's seed; the others count on."""
    batch: int = 32
    """Images per forward pass; no influence on the numbers beyond rounding."""
    sampling: Settings = field(default_factory=Settings)

    def counted(self, count: int) -> EvaluationSettings:
        """With `count` captions, and as many images of the probe on black and on white."""
        few = min(self.color_images, count)
        return replace(
            self,
            captions=count,
            extreme_images=count,
            color_images=few,
            light_images=min(self.light_images, count),
            inpainted_images=min(self.inpainted_images, count),
        )


FULL = EvaluationSettings()
QUICK = replace(FULL, inpainted_images=1, sampling=replace(FULL.sampling, steps=16))
"""As many images as `FULL` with fewer solver steps: for the demo."""


def settings_for(count: int | None, steps: int, seed: int) -> EvaluationSettings:
    """Those of a command line; a `count` of None is the usual one."""
    settings = replace(FULL, seed=seed, sampling=Settings(steps=steps))
    return settings if count is None else settings.counted(count)
