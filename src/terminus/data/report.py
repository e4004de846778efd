"""The report of preparation, for people (`report.html`) and for the model card (`report.json`).

Nothing is dropped silently: each reason stands here with its count and with examples.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from terminus.data import damage, storage
from terminus.data.examine import thumbnail
from terminus.data.record import ImageRow
from terminus.data.schema import column_names, read_rows
from terminus.data.store import Store, quoted
from terminus.data.survey import Holdings, Survey
from terminus.decode import HARD_PIXEL_LIMIT, Decoded, Limits, decode
from terminus.errors import UserError
from terminus.images import parse_color

PAIRS = 12
"""Duplicates that are shown beside the image they repeat."""


@dataclass(frozen=True)
class Tally:
    """Counts of one source's candidates: candidates = kept + sum of dropped."""

    candidates: int
    kept: int
    dropped: dict[str, int]
    """By reason, most frequent first."""


@dataclass(frozen=True)
class PrepareReport:
    """The findings and counts of one run of `prepare`, and the content of the store for its transform afterwards."""

    store: str
    transform: str
    vae: str | None
    """None if only the first stage ran."""
    candidates: int
    """Equals `kept` plus the sum of `dropped`."""
    kept: int
    added: int
    """How many of the kept are new."""
    revised: int
    """How many of the kept are described otherwise than before (captions, scores, mask, licence, ...)."""
    taken_down: int
    """Images of earlier runs that a block-list names since: no version of the store from now on has them."""
    crowded: int
    """Images that were compared for near duplicates with only the oldest of very many that share their bits."""
    dropped: dict[str, int]
    """By reason, most frequent first."""
    sources: dict[str, Tally]
    """The same for each source."""
    damaged: tuple[str, ...]
    """Images of the store that are not what was written, by name and reason: no latents were made of them."""
    latents_added: int
    latents: int
    """Rows of this transform and VAE."""
    versions: dict[str, int]
    """Of the tables; 0 is a table that does not exist."""
    holdings: Holdings


@dataclass(frozen=True)
class ExampleImage:
    """An example as the page shows it."""

    uri: str | None
    """A data URI; None where nothing could be decoded."""
    name: str
    text: str = ""


@dataclass(frozen=True)
class _Dropped:
    """The columns of `rejected` that the page shows."""

    source_id: str
    detail: str
    thumbnail: bytes | None
    twin: str | None


def write_prepare_report(report: PrepareReport, survey: Survey, store: Store) -> str:
    """`report.json` and `report.html` in the store; returns the page's place."""
    text = json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False) + "\n"
    save_beside_tables(store.location, "report.json", text)
    environment = Environment(
        loader=PackageLoader("terminus", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        report=report,
        kept=_kept_examples(store, survey),
        dropped={reason: _dropped_examples(store, survey.dropped.get(reason, ())) for reason in report.dropped},
        pairs=_pairs(store, survey),
    )
    return save_beside_tables(store.location, "report.html", page)


def _kept_examples(store: Store, survey: Survey) -> list[ExampleImage]:
    view = store.images.latest()
    assert view is not None, "a report follows a curation that kept something"
    return [_kept_image(row) for index in survey.kept for row in damage.sound_images(view, [index])]


def _kept_image(row: ImageRow) -> ExampleImage:
    decoded = decode(row.data, Limits(len(row.data), HARD_PIXEL_LIMIT))
    assert isinstance(decoded, Decoded), "what was kept decodes"
    # A row without a background has nothing transparent, so this black is never seen.
    small = thumbnail(Image.fromarray(decoded.on(parse_color(row.background or "#000000"))))
    return ExampleImage(_uri(small), row.source_id, "; ".join(row.captions))


def _dropped_examples(store: Store, indices: tuple[int, ...]) -> list[ExampleImage]:
    view = store.rejected.latest()
    if view is None or not indices:
        return []
    rows = read_rows(_Dropped, view.take(indices, column_names(_Dropped)))
    return [_dropped_image(row) for row in rows]


def _dropped_image(row: _Dropped) -> ExampleImage:
    return ExampleImage(_uri(row.thumbnail), row.source_id, row.detail)


def _pairs(store: Store, survey: Survey) -> list[tuple[ExampleImage, ExampleImage]]:
    """The newest duplicates, each with the kept image that it repeats; near ones first, being less certain."""
    images, rejected = store.images.latest(), store.rejected.latest()
    indices = [*survey.dropped.get("near duplicate", ()), *survey.dropped.get("exact duplicate", ())][:PAIRS]
    if images is None or rejected is None or not indices:
        return []
    rows = list(read_rows(_Dropped, rejected.take(indices, column_names(_Dropped))))
    # One scan finds all kept images; a twin that has been taken down since is missing, and so is its pair.
    keys = sorted({str(row.twin) for row in rows})
    where = f"key IN ({', '.join(quoted(key) for key in keys)})"
    found = images.scan(["_rowoffset"], where).column("_rowoffset").to_pylist()
    twins = {row.key: _kept_image(row) for row in damage.sound_images(images, found)}
    return [(_dropped_image(row), twins[row.twin]) for row in rows if row.twin in twins]


def _uri(jpeg: bytes | None) -> str | None:
    return None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def save_beside_tables(location: str, name: str, text: str) -> str:
    """Writes a file beside the tables and returns its place: whole or not at all, and what was there stays until then.

    Raises `UserError` where that cannot be.
    """
    place = f"{location.rstrip('/')}/{name}"
    try:
        if "://" not in location:
            path = Path(location, name)
            # Renamed when complete: a reader sees the old file or the new one.
            partial = path.with_name(f".{name}.partial")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
            return str(path)
        storage.write_whole_file(place, text.encode())
        return place
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"this report cannot be written ({getattr(error, 'strerror', None) or str(error)[:300]})",
            where=place,
            rule="The tables are complete; only the report is missing",
            fix="Make room, or correct the permissions; the same command writes it.",
        ) from None
