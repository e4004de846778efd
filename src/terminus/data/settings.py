"""The `data` section of a recipe."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.data.captioning.settings import Captioner
from terminus.data.cluster import Engine, NativeEngine
from terminus.data.fetch.download import Policy
from terminus.data.filters import Filters
from terminus.data.geometry import CropRule, Transform
from terminus.data.sources.coco import CocoSource
from terminus.data.sources.embedded import EmbeddedSource
from terminus.data.sources.folder import FolderSource
from terminus.data.sources.huggingface import HuggingfaceSource
from terminus.data.sources.laion import LaionSource
from terminus.data.sources.midjourney import MidjourneySource
from terminus.data.sources.webdataset import WebdatasetSource
from terminus.images import Color, parse_color

Source = Annotated[
    EmbeddedSource | FolderSource | CocoSource | LaionSource | MidjourneySource | WebdatasetSource | HuggingfaceSource,
    Field(discriminator="kind"),
]


class SquareBuckets(Config):
    """Every image is cut to one square."""

    kind: Literal["square"]
    """One square."""


class AspectBuckets(Config):
    """Every image is cut to the nearest of many shapes of about the same area."""

    kind: Literal["aspect"]
    """Many shapes; with the defaults those of SDXL."""
    step: int = Field(default=64, ge=8, multiple_of=8)
    """Sides are multiples of this many pixels; divides the resolution."""


Buckets = Annotated[SquareBuckets | AspectBuckets, Field(discriminator="kind")]

SHARED_FILTERS = ("duplicates", "blocklists", "classifiers")
"""Of `Filters`, what compares images of all sources or is read once."""

Share = Annotated[float, Field(gt=0, lt=1, multiple_of=0.001)]
Repeats = Annotated[int, Field(ge=1)]


class DataConfig(Config):
    """The data to train on, and how its pixels are prepared."""

    store: str
    """Where prepared rows are kept: a folder, or an s3:// or gs:// URI."""
    sources: tuple[Source, ...] = Field(min_length=1)
    """Where images come from, in the order in which duplicates are decided."""
    resolution: int = Field(default=1024, ge=32, le=4096, multiple_of=8)
    """Side in pixels of the square whose area every training image approaches."""
    crop: CropRule = "center"
    """center, random: LANCZOS down to cover the bucket, then cut there; native: random cut, no resampling."""
    crops: int = Field(default=1, ge=1, le=64)
    """Different random cuts of each training image, all seen in each epoch; fewer where it has no room for them.

    Held-out images are cut once by the rule of `crop`, whatever stands here: they measure.
    """
    buckets: Buckets = SquareBuckets(kind="square")
    """The shapes that images are cut to."""
    background: str = Field(default="#ffffff", pattern=r"^#[0-9a-f]{6}$")
    """Put under transparent pixels, where the source names no background."""
    filters: Filters = Filters()
    """Which images are kept."""
    filters_of: dict[str, Filters] = Field(default={})
    """By name of the source: its own filters in place of those; duplicates, block-lists and classifiers are shared."""
    download: Policy = Policy()
    """How images are fetched whose source gives a URL."""
    captioner: Captioner | None = None
    """Who writes captions when `terminus caption` runs; null: nobody."""
    mix: dict[str, Share | Repeats] = Field(default={})
    """By name of the source: its exact share of what training sees (0.1), or how often its images come in each epoch
    (3); all that have no share divide the rest by their images."""
    validation_fraction: float = Field(default=0.01, ge=0.0, le=0.5)
    """Share of images held out of training, chosen by content hash so that it never changes."""
    engine: Engine = NativeEngine(kind="native")
    """What computes: this machine, or a Ray cluster; the rows are the same."""
    seed: int = Field(default=0, ge=0)
    """Decides random crop positions and embedded backgrounds."""

    @model_validator(mode="after")
    def _names_exist(self) -> DataConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources share a name; names are {', '.join(names)}")
        captioned = self.captioner.sources if self.captioner else ()
        named = {"mix": set(self.mix), "filters_of": set(self.filters_of), "captioner.sources": set(captioned)}
        for key, mentioned in named.items():
            if unknown := sorted(mentioned - set(names)):
                raise ValueError(f"{key} names {', '.join(unknown)}; the sources are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _something_can_pass(self) -> DataConfig:
        if self.filters.min_luminance > self.filters.max_luminance:
            raise ValueError("filters.min_luminance is above filters.max_luminance: nothing can pass")
        if isinstance(self.buckets, AspectBuckets) and self.resolution % self.buckets.step:
            raise ValueError(f"buckets.step {self.buckets.step} does not divide resolution {self.resolution}")
        if self.crops > 1 and self.crop == "center":
            raise ValueError("crops above 1 needs crop: random or native; an image has one center")
        if sum(self.shares.values()) > 1:
            raise ValueError(f"the shares in mix add up to {float(sum(self.shares.values())):g}, which is more than 1")
        return self

    @model_validator(mode="after")
    def _own_filters(self) -> DataConfig:
        for name, own in self.filters_of.items():
            if shared := [one for one in SHARED_FILTERS if getattr(own, one) != getattr(Filters(), one)]:
                raise ValueError(
                    f"filters_of.{name} sets {', '.join(shared)}, which all sources share: set it in filters"
                )
            if own.min_luminance > own.max_luminance:
                raise ValueError(f"filters_of.{name}: min_luminance is above max_luminance, so nothing can pass")
        return self

    @property
    def shares(self) -> dict[str, Fraction]:
        """The sources in `mix` that have a share, exactly as it was written: 0.1 is one tenth."""
        # By its decimals: 0.1 as a float is not a tenth.
        return {name: Fraction(repr(part)) for name, part in self.mix.items() if isinstance(part, float)}

    @property
    def repeats(self) -> dict[str, int]:
        """The sources in `mix` that are repeated."""
        return {name: part for name, part in self.mix.items() if isinstance(part, int)}

    @property
    def transform(self) -> Transform:
        """The transform of every image."""
        step = self.buckets.step if isinstance(self.buckets, AspectBuckets) else None
        return Transform(self.resolution, self.crop, step, self.seed)

    def filters_for(self, source: str) -> Filters:
        """Those that hold for a source."""
        own = self.filters_of.get(source)
        if own is None:
            return self.filters
        return own.model_copy(update={name: getattr(self.filters, name) for name in SHARED_FILTERS})

    @property
    def rules(self) -> str:
        """Canonical JSON of what decides which rows exist, apart from the transform; stored with every judgement."""
        return self.model_dump_json(include={"filters", "filters_of", "validation_fraction", "background"})

    @property
    def background_color(self) -> Color:
        """`background` as (red, green, blue)."""
        return parse_color(self.background)
