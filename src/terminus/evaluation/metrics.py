"""`metrics.json`: the shape of what an evaluation measured, and on what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from terminus.evaluation.alignment import Alignment
from terminus.evaluation.atoms import Atoms
from terminus.evaluation.bands import BandError
from terminus.evaluation.bias import Bias
from terminus.evaluation.contrast import ContrastResult, HistogramDistance
from terminus.evaluation.image_set import SetMetrics
from terminus.evaluation.inpainting import Inpainting
from terminus.evaluation.light import Light

FORMAT = 2


@dataclass(frozen=True)
class MeasuredModel:
    """A model that was measured."""

    name: str
    fingerprint: str
    """`fingerprint.fingerprint` of its folder."""
    images_seen: int
    prediction: str
    zero_terminal: bool
    native_pixels: int


@dataclass(frozen=True)
class Sampling:
    """The settings with which the images were made."""

    solver: str
    steps: int
    guidance: float
    rescale: float
    width: int
    height: int
    precision: str
    seed: int
    """Seed of the first image of each background; the others count on."""
    batch: int
    control: str
    """How the control differs, or why there is none."""


@dataclass(frozen=True)
class OwnCaptions:
    """The captions of the model's own subjects that were drawn."""

    kind: str
    """"held-out": captions of the run's held-out images; "file": prompts of a file."""
    images: int
    """Per set of images."""
    available: int
    """Held-out images, or prompts in the file: all that they were taken from."""
    gone: int
    """How many of those taken the store has no caption or image of any more."""
    source: str
    """The data store, or the file; its last part, if its path is absolute."""
    version: int | None
    """Version of the store's table of latents."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of the contrast probe."""

    kind: str
    """"embedded": subjects of the embedded data set; "generic": everyday subjects."""
    images: int
    """Per set of images."""
    held_out: int
    by_background: dict[str, int]


@dataclass(frozen=True)
class ContrastSets:
    """The contrast probe: the same measures of several sets of images of the same prompts."""

    ztsnr: ContrastResult
    """This model's, by its own schedule, whichever that is."""
    leaky_control: ContrastResult | None
    """Null for a model whose own schedule is leaky, or that the schedule means nothing to."""
    before: ContrastResult | None
    """The parent's images; null without one."""
    data: ContrastResult | None
    """The real images; null for generic prompts, which have none."""


@dataclass(frozen=True)
class LightSets:
    """Whole images that were asked to be dark or bright, of several sets."""

    ztsnr: Light
    """This model's, by its own schedule."""
    leaky_control: Light | None
    before: Light | None


@dataclass(frozen=True)
class LuminanceDistances:
    """Histograms of generated against real images."""

    against: str
    """"the run's held-out images" or "the embedded drawings of the probe"."""
    ztsnr: HistogramDistance
    leaky_control: HistogramDistance | None
    before: HistogramDistance | None


@dataclass(frozen=True)
class AlignmentSets:
    """Agreement with captions by the model's own text encoders."""

    definition: str
    ztsnr: Alignment
    leaky_control: Alignment | None
    before: Alignment | None
    """The parent's images, by the text encoders of the model that is judged."""
    data: Alignment


@dataclass(frozen=True)
class Sample:
    """One image in `samples/`."""

    file: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Timing:
    """The only part that is not the same every time."""

    seconds: float
    seconds_per_image: float
    """Seconds per image of the model's own images, decoding included, in batches of `sampling.batch`."""
    hardware: str


@dataclass(frozen=True)
class Metrics:
    """Everything in `metrics.json`."""

    model: MeasuredModel
    before: MeasuredModel | None
    """The parent: the model that training began from."""
    no_before: str | None
    """Why there is no parent to measure, as a clause."""
    sampling: Sampling
    captions: OwnCaptions | None
    """Null for a model whose data are not known."""
    prompts: PromptSet
    contrast: ContrastSets
    light: LightSets | None
    """Null where none were asked for."""
    luminance: LuminanceDistances | None
    """Null where no real images are known."""
    alignment: AlignmentSets | None
    image_set: SetMetrics | None
    """The images of the captions, or of the probe where there are none: distances, captions, memorisation."""
    bands: tuple[BandError, ...]
    """Held-out error by timestep; empty without held-out images."""
    inpainting: Inpainting | None
    """Null for a model that cannot inpaint."""
    atoms: Atoms | None
    """Null where no judge was asked."""
    bias: Bias | None
    """Null where nothing was declared."""
    samples: tuple[Sample, ...]
    timing: Timing
    definitions: dict[str, str]
    format: int = FORMAT


@dataclass(frozen=True)
class FolderMetrics:
    """Everything in `metrics.json` of a folder of images, whoever drew them."""

    folder: str
    """Its name."""
    unread: tuple[str, ...]
    """Files that are no images."""
    image_set: SetMetrics
    definitions: dict[str, str]
    format: int = FORMAT


def write_metrics(metrics: Any, path: Path) -> None:
    """Writes a dataclass of numbers. Replaces the file at once: a reader never sees half of it."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(asdict(metrics), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
