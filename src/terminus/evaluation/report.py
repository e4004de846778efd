"""What an evaluation shows people: `samples.png`, a few single pictures for a gallery, and `report.html`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from terminus.evaluation.contrast import DEFINITIONS
from terminus.evaluation.luminance import LEVELS, Pictures, histograms
from terminus.evaluation.metrics import Metrics, Sample
from terminus.evaluation.prompts import Prompt
from terminus.sampling.sheet import sheet

COLUMNS = 8
GALLERY = 6
_BARS = 64
"""Bars of a histogram on the page."""


@dataclass(frozen=True)
class Gallery:
    """All pictures of one evaluation; the parts answer the same prompts in the same order."""

    prompts: Sequence[Prompt]
    own: Pictures
    leaky: Pictures
    real: Pictures | None


@dataclass(frozen=True)
class _Curve:
    """One histogram as the page draws it."""

    title: str
    heights: tuple[float, ...]
    """Relative to the highest bar of all curves, 0..1."""


def write_samples(gallery: Gallery, out: Path) -> tuple[Sample, ...]:
    """`samples.png`, and the first pictures of it as files of their own in `samples/`."""
    rows = _rows(gallery, COLUMNS)
    pictures = [picture for _, row in rows for picture in row]
    sheet(pictures, columns=COLUMNS, row_titles=[title for title, _ in rows]).save(out / "samples.png")
    (out / "samples").mkdir(exist_ok=True)
    samples: list[Sample] = []
    chosen = [index for name in ("black", "white") for index in _asked(gallery.prompts, name)[: GALLERY // 2]]
    for number, index in enumerate(chosen):
        prompt, file = gallery.prompts[index], f"samples/{number}.png"
        Image.fromarray(gallery.own[index]).save(out / file)
        samples.append(Sample(file, prompt.text, prompt.seed))
    return tuple(samples)


def write_report(metrics: Metrics, gallery: Gallery, out: Path) -> None:
    """One page that needs no other file and no network."""
    environment = Environment(
        loader=PackageLoader("terminus", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("evaluation.html.j2").render(
        metrics=metrics,
        definitions=DEFINITIONS,
        rows=[(title, [_uri(picture) for picture in row]) for title, row in _rows(gallery, 2 * COLUMNS)],
        curves=_curves(gallery),
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _rows(gallery: Gallery, columns: int) -> list[tuple[str, list[Image.Image]]]:
    """Titled rows of at most `columns` pictures; black, white and control show the same subjects."""
    prompts = gallery.prompts
    colors = [name for name in dict.fromkeys(prompt.background for prompt in prompts) if name not in ("black", "white")]
    turns = zip_longest(*(_asked(prompts, name) for name in colors))  # every colour once, then every colour again
    mixed = [index for turn in turns for index in turn if index is not None][:columns]
    rows = [
        ("asked for: on black", gallery.own, _asked(prompts, "black")),
        ("asked for: on white", gallery.own, _asked(prompts, "white")),
        (f"asked for: on {', '.join(colors[:columns])}", gallery.own, mixed),
        ("control, leaky schedule: on black", gallery.leaky, _asked(prompts, "black")),
        ("control, leaky schedule: on white", gallery.leaky, _asked(prompts, "white")),
    ]
    if gallery.real is not None:
        rows.append(("the real pictures: on black", gallery.real, _asked(prompts, "black")))
    # Short rows would shift the sheet's grid: all are cut or filled with paper to one length.
    width = min(columns, max(len(indices) for _, _, indices in rows))
    blank = Image.new("RGB", gallery.own.shape[2:0:-1], (255, 255, 255))
    return [
        (title, ([Image.fromarray(pictures[index]) for index in indices] + [blank] * width)[:width])
        for title, pictures, indices in rows
        if indices
    ]


def _asked(prompts: Sequence[Prompt], background: str) -> list[int]:
    return [index for index, prompt in enumerate(prompts) if prompt.background == background]


def _curves(gallery: Gallery) -> list[_Curve]:
    """Pooled luma of the held-out captions' pictures, or of all where nothing is known of the training data."""
    held_out = [index for index, prompt in enumerate(gallery.prompts) if prompt.held_out]
    rows = held_out or list(range(len(gallery.prompts)))
    sets = [("this model", gallery.own), ("control, leaky schedule", gallery.leaky)]
    if gallery.real is not None:
        sets.append(("the real pictures", gallery.real))
    shares = {title: _shares(pictures[rows]) for title, pictures in sets}
    # Plain backgrounds are single tall bars: the square root lets the rest be seen.
    highest = max(float(share.max()) for share in shares.values()) ** 0.5
    return [_Curve(title, tuple(float(v) ** 0.5 / highest for v in share)) for title, share in shares.items()]


def _shares(pictures: Pictures) -> np.ndarray:
    counts = histograms(pictures).sum(axis=0).reshape(_BARS, LEVELS // _BARS).sum(axis=1)
    return counts / counts.sum()


def _uri(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
