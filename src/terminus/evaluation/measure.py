"""From the images of all sets to the numbers: every set is measured alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from terminus.evaluation.alignment import DEFINITION, HELD_OUT, PROBE, Alignment, AlignmentEncoders, measure_alignment
from terminus.evaluation.captions import Captions, ImageSource
from terminus.evaluation.contrast import HistogramDistance, histogram_distance, measure_contrast
from terminus.evaluation.draw import DrawnImages
from terminus.evaluation.light import Light, measure_light
from terminus.evaluation.luminance import Images
from terminus.evaluation.metrics import AlignmentSets, ContrastSets, LightSets, LuminanceDistances
from terminus.evaluation.prompts import EvaluationPrompt

HELD_OUT_IMAGES = "the run's held-out images"
PROBE_IMAGES = "the embedded drawings of the contrast probe"


@dataclass(frozen=True)
class EvaluationImages:
    """All images of one evaluation; every set answers the same prompts and captions in the same order."""

    prompts: Sequence[EvaluationPrompt]
    """Prompts of the contrast probe."""
    captions: Captions | None
    own: DrawnImages
    leaky: DrawnImages | None
    """The control's; None for a model that has none."""
    before: DrawnImages | None
    """The parent's; None without one."""
    real: Images | None
    """The drawings that the probe asks for; None where it asks for everyday subjects."""
    probe_is_data: bool
    """Whether the probe's drawings stand for the model's data: those of its run are not known."""


@dataclass(frozen=True)
class _Pairs:
    """Captions with their real images: the run's held-out ones, or rows of the probe."""

    texts: Sequence[str]
    real: Sequence[ImageSource]
    rows: Sequence[int] | None = None
    """Rows of the probe; None for the held-out captions."""

    def of(self, answers: DrawnImages) -> Sequence[ImageSource]:
        """The images of one set for these captions."""
        return answers.captions if self.rows is None else [answers.probe[row] for row in self.rows]


def contrast(gallery: EvaluationImages) -> ContrastSets:
    """The contrast probe of every set."""
    prompts = gallery.prompts
    return ContrastSets(
        ztsnr=measure_contrast(prompts, gallery.own.probe),
        leaky_control=None if gallery.leaky is None else measure_contrast(prompts, gallery.leaky.probe),
        before=None if gallery.before is None else measure_contrast(prompts, gallery.before.probe),
        data=None if gallery.real is None else measure_contrast(prompts, gallery.real),
    )


def light(gallery: EvaluationImages) -> LightSets | None:
    """Whole images that were asked to be dark or bright; None where none were."""

    def of(answers: DrawnImages | None) -> Light | None:
        return None if answers is None or answers.light is None else measure_light(answers.light)

    own = of(gallery.own)
    return None if own is None else LightSets(own, of(gallery.leaky), of(gallery.before))


def image_luminance(gallery: EvaluationImages) -> LuminanceDistances | None:
    """Distances to the run's held-out images, or to the probe's held-out drawings; None where neither are known."""
    pairs = _pairs(gallery, [row for row, prompt in enumerate(gallery.prompts) if prompt.held_out])
    if pairs is None:
        return None

    def distance(answers: DrawnImages) -> HistogramDistance:
        return histogram_distance(pairs.of(answers), pairs.real)

    return LuminanceDistances(
        against=HELD_OUT_IMAGES if pairs.rows is None else PROBE_IMAGES,
        ztsnr=distance(gallery.own),
        leaky_control=None if gallery.leaky is None else distance(gallery.leaky),
        before=None if gallery.before is None else distance(gallery.before),
    )


def alignment(gallery: EvaluationImages, judge: AlignmentEncoders) -> AlignmentSets | None:
    """Agreement with the run's held-out captions, or with the probe's on black; None where `judge` cannot tell."""
    pairs = _pairs(gallery, [row for row, prompt in enumerate(gallery.prompts) if prompt.background == "black"])
    if pairs is None:
        return None
    held_out = [] if pairs.rows is None else [gallery.prompts[row].held_out is True for row in pairs.rows]

    def agreement(images: Sequence[ImageSource]) -> Alignment | None:
        return measure_alignment(judge, pairs.texts, images, held_out)

    ours, known = agreement(pairs.of(gallery.own)), agreement(pairs.real)
    if ours is None or known is None:
        return None
    return AlignmentSets(
        definition=DEFINITION + (HELD_OUT if pairs.rows is None else PROBE),
        ztsnr=ours,
        leaky_control=None if gallery.leaky is None else agreement(pairs.of(gallery.leaky)),
        before=None if gallery.before is None else agreement(pairs.of(gallery.before)),
        data=known,
    )


def _pairs(gallery: EvaluationImages, rows: Sequence[int]) -> _Pairs | None:
    captions, real = gallery.captions, gallery.real
    if captions is not None and captions.images:
        return _Pairs([caption.text for caption in captions.items], captions.images)
    if real is not None and gallery.probe_is_data:
        return _Pairs([gallery.prompts[row].text for row in rows], [real[row] for row in rows], rows)
    return None
