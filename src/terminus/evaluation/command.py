"""`terminus evaluate MODEL`: draw, measure, and write `metrics.json`, `report.html` and sheets of images."""

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
from terminus.evaluation import contrast, held_out, image_set, inpainting, light, measure, memorised
from terminus.evaluation.against import Against, Opened, of_model
from terminus.evaluation.atoms import DEFINITION as ATOMS
from terminus.evaluation.atoms import (
    AskedPrompt,
    Atoms,
    JudgeEndpoint,
    measure_atoms,
    question_captions,
    read_questions,
)
from terminus.evaluation.bands import DEFINITION as BANDS
from terminus.evaluation.bands import BandError, compare_bands
from terminus.evaluation.bias import DEFINITION as BIAS
from terminus.evaluation.bias import Bias, BiasAsked, bias_prompts, measure_bias
from terminus.evaluation.captions import Captions, DrawnCaption, from_file
from terminus.evaluation.distribution import measure as distances
from terminus.evaluation.drawing import DrawnBefore, DrawnModel, Questions, draw_before, draw_model
from terminus.evaluation.image_set import Measured
from terminus.evaluation.inpainting import measure_inpainting
from terminus.evaluation.light import light_prompts
from terminus.evaluation.luminance import Images
from terminus.evaluation.measure import EvaluationImages
from terminus.evaluation.metrics import Metrics, OwnCaptions, PromptSet, Sample, Timing, write_metrics
from terminus.evaluation.parent import parent_of, subject
from terminus.evaluation.prompts import EvaluationPrompt, build_prompts, real_images
from terminus.evaluation.report import write_evaluation_report, write_samples
from terminus.evaluation.rows import model_rows, write_evaluation_rows
from terminus.evaluation.settings import FULL, EvaluationSettings
from terminus.evaluation.summary import say_model
from terminus.evaluation.tiles import bias_rows
from terminus.evaluation.trained import TrainedOn, check_trained_on
from terminus.model.components import load_components
from terminus.model.record import load_record
from terminus.model.weights import resolve
from terminus.progress import Meter

DEFINITIONS = {
    **contrast.DEFINITIONS, **light.DEFINITIONS, **inpainting.DEFINITIONS, **image_set.DEFINITIONS,
    **distances.DEFINITIONS, **memorised.DEFINITIONS, "atoms": ATOMS, "held-out error": BANDS, "bias": BIAS,
}  # fmt: skip


@dataclass(frozen=True)
class Own:
    """The model's own data, as far as they are known."""

    trained: TrainedOn | None = None
    """Its recipe; None where nobody knows it."""
    file: Path | None = None
    """Prompts to draw in place of held-out captions."""
    count: int | None = None
    """At most so many prompts of the file; None is all."""
    captions: Captions | None = None
    """Captions that were chosen already; None chooses them."""


def evaluate(
    model: str,
    out: Path,
    settings: EvaluationSettings = FULL,
    console: Console | None = None,
    data: Own | None = None,
    against: Against | None = None,
) -> Path:
    """Measures a model into the folder `out`; returns the path of `metrics.json`.

    UserError if the model cannot be drawn with, if its data or a reference are not here or are another model's, or if
    the folder cannot be written.
    """
    console = console or Console(stderr=True)
    judged = evaluate_opened(model, out, settings, console, data or Own(), (against or Against()).opened())
    say_model(console, judged.metrics, out)
    return out / "metrics.json"


@dataclass(frozen=True)
class Judgement:
    """What an evaluation found, and the images that it looked at."""

    metrics: Metrics
    gallery: EvaluationImages
    light: Sequence[DrawnCaption]


def evaluate_opened(
    model: str, out: Path, settings: EvaluationSettings, console: Console, data: Own, opened: Opened
) -> Judgement:
    """As `evaluate`, against what is open already."""
    # Everything that can be refused is refused before a large file is read.
    folder = resolve(model)
    parent = parent_of(data.trained, folder)
    if data.trained is not None and folder.is_dir():
        check_trained_on(data.trained, load_record(folder), parent.is_model)
    captions = _captions(settings, data)
    components = load_components(folder)
    if data.trained is not None:
        check_trained_on(data.trained, components.record, parent.is_model)
    native = components.native_pixels
    _make(out)

    # Draw: this model, its control on a leaky schedule, and the model that training began from.
    start = time.monotonic()
    sized = replace(settings, sampling=replace(settings.sampling, size=Size(native, native)))
    prompts = build_prompts(native, settings.extreme_images, settings.color_images, settings.seed)
    light = light_prompts(native, settings.light_images, settings.seed)
    asked = read_questions() if opened.judge is not None else ()
    left_open = () if opened.bias is None else bias_prompts(opened.bias, settings.captions, settings.seed)
    shown = question_captions(asked, settings.seed)
    questions = Questions(prompts, captions, light, sized, out / "drawn", shown, [one.caption for one in left_open])
    drawn = draw_model(components, subject(components, folder, model), questions, console)
    del components
    before = draw_before(parent, questions, console)
    real = real_images(prompts, native) if prompts[0].drawing else None

    # Measure, and write the page before the numbers: metrics.json says that all is there.
    gallery = EvaluationImages(prompts, captions, drawn.own, drawn.leaky, before.answers, real, data.trained is None)
    images = of_model(gallery, opened, data.trained, settings.seed)
    found = image_set.measure_set(images, opened.extractors, console, settings.seed)
    atoms = _atoms(asked, drawn.asked, opened.judge, console)
    bias = _bias(left_open, drawn.bias, opened, console)
    metrics = _metrics(gallery, drawn, before, found, atoms, bias, write_samples(gallery, out), start)
    write_evaluation_rows(model_rows(gallery, light, found), out)
    write_evaluation_report(metrics, gallery, images, light, bias_rows(left_open, drawn.bias), out)
    write_metrics(metrics, out / "metrics.json")
    return Judgement(metrics, gallery, light)


def _metrics(
    gallery: EvaluationImages, drawn: DrawnModel, before: DrawnBefore, found: Measured, atoms: Atoms | None,
    bias: Bias | None, samples: tuple[Sample, ...], start: float,
) -> Metrics:  # fmt: skip
    return Metrics(
        model=drawn.subject,
        before=before.subject,
        no_before=before.missing,
        sampling=drawn.sampling,
        captions=None if gallery.captions is None else _own_captions(gallery.captions),
        prompts=_asked(gallery.prompts),
        contrast=measure.contrast(gallery),
        light=measure.light(gallery),
        luminance=measure.image_luminance(gallery),
        alignment=measure.alignment(gallery, drawn.judge),
        image_set=found.metrics,
        inpainting=None if drawn.inpainted is None else measure_inpainting(drawn.inpainted),
        bands=_bands(drawn, before),
        atoms=atoms,
        bias=bias,
        samples=samples,
        timing=Timing(time.monotonic() - start, drawn.seconds_per_image, runtime.environment().hardware),
        definitions=DEFINITIONS,
    )


def _bands(drawn: DrawnModel, before: DrawnBefore) -> tuple[BandError, ...]:
    return () if drawn.errors is None else compare_bands(drawn.timesteps, drawn.errors, before.errors)


def _atoms(
    asked: Sequence[AskedPrompt], images: Images | None, judge_of: JudgeEndpoint | None, console: Console
) -> Atoms | None:
    if judge_of is None or images is None:
        return None
    with Meter(console, "questions", sum(len(one.atoms) for one in asked)) as meter:
        return measure_atoms(asked, list(images), judge_of, meter.advance)


def _bias(asked: Sequence[BiasAsked], images: Images | None, opened: Opened, console: Console) -> Bias | None:
    if opened.bias is None or images is None:
        return None
    with Meter(console, "bias probe", len(asked), unit="images") as meter:
        return measure_bias(opened.bias, asked, list(images), opened.extractors, meter.advance)


def _captions(settings: EvaluationSettings, data: Own) -> Captions | None:
    if data.captions is not None:
        return data.captions
    if data.file is not None:
        return from_file(data.file, data.count, settings.seed)
    if data.trained is not None:
        return held_out.from_store(data.trained, settings.captions, settings.seed)
    return None


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


def _asked(prompts: Sequence[EvaluationPrompt]) -> PromptSet:
    return PromptSet(
        kind="embedded" if prompts[0].drawing else "generic",
        images=len(prompts),
        held_out=sum(prompt.held_out is True for prompt in prompts),
        by_background=dict(Counter(prompt.background for prompt in prompts)),
    )


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"This folder cannot be made ({error.strerror})", where=str(out)) from error
