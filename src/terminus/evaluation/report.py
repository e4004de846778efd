"""The pages of an evaluation: sheets of images, a few single ones for a gallery, and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from terminus.evaluation.captions import DrawnCaption, ImageSource
from terminus.evaluation.draw import DrawnImages
from terminus.evaluation.image_set import ImageSet
from terminus.evaluation.luminance import LEVELS, histograms
from terminus.evaluation.measure import EvaluationImages
from terminus.evaluation.metrics import Metrics, Sample
from terminus.evaluation.pages import page_environment
from terminus.evaluation.set_report import near_pairs
from terminus.evaluation.tiles import Row, Tile, asked, caption_rows, compared, light_tiles, probe_rows
from terminus.sampling.sheet import sheet

COLUMNS = 8
GALLERY = 6
ON_SHEET = 16
"""Captions on `samples.png`."""
ON_PAGE = 24
"""Captions in the report."""
_BARS = 64
"""Bars of a histogram on the page."""


@dataclass(frozen=True)
class _Curve:
    """One histogram as the page draws it."""

    title: str
    heights: tuple[float, ...]
    """Relative to the highest bar of all curves, 0..1."""


def write_samples(gallery: EvaluationImages, out: Path) -> tuple[Sample, ...]:
    """`samples.png`, and its first images as files of their own in `samples/`.

    It shows the model's own captions, and `probe.png` the contrast probe; without such captions it is the probe.
    """
    probe, own = probe_rows(gallery, COLUMNS), caption_rows(gallery, COLUMNS, ON_SHEET)
    _write_sheet(own or probe, out / "samples.png")
    if own:
        _write_sheet(probe, out / "probe.png")
    else:
        (out / "probe.png").unlink(missing_ok=True)
    folder = out / "samples"
    folder.mkdir(exist_ok=True)
    # An earlier evaluation may have had more of them.
    for old in folder.glob("[0-9]*.png"):
        old.unlink()
    samples: list[Sample] = []
    for number, (image, text, seed) in enumerate(_singles(gallery)):
        file = f"samples/{number}.png"
        Image.fromarray(image).save(out / file)
        samples.append(Sample(file, text, seed))
    return tuple(samples)


def write_evaluation_report(
    metrics: Metrics,
    gallery: EvaluationImages,
    subject: ImageSet,
    light: Sequence[DrawnCaption],
    left_open: Sequence[Row],
    out: Path,
) -> None:
    """Writes one page that needs no other file and no network."""
    found = metrics.image_set
    page = page_environment().get_template("evaluation.html.j2").render(
        metrics=metrics,
        definitions=metrics.definitions,
        compared=compared(gallery, ON_PAGE),
        rows=probe_rows(gallery, 2 * COLUMNS),
        light_tiles=light_tiles(gallery, light, 2 * COLUMNS),
        left_open=left_open,
        curves=_curves(gallery),
        uri_pairs=near_pairs(None if found is None else found.memorised, subject),
    )  # fmt: skip
    (out / "report.html").write_text(page, encoding="utf-8")


def _write_sheet(rows: Sequence[Row], path: Path) -> None:
    # Short rows would shift the sheet's grid: all are filled with paper to one length.
    width = max(len(row.tiles) for row in rows)
    paper = Image.new("RGB", rows[0].tiles[0].image.size, (255, 255, 255))
    filled = [[*row.tiles, *[Tile(paper, "")] * (width - len(row.tiles))] for row in rows]
    tiles = [tile for row in filled for tile in row]
    images, labels = [tile.image for tile in tiles], [tile.label for tile in tiles]
    sheet(images, labels, columns=width, row_titles=[row.title for row in rows]).save(path)


def _singles(gallery: EvaluationImages) -> list[tuple[ImageSource, str, int]]:
    """Image, text and seed of the first captions; of the probe on black and on white, where there are none."""
    if gallery.captions is not None:
        captions = gallery.captions.items[:GALLERY]
        return [(gallery.own.captions[row], one.text, one.seed) for row, one in enumerate(captions)]
    chosen = [index for name in ("black", "white") for index in asked(gallery.prompts, name)[: GALLERY // 2]]
    return [(gallery.own.probe[row], gallery.prompts[row].text, gallery.prompts[row].seed) for row in chosen]


def _curves(gallery: EvaluationImages) -> list[_Curve]:
    """Pooled luma of the held-out captions' images, or of the probe where there are none."""
    captions, prompts = gallery.captions, gallery.prompts
    # A file's captions have no real images, so the probe is what can be compared.
    own = captions is not None and len(captions.images) > 0

    # The probe's drawings that the embedded data hold out, or all where nothing is known of the training data.
    rows = [row for row, prompt in enumerate(prompts) if prompt.held_out] or list(range(len(prompts)))

    def shown(answers: DrawnImages) -> Sequence[ImageSource]:
        return answers.captions if own else list(answers.probe[rows])

    sets = {"this model": shown(gallery.own)}
    if gallery.leaky is not None:
        sets["control, leaky schedule"] = shown(gallery.leaky)
    if gallery.before is not None:
        sets = {"before": shown(gallery.before), **sets}
    if captions is not None and own:
        sets["the run's held-out images"] = captions.images
    elif gallery.real is not None:
        sets["the real drawings of the probe"] = list(gallery.real[rows])
    return _curves_of({title: _shares(images) for title, images in sets.items()})


def _curves_of(shares: Mapping[str, np.ndarray]) -> list[_Curve]:
    """Curves of one scale, the highest bar of all at 1."""
    # Plain backgrounds are single tall bars: the square root lets the rest be seen.
    highest = max(float(share.max()) for share in shares.values()) ** 0.5
    curves: list[_Curve] = []
    for title, share in shares.items():
        curves.append(_Curve(title, tuple(float(value) ** 0.5 / highest for value in share)))
    return curves


def _shares(images: Sequence[ImageSource]) -> np.ndarray:
    # One by one: images of a set may differ in size.
    counts = sum(histograms(one[None])[0] for one in images)
    assert isinstance(counts, np.ndarray), "there is at least one image"
    bars = counts.reshape(_BARS, LEVELS // _BARS).sum(axis=1)
    return bars / bars.sum()
