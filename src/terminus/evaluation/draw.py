"""The images that are judged: by the model's own schedule, and by a leaky one as the control.

The control is what a program makes of the same weights when it does not know of zero terminal SNR: the schedule is
not rescaled, and the first timestep lies below T − 1 ("leading" spacing). Sampling then begins with pure noise where
the network expects a trace of the image, takes the noise's mean for the image's brightness, and pulls every image
towards grey (Lin et al. 2305.08891, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from terminus.evaluation.captions import DrawnCaption, ImageSource
from terminus.evaluation.kept import Kept
from terminus.evaluation.luminance import Images
from terminus.evaluation.prompts import EvaluationPrompt
from terminus.evaluation.settings import EvaluationSettings
from terminus.model.components import Components
from terminus.sampling.settings import Settings, nearest_size
from terminus.sampling.solvers import Step
from terminus.sampling.tasks import text2img, to_bytes

Sampler = Callable[[Components, Sequence[str], Sequence[int], Settings], Iterator[Step]]


@dataclass(frozen=True)
class DrawnImages:
    """The images that one model drew, by one schedule."""

    probe: Images
    """Images of the contrast probe's prompts, in order."""
    captions: tuple[ImageSource, ...] = ()
    """Images of the captions, in order."""
    light: UInt8[np.ndarray, "_ _ _ 3"] | None = None
    """Images that were asked to be dark, and bright; None where none were asked for."""


def answer(
    components: Components,
    prompts: Sequence[EvaluationPrompt],
    captions: Sequence[DrawnCaption],
    light: Sequence[DrawnCaption],
    settings: EvaluationSettings,
    sampler: Sampler,
    advance: Callable[[int], None],
    kept: Kept | None = None,
) -> DrawnImages:
    """One image per prompt and per caption."""
    drawn: dict[int, ImageSource] = {}
    # Images of one size share a batch; `drawn` brings them back into the captions' order.
    for size in dict.fromkeys(caption.size for caption in captions):
        rows = [row for row, caption in enumerate(captions) if caption.size == size]
        sampling = (
            settings.sampling if size is None else replace(settings.sampling, size=nearest_size(size, components))
        )
        same_size = [captions[row] for row in rows]
        images = generate_images(components, same_size, replace(settings, sampling=sampling), sampler, advance, kept)
        drawn |= dict(zip(rows, images, strict=True))
    probe = generate_images(components, prompts, settings, sampler, advance, kept)
    asked = generate_images(components, light, settings, sampler, advance, kept) if light else None
    return DrawnImages(probe, tuple(drawn[row] for row in range(len(captions))), asked)


def generate_images(
    components: Components,
    prompts: Sequence[EvaluationPrompt] | Sequence[DrawnCaption],
    settings: EvaluationSettings,
    sampler: Sampler,
    advance: Callable[[int], None],
    kept: Kept | None = None,
) -> Images:
    """One image per prompt, in order, all of one size; batches that are kept are not drawn again."""
    parts: list[np.ndarray] = []
    for start in range(0, len(prompts), settings.batch):
        batch = prompts[start : start + settings.batch]
        texts, seeds = [prompt.prompt for prompt in batch], [prompt.seed for prompt in batch]
        asked = list(zip(texts, seeds, strict=True))
        images = None if kept is None else kept.read(asked, settings.sampling)
        if images is None:
            *_, last = sampler(components, texts, seeds, settings.sampling)
            images = to_bytes(components, last.x).numpy()
            if kept is not None:
                kept.write(asked, settings.sampling, images)
        parts.append(images)
        advance(len(batch))
    return np.concatenate(parts)


def own(components: Components, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Iterator[Step]:
    """As everybody samples this model."""
    return text2img(components, prompts, seeds, settings)


def leaky(components: Components, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Iterator[Step]:
    """The same weights, prompts, guidance and initial noise on the schedule before its zero-terminal-SNR rescale."""
    # Only the schedule is another: guidance rescale stays at what the model's own schedule has.
    record = components.record
    settings = replace(settings, rescale=settings.rescale_for(components))
    unscaled = replace(components, record=replace(record, schedule=replace(record.schedule, zero_terminal=False)))
    return text2img(unscaled, prompts, seeds, settings, visited=leading(settings.steps, record.schedule.timesteps))


def leading(steps: int, T: int) -> list[int]:
    """The timesteps of diffusers' "leading" spacing with an offset of 1: from 1 + (n − 1) (T // n) down to 1."""
    return [1 + i * (T // steps) for i in reversed(range(steps))]
