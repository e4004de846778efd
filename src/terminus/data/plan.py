"""`terminus prepare RECIPE --plan`: what the way from sources to a trained model takes, before anything is fetched.

Each number is counted, measured, computed from such numbers, or assumed, and the output says which. Sources are asked
only for what they can tell cheaply; what they cannot is "not known", and never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from terminus.data import storage
from terminus.data.geometry import buckets
from terminus.data.settings import DataConfig, Source
from terminus.data.sources.coco import CocoSource
from terminus.data.sources.embedded import EmbeddedSource
from terminus.data.sources.folder import FolderSource
from terminus.data.sources.huggingface import HuggingfaceSource
from terminus.data.sources.laion import LaionSource
from terminus.data.sources.midjourney import MidjourneySource
from terminus.errors import UserError

IMAGE_BYTES = 1e6
"""Of an image as it is stored: our assumption."""
DECODED = 11.95
"""Images of 12 megapixels that a core decodes and scales in a second: `benchmarks/results/resize-cpu.json`."""
DOWNLOAD_SECONDS = 1.0
"""For which a request for an image is under way: our assumption."""
CAPTION_SECONDS = 1.0
"""Of a GPU for a caption, many being asked for at once: our assumption."""
ENCODER_FLOPS = (4.33e12, 0.55e12)
"""Of SDXL's VAE for 2^20 pixels: the part that grows with the pixels, and that with their square. Counted."""
ENCODER_SHARE = 0.4
"""Of the GPU's rate that the VAE reaches: our assumption."""
MOMENT_BYTES = 4 * 2 * 2
"""At each place of the latents: four channels, mean and log variance, float16."""


@dataclass(frozen=True)
class Machine:
    """The GPU that is planned for."""

    name: str
    flops: float
    """FLOP/s of its sheet for what the VAE computes: products of float32 as TF32, half of those of bfloat16."""
    watts: int


@dataclass(frozen=True)
class Prices:
    """The price of an hour; None where nobody said so."""

    gpu: float | None = None
    core: float | None = None


@dataclass(frozen=True)
class Found:
    """A source and its candidates."""

    name: str
    count: int | None
    """None: not known."""
    why: str = ""
    """Why it is not known."""
    links: bool = False
    """Whether its images are taken to be downloaded."""


@dataclass(frozen=True)
class Stage:
    """One step of the way; None is not known."""

    name: str
    images: int | None
    disk: float | None = None
    """Bytes."""
    core_hours: float | None = 0.0
    gpu_hours: float | None = 0.0
    kwh: float | None = 0.0
    """The GPU's power limit for that long."""
    cost: float | None = None
    """At the prices that were given; None also where none was."""


@dataclass(frozen=True)
class TrainingEstimate:
    """The training after preparation, planned by who knows it (`training.plan.planning`)."""

    stage: Stage
    factor: int
    """Pixels per latent of the VAE, along each side."""
    note: str
    """What its numbers rest on, as in `PreparePlan.facts`."""


@dataclass(frozen=True)
class PreparePlan:
    """The whole way."""

    sources: tuple[Found, ...]
    stages: tuple[Stage, ...]
    facts: tuple[str, ...]
    """What the numbers rest on, each beginning with counted, measured, computed or assumed."""


def plan_preparation(
    data: DataConfig, machine: Machine, training: TrainingEstimate,
    images: int | None = None, prices: Prices | None = None,
) -> PreparePlan:  # fmt: skip
    """`images` stands in for what the sources count."""
    # Images: what the sources count, unless `--images` says it; a sum with an unknown part is unknown.
    sources = tuple(map(_found, data.sources))
    known = [source.count for source in sources if source.count is not None]
    total = images
    if total is None and len(known) == len(sources):
        total = sum(known)
    latents = None if total is None else total * data.crops
    encoding = None if latents is None else latents / encoded_per_second(data, machine) / 3600
    decoding = None if total is None else total / DECODED / 3600
    posterior = None if latents is None else float(latents * latent_bytes(data, training.factor))
    captioned = _captioned(data, sources, total)
    asking = None if captioned is None else captioned * CAPTION_SECONDS / 3600
    stages = (
        Stage("curate", total, None if total is None else total * IMAGE_BYTES, decoding),
        Stage("caption", captioned, 0.0, 0.0, asking, _energy(asking, machine)),
        Stage("encode", latents, posterior, decoding, encoding, _energy(encoding, machine)),
        training.stage,
    )
    priced = tuple(_priced(stage, prices or Prices()) for stage in stages)
    facts = (*_facts(data, machine, training), *_counts(data, sources, training, total, images is not None))
    return PreparePlan(sources, priced, facts)


def latent_bytes(data: DataConfig, factor: int) -> int:
    """The size of one latent of the largest bucket."""
    return MOMENT_BYTES * _pixels(data) // factor**2


def encoded_per_second(data: DataConfig, machine: Machine) -> float:
    """Images that the VAE should encode, at the assumed share of the GPU's rate."""
    size = _pixels(data) / 2**20
    linear, squared = ENCODER_FLOPS
    return ENCODER_SHARE * machine.flops / (linear * size + squared * size**2)


def _pixels(data: DataConfig) -> int:
    choices = buckets(data.resolution, data.transform.step)
    return max(size.height * size.width for size in choices)


def _captioned(data: DataConfig, sources: Sequence[Found], total: int | None) -> int | None:
    """Images that the captioner is asked about; None if its sources do not say how many they have."""
    if data.captioner is None:
        return 0
    if not data.captioner.sources:
        return total
    counts = [source.count for source in sources if source.name in data.captioner.sources]
    return None if None in counts else sum(count for count in counts if count is not None)


def _found(source: Source) -> Found:
    links = isinstance(source, LaionSource | MidjourneySource) or (
        isinstance(source, CocoSource) and source.images is None
    )
    # Counting these would cost a download.
    if isinstance(source, HuggingfaceSource) and source.repo is not None:
        return Found(source.name, None, "the repository would be fetched first")
    if isinstance(source, CocoSource) and storage.is_remote(source.path):
        return Found(source.name, None, "the whole list would be read from afar", links)
    try:
        count = source.count()
    except UserError as error:
        return Found(source.name, None, error.what, links)
    # 0 is what a source answers that cannot count cheaply; folders and the shipped drawings are always counted.
    if count == 0 and not isinstance(source, FolderSource | EmbeddedSource):
        return Found(source.name, None, "all of it would be read", links)
    return Found(source.name, count, "", links)


def _energy(gpu_hours: float | None, machine: Machine) -> float | None:
    return None if gpu_hours is None else gpu_hours * machine.watts / 1000


def _priced(stage: Stage, prices: Prices) -> Stage:
    """With its cost, if there is a price for each kind of hour that it takes."""
    cost = 0.0
    for hours, price in ((stage.gpu_hours, prices.gpu), (stage.core_hours, prices.core)):
        if hours is None or (hours and price is None):
            return stage
        cost += hours * (price or 0.0)
    return stage if prices == Prices() else replace(stage, cost=cost)


def _facts(data: DataConfig, machine: Machine, training: TrainingEstimate) -> list[str]:
    facts = [
        f"counted: a latent of {data.resolution} pixels has {latent_bytes(data, training.factor):,} bytes",
        f"measured: a core decodes and scales {DECODED:g} images of 12 megapixels in a second, smaller ones faster; "
        "curate decodes each once, encode once more",
        f"assumed: a stored image has {IMAGE_BYTES / 1e6:g} MB",
        f"assumed: {machine.name} encodes {encoded_per_second(data, machine):.0f} images in a second with SDXL's "
        f"VAE ({ENCODER_SHARE:.0%} of its sheet in TF32)",
    ]
    if data.captioner is not None:
        facts.append(
            f"assumed: a caption takes {CAPTION_SECONDS:g} s of a GPU; `terminus caption RECIPE --trial` measures it"
        )
    return [*facts, training.note]


def _counts(
    data: DataConfig, sources: Sequence[Found], training: TrainingEstimate, total: int | None, given: bool
) -> list[str]:  # fmt: skip
    facts = _downloads(data, [source for source in sources if source.links], total, given)
    if given:
        facts.append(f"assumed: {total:,} images, as --images says")
    if total is None:
        return [*facts, "not known: how many images there are; --images N plans for N"]
    facts.append("assumed: no candidate is dropped and every cut has room, so these are upper bounds")
    if total and training.stage.images:
        counts = {source.name: source.count or 0 for source in sources}
        facts += _passes(data, counts, training.stage.images, total, given)
    return facts


def _downloads(data: DataConfig, linked: Sequence[Found], total: int | None, given: bool) -> list[str]:
    """How long the files behind links take; `linked` are the sources that have some."""
    if not linked:
        return []
    rate = data.download.concurrency / DOWNLOAD_SECONDS
    fact = f"assumed: tables hold links, of which a process fetches {rate:g} in a second"
    if total is not None:
        links = total if given else sum(source.count or 0 for source in linked)
        fact += f", all of them in {_hours(links / rate / 3600)} hours"
    return [fact]


def _passes(data: DataConfig, counts: dict[str, int], images: int, total: int, given: bool) -> list[str]:
    """How often training goes through the images: of each source where they are mixed, if it is known how many."""
    if not data.mix:
        passes = f"{images / (total * data.crops):.1f} passes over all of them"
    elif given or not all(counts.values()):
        return []
    else:
        # Sources without a share divide the rest: one pass of theirs is all of their images with their repeats.
        rest = float(1 - sum(data.shares.values())) * images
        others = {name: data.repeats.get(name, 1) for name in counts if name not in data.shares}
        once = rest / max(1, sum(counts[name] * times for name, times in others.items()))
        each = {name: float(share) * images / counts[name] for name, share in data.shares.items()}
        each |= {name: once * times for name, times in others.items()}
        passes = ", ".join(f"{each[name] / data.crops:.1f} passes over {name}" for name in counts)
    return [f"computed: training.images = {images:,} are {passes}"]


def show_preparation_plan(plan: PreparePlan, as_json: bool) -> None:
    """To standard output, as tables or as one JSON object."""
    if as_json:
        print(json.dumps(asdict(plan), indent=1))
        return
    console = Console(highlight=False)
    # What the sources have.
    table = Table("source", "")
    for source in plan.sources:
        table.add_row(source.name, f"not known: {source.why}" if source.count is None else f"{source.count:,} counted")
    console.print(table, markup=False)
    # What each stage takes; a column for cost only where prices were given.
    columns = ["stage", "images", "disk", "core hours", "GPU hours", "kWh"]
    priced = any(stage.cost is not None for stage in plan.stages)
    table = Table()
    for column in [*columns, *(["cost"] if priced else [])]:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in plan.stages:
        cells = [stage.name, _whole(stage.images), _size(stage.disk)]
        cells += [_hours(hours) for hours in (stage.core_hours, stage.gpu_hours, stage.kwh)]
        table.add_row(*cells, *([_hours(stage.cost)] if priced else []))
    console.print(table)
    for fact in plan.facts:
        console.print(fact, markup=False, soft_wrap=True)


def _whole(number: int | None) -> str:
    if number is None:
        return "not known"
    return f"{number:,}" if number else "-"


def _size(size: float | None) -> str:
    if size is None:
        return "not known"
    if not size:
        return "-"
    return f"{size / 1e12:,.2f} TB" if size >= 1e12 else f"{size / 1e9:,.2f} GB"


def _hours(number: float | None) -> str:
    if number is None:
        return "not known"
    if not number:
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:,.2g}"
