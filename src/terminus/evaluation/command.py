"""`terminus evaluate`: draw, measure, and write `metrics.json`, `report.html` and `samples.png`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from terminus import runtime
from terminus.errors import UserError
from terminus.evaluation.alignment import DEFINITION, measure_alignment
from terminus.evaluation.contrast import DEFINITIONS, histogram_distance, measure_contrast
from terminus.evaluation.draw import draw, leaky, own
from terminus.evaluation.fingerprint import fingerprint
from terminus.evaluation.metrics import (
    AlignmentSets,
    Asked,
    ContrastSets,
    LuminanceDistances,
    Metrics,
    Sample,
    Sampling,
    Subject,
    Timing,
    write_metrics,
)
from terminus.evaluation.prompts import Prompt, build_prompts, real_pictures
from terminus.evaluation.report import Gallery, write_report, write_samples
from terminus.evaluation.settings import FULL, EvaluationSettings
from terminus.model.components import Components, load_components
from terminus.model.weights import resolve
from terminus.progress import Meter

CONTROL = "the same weights, prompts, seeds and guidance; schedule not rescaled, leading timesteps from below T-1"


def evaluate(model: str, out: Path, settings: EvaluationSettings = FULL, console: Console | None = None) -> Path:
    """Measures a model into the folder `out`; returns the path of `metrics.json`.

    UserError if the model is no zero-terminal-SNR velocity model, or the folder cannot be written.
    """
    console = console or Console(stderr=True)
    folder = resolve(model)
    components = load_components(folder).to(runtime.pick_device())
    _check(components, folder)
    _make(out)
    native = components.native_pixels
    prompts = build_prompts(native, settings.extreme_images, settings.color_images, settings.seed)
    start = time.monotonic()
    with Meter(console, "evaluate", 2 * len(prompts), unit="pictures") as meter:
        pictures = draw(components, prompts, settings, own, meter.advance)
        drawn = time.monotonic()
        control = draw(components, prompts, settings, leaky, meter.advance)
    real = real_pictures(prompts, native) if prompts[0].drawing else None
    gallery = Gallery(prompts, pictures, control, real)
    samples = write_samples(gallery, out)
    per_image = (drawn - start) / len(prompts)
    timing = Timing(time.monotonic() - start, per_image, runtime.environment().hardware)
    metrics = _measure(components, _subject(components, folder, model), gallery, settings, samples, timing)
    write_report(metrics, gallery, out)
    write_metrics(metrics, out / "metrics.json")
    _say(console, metrics, out)
    return out / "metrics.json"


def _measure(
    components: Components,
    subject: Subject,
    gallery: Gallery,
    settings: EvaluationSettings,
    samples: tuple[Sample, ...],
    timing: Timing,
) -> Metrics:
    prompts, pictures, control, real = gallery.prompts, gallery.own, gallery.leaky, gallery.real
    luminance = alignment = None
    if real is not None:
        luminance = LuminanceDistances(
            histogram_distance(prompts, pictures, real), histogram_distance(prompts, control, real)
        )
        ours, theirs, known = (measure_alignment(components, prompts, p) for p in (pictures, control, real))
        if ours and theirs and known:
            alignment = AlignmentSets(DEFINITION, ours, theirs, known)
    return Metrics(
        model=subject,
        sampling=_sampling(components, settings),
        prompts=_asked(prompts),
        contrast=ContrastSets(
            measure_contrast(prompts, pictures),
            measure_contrast(prompts, control),
            None if real is None else measure_contrast(prompts, real),
        ),
        luminance=luminance,
        alignment=alignment,
        samples=samples,
        timing=timing,
        definitions=DEFINITIONS,
    )


def _subject(components: Components, folder: Path, model: str) -> Subject:
    record, last = components.record, Path(model).name
    return Subject(
        # A hub id names a model better than the folder of its snapshot does; "." names nothing.
        name=last if last.strip(".") else folder.resolve().name,
        fingerprint=fingerprint(folder),
        images_seen=record.images_seen,
        prediction=record.schedule.prediction,
        zero_terminal=record.schedule.zero_terminal,
        native_pixels=components.native_pixels,
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


def _asked(prompts: Sequence[Prompt]) -> Asked:
    return Asked(
        kind="embedded" if prompts[0].drawing else "generic",
        pictures=len(prompts),
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
    for title, found in (("own schedule", metrics.contrast.ztsnr), ("leaky control", metrics.contrast.leaky_control)):
        black, white = (found.backgrounds[name].border_luminance.mean for name in ("black", "white"))
        console.print(f"{title}: asked for black {black:.3f}, for white {white:.3f}", highlight=False)
    console.print(f"wrote {out / 'report.html'}", highlight=False, soft_wrap=True)
