"""The content of a store for one transform, in one pass over its tables: counts, distributions, examples.

Rows stream by and leave numbers behind, so that a survey of a hundred million rows needs no more memory than one
of ten. Distributions show what was dropped on top of what was kept: a threshold is judged by what it cuts off.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from terminus.data.filters import Filters
from terminus.data.store import Store, View, quoted

KEPT_EXAMPLES = 24
DROPPED_EXAMPLES = 12
"""Per reason."""
MOST_NAMES = 50_000
"""Of hosts; where there are more, the rarest are counted together."""
SHOWN_NAMES = 40
"""In the report, of each kind."""
OTHERS = "others"
FEWEST_BINS = 10
"""Of a distribution whose empty ends are left out."""


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values lie in [edges[i], edges[i + 1]); values beyond the ends count in the outermost bins."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """Of images that are kept."""
    dropped: tuple[int, ...] = ()
    """Of images that were dropped, as far as the value is known."""
    limits: tuple[float, ...] = ()
    """Where the recipe cuts."""


@dataclass(frozen=True)
class Holdings:
    """Counts over all images of one transform in a store."""

    images: int
    """More than were kept, if a source no longer offers some."""
    buckets: dict[str, int]
    sources: dict[str, int]
    splits: dict[str, int]
    licences: dict[str, int]
    """By the licence that the source states; "not stated" otherwise."""
    hosts: dict[str, int]
    """Of downloaded images, by the host of the URL."""
    captions: dict[str, int]
    """How many captions there are, by where they come from."""
    cameras: int
    """Images whose EXIF names a camera."""
    masks: int
    """Images with a mask of their own."""
    histograms: dict[str, Histogram]


@dataclass(frozen=True)
class Survey:
    """The counts, and which rows serve as examples."""

    holdings: Holdings
    kept: tuple[int, ...]
    """Indices of rows of `images`: a sample that is the same every time."""
    dropped: dict[str, tuple[int, ...]]
    """Indices of the newest rows of `rejected`, by reason."""


@dataclass
class _Scale:
    """A distribution as it grows."""

    edges: np.ndarray
    limits: tuple[float, ...]
    trimmed: bool = False
    """Whether empty bins at the ends are left out."""
    counts: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])

    def add(self, part: str, values: np.ndarray) -> None:
        values = values[~np.isnan(values)]
        # The outermost bins take what lies beyond them.
        inside = np.clip(values, self.edges[0], np.nextafter(self.edges[-1], self.edges[0]))
        found, _ = np.histogram(inside, self.edges)
        self.counts[part] = self.counts.get(part, np.zeros(len(self.edges) - 1, np.int64)) + found

    @property
    def known(self) -> bool:
        return any(counts.any() for counts in self.counts.values())

    def done(self) -> Histogram:
        kept, dropped = (self.counts.get(part, np.zeros(len(self.edges) - 1, np.int64)) for part in _PARTS)
        # Without the empty bins at both ends, but never so few that the shape is lost.
        used = np.flatnonzero(kept + dropped)
        first, last = 0, len(kept)
        if self.trimmed and len(used):
            first, last = used[0], min(last, max(used[-1] + 1, used[0] + FEWEST_BINS))
        return Histogram(
            tuple(float(edge) for edge in self.edges[first : last + 1]),
            tuple(int(count) for count in kept[first:last]),
            tuple(int(count) for count in dropped[first:last]),
            self.limits,
        )


_PARTS = ("kept", "dropped")
_MEASURED = ["luminance", "original_height", "original_width", "watermark", "unsafe", "aesthetic", "similarity"]
_NAMED = ("bucket", "source", "split")
_CAPTIONS = "caption length (characters)"
_TITLES = {
    "luminance": "luminance (mean Rec.601 luma)",
    "size": "size (square root of the pixels)",
    "aspect": "aspect (log2 of width / height)",
    "watermark": "watermark score",
    "unsafe": "unsafe score",
    "aesthetic": "aesthetic score",
    "similarity": "similarity of image and text",
}


def survey(store: Store, transform: str, filters: Filters) -> Survey:
    """The survey of the rows of one transform; `filters` gives the limits that the distributions show."""
    scales = _scales(filters)
    names: dict[str, Counter[str]] = {}
    numbers: Counter[str] = Counter()
    # One pass over each table fills all counters.
    sample = _kept(store, transform, scales, names, numbers)
    newest = _dropped(store, transform, scales)
    holdings = Holdings(
        images=numbers["images"],
        buckets=ranked(names.get("bucket", {})),
        sources=ranked(names.get("source", {})),
        splits=ranked(names.get("split", {})),
        licences=ranked(names.get("licence", {}), SHOWN_NAMES),
        hosts=ranked(names.get("host", {}), SHOWN_NAMES),
        captions=ranked(names.get("caption", {}), SHOWN_NAMES),
        cameras=numbers["cameras"],
        masks=numbers["masks"],
        histograms={title: scale.done() for title, scale in scales.items() if scale.known},
    )
    return Survey(holdings, sample, newest)


def ranked(counts: Mapping[str, int], most: int | None = None) -> dict[str, int]:
    """The most frequent first, ties by name; those beyond `most` are counted together."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = dict(order[:most])
    if rest := sum(count for _, count in order[len(shown) :]):
        shown[OTHERS] = shown.get(OTHERS, 0) + rest
    return shown


def _kept(
    store: Store, transform: str, scales: Mapping[str, _Scale], names: dict[str, Counter[str]], numbers: Counter[str]
) -> tuple[int, ...]:
    columns = [*_MEASURED, *_NAMED, "key", "licence", "url", "captions", "caption_origins", "camera"]
    sample: list[tuple[str, int]] = []
    for places, batch in _batches(store.images.latest(), transform, columns):
        numbers["images"] += batch.num_rows
        numbers["cameras"] += sum(map(bool, batch.column("camera").to_pylist()))
        _measure("kept", batch, scales)
        _count_names(batch, names)
        lengths = np.array([len(text) for text in _flat_texts(batch, "captions")], np.float64)
        scales[_CAPTIONS].add("kept", lengths)
        # Keys are hashes: the smallest are a random sample, and the same one for the same rows.
        keys = (key or "" for key in _texts(batch, "key"))
        sample = heapq.nsmallest(KEPT_EXAMPLES, [*sample, *zip(keys, places, strict=True)])
    view = store.images.latest()
    with_mask = f"transform = {quoted(transform)} AND mask IS NOT NULL"
    numbers["masks"] = view.counted(with_mask) if view else 0
    return tuple(index for _, index in sample)


def _count_names(batch: pa.RecordBatch, names: dict[str, Counter[str]]) -> None:  # pyright: ignore[reportUnknownParameterType]
    """Adds the batch to the counts of buckets, sources, splits, licences, hosts and origins of captions."""
    for name in _NAMED:
        names.setdefault(name, Counter()).update(text or "" for text in _texts(batch, name))
    names.setdefault("licence", Counter()).update(text or "not stated" for text in _texts(batch, "licence"))
    names.setdefault("host", Counter()).update(_host(url) for url in _texts(batch, "url") if url)
    # There may be millions of them.
    names["host"], names["licence"] = _bounded(names["host"]), _bounded(names["licence"])
    names.setdefault("caption", Counter()).update(_flat_texts(batch, "caption_origins"))


def _dropped(store: Store, transform: str, scales: Mapping[str, _Scale]) -> dict[str, tuple[int, ...]]:
    newest: dict[str, deque[int]] = {}
    for places, batch in _batches(store.rejected.latest(), transform, [*_MEASURED, "reason"]):
        _measure("dropped", batch, scales)
        for reason, place in zip(_texts(batch, "reason"), places, strict=True):
            newest.setdefault(reason or "", deque(maxlen=DROPPED_EXAMPLES)).append(place)
    return {reason: tuple(places) for reason, places in newest.items()}


def _batches(  # pyright: ignore[reportUnknownParameterType]
    view: View | None, transform: str, columns: Sequence[str]
) -> Iterator[tuple[list[int], pa.RecordBatch]]:
    """The rows of one transform with their indices in the table."""
    start = 0
    for batch in view.batches(["transform", *columns], size=8192) if view else ():
        mine = np.array([text == transform for text in _texts(batch, "transform")], np.bool_)
        places = np.flatnonzero(mine) + start
        start += batch.num_rows
        if len(places):
            yield cast("list[int]", places.tolist()), batch.filter(pa.array(mine))


def _measure(part: str, batch: pa.RecordBatch, scales: Mapping[str, _Scale]) -> None:  # pyright: ignore[reportUnknownParameterType]
    values = {
        name: batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in _MEASURED
    }
    height, width = values.pop("original_height"), values.pop("original_width")
    values["size"], values["aspect"] = np.sqrt(height * width), np.log2(width / height)
    for name, title in _TITLES.items():
        scales[title].add(part, values[name])


def _scales(filters: Filters) -> dict[str, _Scale]:
    def linear(low: float, high: float, *limits: float | None, trimmed: bool = False) -> _Scale:
        return _Scale(np.linspace(low, high, 21), tuple(limit for limit in limits if limit is not None), trimmed)

    lowest = filters.min_luminance if filters.min_luminance > 0 else None
    highest = filters.max_luminance if filters.max_luminance < 1 else None
    # Four bins for each doubling, from 8 to 65536 pixels.
    octaves = np.exp2(np.arange(3, 16.25, 0.25))
    return {
        _TITLES["luminance"]: linear(0.0, 1.0, lowest, highest),
        _TITLES["size"]: _Scale(octaves, (), trimmed=True),
        _TITLES["aspect"]: linear(-2.5, 2.5, trimmed=True),
        _CAPTIONS: _Scale(np.linspace(0, 640, 33), (), trimmed=True),
        _TITLES["watermark"]: linear(0.0, 1.0, filters.max_watermark),
        _TITLES["unsafe"]: linear(0.0, 1.0, filters.max_unsafe),
        _TITLES["aesthetic"]: linear(0.0, 10.0, filters.min_aesthetic),
        _TITLES["similarity"]: linear(0.0, 0.5, filters.min_similarity),
    }


def _bounded(counts: Counter[str]) -> Counter[str]:
    # Half at once, so that this is not done again with every batch.
    return counts if len(counts) <= MOST_NAMES else Counter(ranked(counts, MOST_NAMES // 2))


def _texts(batch: pa.RecordBatch, name: str) -> list[str | None]:  # pyright: ignore[reportUnknownParameterType]
    return cast("list[str | None]", batch.column(name).to_pylist())


def _flat_texts(batch: pa.RecordBatch, name: str) -> list[str]:  # pyright: ignore[reportUnknownParameterType]
    """The texts of a column of lists, one after the other."""
    lists = cast("list[list[str]]", batch.column(name).to_pylist())
    return [text for several in lists for text in several]


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no host"
