"""The few lines that `terminus evaluate` says at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from terminus.evaluation.image_set import SetMetrics
from terminus.evaluation.metrics import LuminanceDistances, Metrics, OwnCaptions


def say_model(console: Console, metrics: Metrics, out: Path) -> None:
    """Of a model."""
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
    if metrics.light is not None:
        light = metrics.light.ztsnr
        _line(console, f"whole images: asked dark {light.dark.mean:.3f}, asked bright {light.bright.mean:.3f}")
    if metrics.image_set is not None:
        _say_distances(console, metrics.image_set)
    # What is missing from the comparison is said, or a reader would think it was forgotten.
    if metrics.no_before is not None and metrics.captions is not None:
        _line(console, f"not measured before training: {metrics.no_before}")
    _line(console, f"wrote {out / 'report.html'}")


def say_set(console: Console, found: SetMetrics, out: Path) -> None:
    """Of a folder of images."""
    light = found.brightness
    _line(console, f"{found.images} images: mean luma {light.mean_luma.mean:.3f}, dynamic range {light.range.mean:.3f}")
    _say_distances(console, found)
    _line(console, f"wrote {out / 'report.html'}")


def _say_distances(console: Console, found: SetMetrics) -> None:
    for one in found.distributions:
        name = "FID" if one.kind == "Inception" else "Fréchet distance"
        parts = [f"{name} {one.frechet:.4g}", f"KID {one.kid.mean:.4g}"]
        parts += [] if one.cmmd is None else [f"CMMD {one.cmmd:.4g}"]
        sizes = f"{one.drawn} images, {one.reference} of {found.reference}"
        _line(console, f"{one.extractor}: {', '.join(parts)} ({sizes})")
    for one in found.agreement:
        name = "CLIP score" if one.kind == "CLIP" else "score"
        _line(console, f"{one.extractor}: {name} {one.score.mean:.2f}, own caption nearest {one.top1.mean:.3f}")
    if (near := found.memorised) is not None:
        copies, close = near.copies, near.too_near
        said = f"{copies.count} of {copies.n} drawn images are copies, {close.count} are too near"
        _line(console, f"{near.training_images} training images: {said}")


def _captions_line(captions: OwnCaptions) -> str:
    what = "held-out captions" if captions.kind == "held-out" else "prompts"
    gone = f"; {captions.gone} have no caption or image any more" if captions.gone else ""
    return f"{captions.images} of {captions.available} {what} of {captions.source}{gone}"


def _luminance_line(distances: LuminanceDistances) -> str:
    before = "" if distances.before is None else f", before training {distances.before.wasserstein:.4f}"
    return f"luminance distance to {distances.against}: {distances.ztsnr.wasserstein:.4f}{before}"


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
