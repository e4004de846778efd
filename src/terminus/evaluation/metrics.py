"""`metrics.json`: the shape of what an evaluation measured, and on what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from terminus.evaluation.alignment import Alignment
from terminus.evaluation.contrast import Contrast, HistogramDistance

FORMAT = 1


@dataclass(frozen=True)
class Subject:
    """The model that was measured."""

    name: str
    fingerprint: str
    """`fingerprint.fingerprint` of its folder."""
    images_seen: int
    prediction: str
    zero_terminal: bool
    native_pixels: int


@dataclass(frozen=True)
class Sampling:
    """How its pictures were made."""

    solver: str
    steps: int
    guidance: float
    rescale: float
    width: int
    height: int
    precision: str
    seed: int
    """Of the first picture of each background; the others count on."""
    batch: int
    control: str
    """How the control differs."""


@dataclass(frozen=True)
class Asked:
    """The prompts."""

    kind: str
    """"embedded": subjects of the embedded data set; "generic": everyday subjects."""
    pictures: int
    """Per set of pictures: the model's own, and the control's."""
    held_out: int
    by_background: dict[str, int]


@dataclass(frozen=True)
class ContrastSets:
    """The same measures of three sets of pictures of the same prompts."""

    ztsnr: Contrast
    leaky_control: Contrast
    data: Contrast | None
    """The real pictures; null for generic prompts, which have none."""


@dataclass(frozen=True)
class LuminanceDistances:
    """Histograms of generated against real pictures."""

    ztsnr: HistogramDistance
    leaky_control: HistogramDistance


@dataclass(frozen=True)
class AlignmentSets:
    """Agreement with captions by the model's own towers."""

    definition: str
    ztsnr: Alignment
    leaky_control: Alignment
    data: Alignment


@dataclass(frozen=True)
class Sample:
    """One picture in `samples/`."""

    file: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Timing:
    """The only part that is not the same every time."""

    seconds: float
    seconds_per_image: float
    """Of the model's own pictures, decoding included, in batches of `sampling.batch`."""
    hardware: str


@dataclass(frozen=True)
class Metrics:
    """Everything in `metrics.json`."""

    model: Subject
    sampling: Sampling
    prompts: Asked
    contrast: ContrastSets
    luminance: LuminanceDistances | None
    alignment: AlignmentSets | None
    samples: tuple[Sample, ...]
    timing: Timing
    definitions: dict[str, str]
    format: int = FORMAT


def write_metrics(metrics: Metrics, path: Path) -> None:
    """Replaces the file at once: a reader never sees half of it."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(asdict(metrics), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
