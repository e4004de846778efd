"""The result of captioning, for people (`captions.html`: before and after, side by side) and for programs
(`captions.json`).

The sample is the images with the smallest keys. Keys are hashes, so it is random; and it is the same after every run,
so that two captioners, or two prompts, can be compared on the same images.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from io import BytesIO
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from terminus.data import damage
from terminus.data.caption import Caption
from terminus.data.captioning.merge import captions_of
from terminus.data.captioning.question import own_texts
from terminus.data.captioning.table import Answers
from terminus.data.pixels import training_pixels
from terminus.data.record import ImageRow
from terminus.data.report import save_beside_tables
from terminus.data.store import Store, View, quoted

SAMPLE = 32
"""Images on the page."""
USELESS = 8
"""Answers of no use on the page, per captioner and reason."""
SIDE = 320
"""Of an image on the page, in pixels at most."""


@dataclass
class CaptionerFacts:
    """All answers of one captioner to one request, as the table holds them."""

    name: str
    settings: dict[str, Any]
    """Model, prompt, limits, temperature."""
    request: str
    served_by: list[str] = field(default_factory=list[str])
    """What servers said answered."""
    captions: int = 0
    in_force: int = 0
    """Captions that no later answer of the same captioner replaced."""
    useless: dict[str, int] = field(default_factory=dict[str, int])
    """Answers of no use, by reason."""
    words: float = 0.0
    """Of a caption, on average."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: str = ""
    """When it first answered, and when last, in UTC."""
    last: str = ""


@dataclass(frozen=True)
class Told:
    """A caption as the page shows it."""

    text: str
    origin: str
    share: float
    """How often it is drawn for its image, 0..1."""


@dataclass(frozen=True)
class Shown:
    """An image as the page shows it."""

    uri: str
    name: str
    before: list[Told]
    after: list[Told]


def write_sheet(store: Store, transform: str, failed: Mapping[str, int]) -> str:
    """Both files, in the store; returns the page's place. `failed` are this run's images without an answer."""
    captioners = facts(store)
    # For programs, then for people.
    content = {"captioners": [asdict(captioner) for captioner in captioners], "failed": dict(failed)}
    save_beside_tables(store.location, "captions.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    images = store.images.required()
    origins = frozenset(captioner.name for captioner in captioners)
    environment = Environment(
        loader=PackageLoader("terminus", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("captions.html.j2").render(
        store=store.location,
        captioners=captioners,
        failed=failed,
        sample=_sample(images, transform, origins),
        useless=_useless(store, images, captioners),
        total=images.counted(f"transform = {quoted(transform)}"),
    )
    return save_beside_tables(store.location, "captions.html", page)


def facts(store: Store) -> list[CaptionerFacts]:
    """Every captioner that answered, in the order of their first answers; what a model card says of captions."""
    view = Answers(store).table.latest()
    found: dict[tuple[str, str], CaptionerFacts] = {}
    letters: Counter[tuple[str, str]] = Counter()
    columns = [
        "origin", "request", "settings", "model", "caption", "reason", "weight", "prompt_tokens", "completion_tokens",
        "created",
    ]  # fmt: skip
    for batch in view.batches(columns) if view else ():
        for row in batch.to_pylist():
            key = (row["origin"], row["request"])
            one = found.setdefault(key, CaptionerFacts(row["origin"], json.loads(row["settings"]), row["request"]))
            _add(one, row)
            letters[key] += len((row["caption"] or "").split())
    for key, one in found.items():
        one.words = round(letters[key] / max(1, one.captions), 1)
    return list(found.values())


def _add(one: CaptionerFacts, row: Mapping[str, Any]) -> None:
    created = cast(datetime, row["created"]).isoformat(timespec="seconds")
    one.first, one.last = min(one.first or created, created), max(one.last, created)
    if row["model"] and row["model"] not in one.served_by:
        one.served_by.append(row["model"])
    if row["reason"] is None:
        one.captions += 1
        one.in_force += row["weight"] is not None
    else:
        one.useless[row["reason"]] = one.useless.get(row["reason"], 0) + 1
    one.prompt_tokens += row["prompt_tokens"]
    one.completion_tokens += row["completion_tokens"]


def _sample(images: View, transform: str, origins: frozenset[str]) -> list[Shown]:
    """A sample of the images that have a generated caption."""
    smallest: list[tuple[str, int]] = []
    place = 0
    for batch in images.batches(["key", "transform", "caption_origins"]):
        for row in batch.to_pylist():
            if row["transform"] == transform and origins.intersection(row["caption_origins"]):
                smallest.append((row["key"], place))
            place += 1
        # Only the smallest so far are kept.
        smallest = sorted(smallest)[:SAMPLE]
    return [_shown(row, origins) for row in _taken(images, [number for _, number in smallest])]


def _taken(images: View, rows: Sequence[int]) -> list[ImageRow]:
    """These rows in the order asked for, without damaged ones."""
    return damage.sound_images(images, rows) if rows else []


def _shown(row: ImageRow, origins: frozenset[str]) -> Shown:
    captions = captions_of(row)
    total = sum(caption.weight for caption in captions)
    told = [_told(caption, total, len(captions)) for caption in captions]
    return Shown(
        _uri(row),
        f"{row.source}/{row.source_id}",
        [one for one in told if one.origin not in origins],
        [one for one in told if one.origin in origins],
    )


def _told(caption: Caption, total: float, count: int) -> Told:
    # Where all weights are zero, training draws all alike.
    return Told(caption.text, caption.origin, caption.weight / total if total else 1 / count)


def _useless(store: Store, images: View, captioners: Sequence[CaptionerFacts]) -> dict[str, list[Shown]]:
    """Examples of answers of no use, by captioner and reason."""
    view = Answers(store).table.latest()
    if view is None or not any(captioner.useless for captioner in captioners):
        return {}
    columns = ["image_key", "origin", "reason", "detail"]
    examples: dict[str, list[dict[str, str]]] = {}
    for row in view.scan(columns, "reason IS NOT NULL").to_pylist():
        group = examples.setdefault(f"{row['origin']}: {row['reason']}", [])
        group.append(row)
        # The last ones of each kind.
        del group[:-USELESS]
    origins = frozenset(captioner.name for captioner in captioners)
    # Only the images that are shown are read.
    wanted = {row["image_key"] for group in examples.values() for row in group}
    keys = cast("list[str]", images.scan(["key"]).column("key").to_pylist())
    found = {row.key: row for row in _taken(images, [place for place, key in enumerate(keys) if key in wanted])}
    shown: dict[str, list[Shown]] = {}
    for title, group in sorted(examples.items()):
        there = [row for row in group if row["image_key"] in found]
        shown[title] = [_useless_example(found[row["image_key"]], row["detail"], origins) for row in there]
    return shown


def _useless_example(image: ImageRow, answer: str, origins: frozenset[str]) -> Shown:
    return Shown(
        _uri(image),
        f"{image.source}/{image.source_id}",
        [Told(text, "", 0.0) for text in own_texts(image, origins)],
        [Told(answer or "(nothing)", "", 0.0)],
    )


def _uri(row: ImageRow) -> str:
    image = Image.fromarray(training_pixels(row))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
