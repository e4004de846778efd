"""What preparation found, for people (`report.html`) and for the model card (`report.json`).

Nothing is dropped silently: each reason stands here with its count and with examples.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pyarrow import fs

from terminus.data.examine import thumbnail
from terminus.data.record import parse_color
from terminus.data.store import Store, View, quoted
from terminus.decode import HARD_PIXEL_LIMIT, Decoded, Limits, decode

KEPT_EXAMPLES = 24
DROPPED_EXAMPLES = 12
"""Per reason."""
BINS = 20


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values lie in [edges[i], edges[i + 1]); the last interval includes its end."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


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
    histograms: dict[str, Histogram]


@dataclass(frozen=True)
class PrepareReport:
    """What one run of `prepare` found and did, and what the store holds for its transform afterwards."""

    store: str
    transform: str
    codec: str | None
    """None if only the first stage ran."""
    candidates: int
    """Equals `kept` plus the sum of `dropped`."""
    kept: int
    added: int
    """How many of the kept are new."""
    revised: int
    """How many of the kept are described otherwise than before (captions, licence)."""
    dropped: dict[str, int]
    """By reason, most frequent first."""
    latents_added: int
    latents: int
    """Rows of this transform and codec."""
    versions: dict[str, int]
    """Of the tables; 0 is a table that does not exist."""
    holdings: Holdings


@dataclass(frozen=True)
class Picture:
    """An example as the page shows it."""

    uri: str | None
    """A data URI; None where nothing could be decoded."""
    title: str


def holdings(store: Store, transform: str) -> Holdings:
    """What the store holds for one transform."""
    columns = ("bucket", "source", "split", "licence", "luminance", "original_height", "original_width", "captions")
    view = store.images.latest()
    assert view is not None, "a report follows a curation that kept something"
    table = view.scan(columns, f"transform = {quoted(transform)}")
    found = {name: cast("list[object]", table.column(name).to_pylist()) for name in columns}
    heights = np.array(found["original_height"], dtype=np.float64)
    widths = np.array(found["original_width"], dtype=np.float64)
    captions = cast("list[list[str]]", found["captions"])
    return Holdings(
        images=table.num_rows,
        buckets=_counted(found["bucket"]),
        sources=_counted(found["source"]),
        splits=_counted(found["split"]),
        licences=_counted(licence or "not stated" for licence in found["licence"]),
        histograms={
            "luminance (mean Rec.601 luma)": _histogram(np.array(found["luminance"]), 0.0, 1.0),
            "size (square root of the pixels)": _histogram(np.sqrt(heights * widths)),
            "aspect (log2 of width / height)": _histogram(np.log2(widths / heights), -2.0, 2.0),
            "caption length (characters)": _histogram(np.array([len(text) for texts in captions for text in texts])),
        },
    )


def write(report: PrepareReport, store: Store) -> str:
    """`report.json` and `report.html` in the store; returns the page's place."""
    text = json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False) + "\n"
    _save(store.location, "report.json", text)
    environment = Environment(
        loader=PackageLoader("terminus", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        report=report, kept=_kept_examples(store, report.transform), dropped=_dropped_examples(store, report)
    )
    return _save(store.location, "report.html", page)


def _kept_examples(store: Store, transform: str) -> list[Picture]:
    view = store.images.latest()
    if view is None:
        return []
    transforms = cast("list[str]", view.scan(["transform"]).column("transform").to_pylist())
    rows = [index for index, spec in enumerate(transforms) if spec == transform]
    chosen = rows[:: max(1, len(rows) // KEPT_EXAMPLES)][:KEPT_EXAMPLES]
    return [_kept_picture(view, row) for row in chosen]


def _kept_picture(view: View, index: int) -> Picture:
    row = view.take([index], ["source_id", "captions", "data", "background"]).to_pylist()[0]
    decoded = decode(row["data"], Limits(len(row["data"]), HARD_PIXEL_LIMIT))
    assert isinstance(decoded, Decoded), "what was kept decodes"
    small = thumbnail(Image.fromarray(decoded.on(parse_color(row["background"] or "#000000"))))
    return Picture(_uri(small), f"{row['source_id']}: {'; '.join(row['captions'])}")


def _dropped_examples(store: Store, report: PrepareReport) -> dict[str, list[Picture]]:
    """The newest of each reason that occurred in this run."""
    view = store.rejected.latest()
    if view is None:
        return {}
    here = view.scan(["transform", "reason"]).to_pylist()
    examples: dict[str, list[Picture]] = {}
    for reason in report.dropped:
        rows = [i for i, row in enumerate(here) if row["reason"] == reason and row["transform"] == report.transform]
        taken = view.take(rows[-DROPPED_EXAMPLES:], ["source_id", "detail", "thumbnail"]).to_pylist()
        examples[reason] = [
            Picture(
                _uri(row["thumbnail"]), f"{row['source_id']}: {row['detail']}" if row["detail"] else row["source_id"]
            )
            for row in taken
        ]
    return examples


def _counted(values: Iterable[object]) -> dict[str, int]:
    counter: Mapping[object, int] = Counter(values)
    return {str(value): count for value, count in sorted(counter.items(), key=lambda item: (-item[1], str(item[0])))}


def _histogram(values: np.ndarray, low: float | None = None, high: float | None = None) -> Histogram:
    """Values outside [low, high] count in the outermost bins."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(tuple(float(edge) for edge in edges), tuple(int(count) for count in counts))


def _uri(jpeg: bytes | None) -> str | None:
    return None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _save(location: str, name: str, text: str) -> str:
    if "://" not in location:
        path = Path(location, name)
        path.write_text(text, encoding="utf-8")
        return str(path)
    uri = f"{location.rstrip('/')}/{name}"
    filesystem, path = fs.FileSystem.from_uri(uri)
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode())
    return uri
