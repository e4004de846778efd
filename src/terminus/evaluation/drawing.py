"""What an evaluation draws: the model, its control on a leaky schedule, and the model that training began from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from terminus import runtime
from terminus.errors import UserError
from terminus.evaluation.alignment import AlignmentEncoders
from terminus.evaluation.bands import Errors, band_errors, has_bands
from terminus.evaluation.captions import Captions, DrawnCaption
from terminus.evaluation.draw import DrawnImages, Sampler, answer, generate_images, leaky, own
from terminus.evaluation.inpainting import PAINTED, InpaintedImages, draw_inpainted
from terminus.evaluation.kept import Kept
from terminus.evaluation.luminance import Images
from terminus.evaluation.metrics import MeasuredModel, Sampling
from terminus.evaluation.parent import Parent, subject
from terminus.evaluation.prompts import EvaluationPrompt
from terminus.evaluation.settings import EvaluationSettings
from terminus.model.components import Components, load_components
from terminus.model.record import Schedule
from terminus.progress import Meter

CONTROL = "the same weights, prompts, seeds and guidance; schedule not rescaled, leading timesteps from below T-1"


@dataclass(frozen=True)
class Questions:
    """Everything that is asked for, and how it is drawn."""

    prompts: Sequence[EvaluationPrompt]
    captions: Captions | None
    light: Sequence[DrawnCaption]
    settings: EvaluationSettings
    folder: Path
    """Where images are kept as they are drawn."""
    asked: Sequence[DrawnCaption] = ()
    """Prompts whose images a judge is asked about: drawn by the model itself alone."""
    bias: Sequence[DrawnCaption] = ()
    """Prompts of the bias probe: drawn by the model itself alone."""

    @property
    def images(self) -> int:
        """Number of images of one set."""
        return len(self.prompts) + len(self.light) + (len(self.captions.items) if self.captions else 0)

    @property
    def controlled(self) -> Questions:
        """Without captions that have no real images: there the control would be measured against nothing."""
        compared = self.captions is not None and len(self.captions.images) > 0
        return self if compared else replace(self, captions=None)

    def alone(
        self, captions: Sequence[DrawnCaption], components: Components, about: MeasuredModel, meter: Meter
    ) -> Images | None:
        """The images of captions that are drawn by the model itself alone; None if there are none."""
        if not captions:
            return None
        return generate_images(
            components, captions, self.settings, own, meter.advance, self._kept(components, about, own)
        )

    @property
    def holes(self) -> int:
        """Images that are painted into."""
        return min(self.settings.inpainted_images, len(self.prompts))

    def inpainted(
        self, components: Components, about: MeasuredModel, drawn: DrawnImages, meter: Meter
    ) -> InpaintedImages | None:
        """The model's own images of the probe with their holes painted."""
        if not self.holes:
            return None
        kept = self._kept(components, about, own)
        images, prompts = drawn.probe[: self.holes], self.prompts[: self.holes]

        def place(way: str) -> Kept:
            return replace(kept, who=f"{kept.who} {way}")

        return draw_inpainted(components, images, prompts, self.settings.sampling, place, meter.advance)

    def errors(self, components: Components, console: Console) -> Errors | None:
        """On the held-out images, by timestep; None without any."""
        if self.captions is None or not has_bands(self.captions):
            return None
        with Meter(console, "held-out error", len(self.captions.items), unit="images") as meter:
            return band_errors(components, self.captions, self.settings.sampling, meter.advance)

    def _kept(self, components: Components, about: MeasuredModel, sampler: Sampler) -> Kept:
        # Weights, schedule and sampler name the files, so that nothing drawn otherwise is taken for these.
        return Kept(self.folder, f"{about.fingerprint} {components.record.schedule!r} {sampler.__name__}")

    def answered(self, components: Components, about: MeasuredModel, sampler: Sampler, meter: Meter) -> DrawnImages:
        """The images of one set."""
        items = self.captions.items if self.captions else ()
        kept = self._kept(components, about, sampler)
        return answer(components, self.prompts, items, self.light, self.settings, sampler, meter.advance, kept)


@dataclass(frozen=True)
class DrawnModel:
    """The model's own images; its UNet is let go before the parent is loaded."""

    subject: MeasuredModel
    sampling: Sampling
    own: DrawnImages
    leaky: DrawnImages | None
    judge: AlignmentEncoders
    seconds_per_image: float
    asked: Images | None = None
    """Images of `Questions.asked`."""
    bias: Images | None = None
    """Images of `Questions.bias`."""
    inpainted: InpaintedImages | None = None
    """Holes that it painted; None for a model that cannot, or where none were asked for."""
    errors: Errors | None = None
    """On the held-out images; None without any."""
    timesteps: int = 1000
    """T of its schedule."""


@dataclass(frozen=True)
class DrawnBefore:
    """The parent's images, or why there are none."""

    subject: MeasuredModel | None = None
    answers: DrawnImages | None = None
    missing: str | None = None
    errors: Errors | None = None
    """On the held-out images; None without any."""


def draw_model(components: Components, about: MeasuredModel, questions: Questions, console: Console) -> DrawnModel:
    """The model by its own schedule, and by a leaky one where that is another."""
    components = components.to(runtime.pick_device())
    controlled, missing = questions.controlled, no_control(components.record.schedule)
    # The bar counts every image of every set, so that it moves evenly to its end.
    total = (
        questions.images
        + len(questions.asked)
        + len(questions.bias)
        + PAINTED * questions.holes
        + (controlled.images if missing is None else 0)
    )
    with Meter(console, "evaluate", total, unit="images") as meter:
        start = time.monotonic()
        images = questions.answered(components, about, own, meter)
        # Only the model's own images are timed: what the control and the judge's images take is nobody's to pay.
        seconds = time.monotonic() - start
        control = controlled.answered(components, about, leaky, meter) if missing is None else None
        asked = questions.alone(questions.asked, components, about, meter)
        bias = questions.alone(questions.bias, components, about, meter)
        inpainted = questions.inpainted(components, about, images, meter)
    # After the images, whose meter would otherwise stand still meanwhile.
    errors = questions.errors(components, console)
    sampling = _sampling(components, questions.settings, missing or CONTROL)
    judge = AlignmentEncoders(components.text_encoders, components.vision)
    return DrawnModel(
        about,
        sampling,
        images,
        control,
        judge,
        seconds / questions.images,
        asked,
        bias,
        inpainted,
        errors,
        components.record.schedule.timesteps,
    )


def draw_before(parent: Parent, questions: Questions, console: Console) -> DrawnBefore:
    """By the parent's own schedule, as everybody samples it, and at the model's size."""
    if parent.folder is None:
        return DrawnBefore(missing=parent.missing)
    try:
        components = load_components(parent.folder)
        about = subject(components, parent.folder, parent.name)
        components = components.to(runtime.pick_device())
        with Meter(console, "evaluate before", questions.images, unit="images") as meter:
            answers = questions.answered(components, about, own, meter)
        return DrawnBefore(about, answers, None, questions.errors(components, console))
    # A parent that cannot be drawn takes only its column away from the report.
    except UserError as error:
        return DrawnBefore(missing=f"the model that training began from cannot be drawn with ({error.what})")


def no_control(schedule: Schedule) -> str | None:
    """Why a model cannot be drawn on a leaky schedule beside its own, as a clause; None if it can."""
    if not schedule.zero_terminal:
        return "none; the model's own schedule does not end in pure noise"
    if schedule.prediction != "velocity":
        return f"none; the model predicts {schedule.prediction}"
    return None


def _sampling(components: Components, settings: EvaluationSettings, control: str) -> Sampling:
    how = settings.sampling
    size = how.size_for(components)
    return Sampling(
        solver=how.solver,
        steps=how.steps,
        guidance=how.guidance,
        rescale=how.rescale_for(components),
        width=size.width,
        height=size.height,
        precision=how.precision_for(components),
        seed=settings.seed,
        batch=settings.batch,
        control=control,
    )
