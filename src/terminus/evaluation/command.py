"""`terminus evaluate`: draw, measure, and write `metrics.json`, `report.html` and sheets of images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from terminus import runtime
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.evaluation import held_out, measure
from terminus.evaluation.alignment import Judge
from terminus.evaluation.captions import Captions, from_file
from terminus.evaluation.contrast import DEFINITIONS
from terminus.evaluation.draw import Generated, Sampler, answer, leaky, own
from terminus.evaluation.measure import Gallery
from terminus.evaluation.metrics import (
    LuminanceDistances,
    MeasuredModel,
    Metrics,
    OwnCaptions,
    PromptSet,
    Sampling,
    Timing,
    write_metrics,
)
from terminus.evaluation.parent import Parent, parent_of, subject
from terminus.evaluation.prompts import EvaluationPrompt, build_prompts, real_images
from terminus.evaluation.report import write_report, write_samples
from terminus.evaluation.settings import FULL, EvaluationSettings
from terminus.evaluation.trained import TrainedOn, check_trained_on
from terminus.model.components import Components, load_components
from terminus.model.record import load_record
from terminus.model.weights import resolve
from terminus.progress import Meter

CONTROL = "the same weights, prompts, seeds and guidance; schedule not rescaled, leading timesteps from below T-1"


@dataclass(frozen=True)
class Own:
    """The model's own data, as far as they are known."""

    trained: TrainedOn | None = None
    """Its recipe; None where nobody knows it."""
    file: Path | None = None
    """Prompts to draw in place of held-out captions."""
    count: int | None = None
    """At most so many prompts of the file; None is all."""


@dataclass(frozen=True)
class _Questions:
    """Everything that is asked for, and how it is drawn."""

    prompts: Sequence[EvaluationPrompt]
    captions: Captions | None
    settings: EvaluationSettings

    @property
    def images(self) -> int:
        """Number of images of one set."""
        return len(self.prompts) + (len(self.captions.items) if self.captions else 0)

    @property
    def controlled(self) -> _Questions:
        """Without captions that have no real images: there the control would be measured against nothing."""
        compared = self.captions is not None and len(self.captions.images) > 0
        return self if compared else replace(self, captions=None)

    def answered(self, components: Components, sampler: Sampler, meter: Meter) -> Generated:
        """The images of one set."""
        items = self.captions.items if self.captions else ()
        return answer(components, self.prompts, items, self.settings, sampler, meter.advance)


@dataclass(frozen=True)
class _Model:
    """The model's own images; its UNet is let go before the parent is loaded."""

    subject: MeasuredModel
    sampling: Sampling
    own: Generated
    leaky: Generated
    judge: Judge
    seconds_per_image: float


@dataclass(frozen=True)
class _Before:
    """The parent's images, or why there are none."""

    subject: MeasuredModel | None = None
    answers: Generated | None = None
    missing: str | None = None


def evaluate(
    model: str,
    out: Path,
    settings: EvaluationSettings = FULL,
    console: Console | None = None,
    data: Own | None = None,
) -> Path:
    """Measures a model into the folder `out`; returns the path of `metrics.json`.

    UserError if the model is no zero-terminal-SNR velocity model, if its data are not here or are another model's, or
    if the folder cannot be written.
    """
    console, data = console or Console(stderr=True), data or Own()

    # Everything that can be refused is refused before a large file is read.
    folder = resolve(model)
    parent = parent_of(data.trained, folder)
    if data.trained is not None and folder.is_dir():
        check_trained_on(data.trained, load_record(folder), parent.is_model)
    captions = _captions(settings, data)
    components = load_components(folder)
    _check(components, folder)
    if data.trained is not None:
        check_trained_on(data.trained, components.record, parent.is_model)
    native = components.native_pixels
    _make(out)

    # Draw: this model, its control on a leaky schedule, and the model that training began from.
    start = time.monotonic()
    sized = replace(settings, sampling=replace(settings.sampling, size=Size(native, native)))
    prompts = build_prompts(native, settings.extreme_images, settings.color_images, settings.seed)
    questions = _Questions(prompts, captions, sized)
    drawn = _model(components, subject(components, folder, model), questions, console)
    del components
    before = _before(parent, questions, console)
    real = real_images(prompts, native) if prompts[0].drawing else None

    # Measure, and write the page before the numbers: metrics.json says that all is there.
    gallery = Gallery(prompts, captions, drawn.own, drawn.leaky, before.answers, real, data.trained is None)
    metrics = Metrics(
        model=drawn.subject,
        before=before.subject,
        no_before=before.missing,
        sampling=drawn.sampling,
        captions=None if captions is None else _own_captions(captions),
        prompts=_asked(prompts),
        contrast=measure.contrast(gallery),
        luminance=measure.image_luminance(gallery),
        alignment=measure.alignment(gallery, drawn.judge),
        samples=write_samples(gallery, out),
        timing=Timing(time.monotonic() - start, drawn.seconds_per_image, runtime.environment().hardware),
        definitions=DEFINITIONS,
    )
    write_report(metrics, gallery, out)
    write_metrics(metrics, out / "metrics.json")
    _say(console, metrics, out)
    return out / "metrics.json"


def _captions(settings: EvaluationSettings, data: Own) -> Captions | None:
    if data.file is not None:
        return from_file(data.file, data.count, settings.seed)
    if data.trained is not None:
        return held_out.from_store(data.trained, settings.captions, settings.seed)
    return None


def _model(components: Components, about: MeasuredModel, questions: _Questions, console: Console) -> _Model:
    components = components.to(runtime.pick_device())
    controlled = questions.controlled
    with Meter(console, "evaluate", questions.images + controlled.images, unit="images") as meter:
        start = time.monotonic()
        images = questions.answered(components, own, meter)
        seconds = time.monotonic() - start
        control = controlled.answered(components, leaky, meter)
    sampling = _sampling(components, questions.settings)
    judge = Judge(components.text_encoders, components.vision)
    return _Model(about, sampling, images, control, judge, seconds / questions.images)


def _before(parent: Parent, questions: _Questions, console: Console) -> _Before:
    """By the parent's own schedule, as everybody samples it, and at the model's size."""
    if parent.folder is None:
        return _Before(missing=parent.missing)
    try:
        components = load_components(parent.folder)
        about = subject(components, parent.folder, parent.name)
        components = components.to(runtime.pick_device())
        with Meter(console, "evaluate before", questions.images, unit="images") as meter:
            return _Before(about, questions.answered(components, own, meter))
    except UserError as error:
        return _Before(missing=f"the model that training began from cannot be drawn with ({error.what})")


def _own_captions(captions: Captions) -> OwnCaptions:
    path = Path(captions.source)
    return OwnCaptions(
        kind=captions.kind,
        images=len(captions.items),
        available=captions.available,
        gone=captions.gone,
        source=path.name if path.is_absolute() else captions.source,
        version=captions.version,
    )


def _sampling(components: Components, settings: EvaluationSettings) -> Sampling:
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
        control=CONTROL,
    )


def _asked(prompts: Sequence[EvaluationPrompt]) -> PromptSet:
    return PromptSet(
        kind="embedded" if prompts[0].drawing else "generic",
        images=len(prompts),
        held_out=sum(prompt.held_out is True for prompt in prompts),
        by_background=dict(Counter(prompt.background for prompt in prompts)),
    )


def _check(components: Components, folder: Path) -> None:
    schedule = components.record.schedule
    if schedule.prediction != "velocity" or not schedule.zero_terminal:
        raise UserError(
            f"This model predicts {schedule.prediction} and its schedule "
            f"{'ends' if schedule.zero_terminal else 'does not end'} in pure noise",
            where=str(folder),
            rule="Evaluation compares a zero-terminal-SNR velocity model with itself on a leaky schedule",
            fix="Evaluate a model trained by Terminus, or one whose scheduler_config.json says both",
        )


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"This folder cannot be made ({error.strerror})", where=str(out)) from error


def _say(console: Console, metrics: Metrics, out: Path) -> None:
    if metrics.captions is not None:
        _line(console, _captions_line(metrics.captions))
    if metrics.luminance is not None:
        _line(console, _luminance_line(metrics.luminance))
    sets = metrics.contrast
    for title, found in (
        ("before training", sets.before),
        ("this model", sets.ztsnr),
        ("leaky control", sets.leaky_control),
    ):
        if found is not None:
            black, white = (found.backgrounds[name].border_luminance.mean for name in ("black", "white"))
            _line(console, f"contrast probe, {title}: asked for black {black:.3f}, for white {white:.3f}")
    if metrics.no_before is not None and metrics.captions is not None:
        _line(console, f"not measured before training: {metrics.no_before}")
    _line(console, f"wrote {out / 'report.html'}")


def _captions_line(captions: OwnCaptions) -> str:
    what = "held-out captions" if captions.kind == "held-out" else "prompts"
    gone = f"; {captions.gone} have no caption or image any more" if captions.gone else ""
    return f"{captions.images} of {captions.available} {what} of {captions.source}{gone}"


def _luminance_line(distances: LuminanceDistances) -> str:
    before = "" if distances.before is None else f", before training {distances.before.wasserstein:.4f}"
    return f"luminance distance to {distances.against}: {distances.ztsnr.wasserstein:.4f}{before}"


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
