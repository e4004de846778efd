"""Every answer of every captioner, a row each in `captions.lance`: what was asked, of whom, when, and what came back.

The captions in `images` and `latents` are derived from these rows, so they can be derived again: when a sidecar is
edited, when a weight changes, when a kill came between. Answers that could not be used are rows too, so that nothing
is asked twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import lance
import pyarrow as pa

from terminus.data.caption import Caption
from terminus.data.record import CaptionRow
from terminus.data.store import CAPTIONS, Store
from terminus.data.unreadable import reading_table

COMPACT_AFTER = 256
"""Commits after which their small files become one: a store of a million answers has a few files, not thousands."""


@dataclass(frozen=True)
class GeneratedCaptions:
    """The captions in force: of each image the newest usable answer of each captioner."""

    captions: dict[str, tuple[Caption, ...]] = field(default_factory=dict[str, tuple[Caption, ...]])
    """By image key, in the order in which the captioners first answered."""
    own_weights: dict[str, float] = field(default_factory=dict[str, float])
    """By image key, where a captioner decides what the source's captions count for."""
    origins: frozenset[str] = frozenset()
    """Names of all captioners that ever answered."""

    def beside(self, image_key: str, captions: Sequence[Caption]) -> tuple[Caption, ...]:
        """The source's captions of an image (generated ones among them are left out) and the generated ones."""
        own = [caption for caption in captions if caption.origin not in self.origins]
        weight = self.own_weights.get(image_key)
        if weight is not None:
            own = [Caption(caption.text, caption.origin, weight) for caption in own]
        return (*own, *self.captions.get(image_key, ()))


class Answers:
    """The `captions` table of a store."""

    def __init__(self, store: Store) -> None:
        self.table = store.captions
        self._commits = 0

    def append(self, rows: Sequence[CaptionRow]) -> None:
        """Adds the rows in one atomic commit."""
        if not rows:
            return
        self.table.append(rows)
        self._commits += 1
        if self._commits % COMPACT_AFTER == 0:
            self.compact()

    def compact(self) -> None:
        """Joins the files of many small commits. No run reads versions of this table, so old ones go."""
        view = self.table.latest()
        if view is None:
            return
        with reading_table(self.table.uri, "changed"):
            if len(view.dataset.get_fragments()) > 1:
                view.dataset.optimize.compact_files()
            lance.dataset(self.table.uri).cleanup_old_versions(older_than=timedelta(0))

    def answered(self, request: str) -> dict[str, str | None]:
        """The images that need not be asked about again, by key; why not, where the answer was of no use."""
        view = self.table.latest()
        if view is None:
            return {}
        found = view.scan(["image_key", "reason"], f"request = '{request}'").to_pylist()
        return {row["image_key"]: row["reason"] for row in found}

    def weigh(self, origin: str, request: str, weight: float, own_weight: float | None) -> None:
        """Puts the answers to `request` in force with these weights, and others of `origin` out where it has one."""
        view = self.table.latest()
        if view is None:
            return
        columns = ["key", "image_key", "request", "weight", "own_weight"]
        rows = view.scan(columns, f"origin = '{origin}' AND caption IS NOT NULL").to_pylist()
        # Where this request has an answer, those to other requests give way.
        here = {row["image_key"] for row in rows if row["request"] == request}
        changes: list[dict[str, object]] = []
        for row in rows:
            wanted: tuple[float | None, float | None] = (row["weight"], row["own_weight"])
            if row["request"] == request:
                wanted = (_single(weight), _single(own_weight))
            elif row["image_key"] in here:
                wanted = (None, None)
            if wanted != (row["weight"], row["own_weight"]):
                changes.append({"key": row["key"], "weight": wanted[0], "own_weight": wanted[1]})
        names = ("key", "weight", "own_weight")
        schema = pa.schema([CAPTIONS.field(name) for name in names])
        self.table.revise(pa.Table.from_pylist(changes, schema=schema), "key")


def generated(store: Store, image_keys: Collection[str] | None = None) -> GeneratedCaptions:
    """The captions in force of these images, or of all."""
    view = Answers(store).table.latest()
    if view is None:
        return GeneratedCaptions()
    columns = ["image_key", "origin", "caption", "weight", "own_weight"]
    found: defaultdict[str, dict[str, Caption]] = defaultdict(dict)
    own: dict[str, float] = {}
    origins: set[str] = set()
    for batch in view.batches(columns, "caption IS NOT NULL"):
        for row in batch.to_pylist():
            # All who ever answered, whether in force or not.
            origins.add(row["origin"])
            if row["weight"] is None or (image_keys is not None and row["image_key"] not in image_keys):
                continue
            found[row["image_key"]][row["origin"]] = Caption(row["caption"], row["origin"], row["weight"])
            if row["own_weight"] is not None:
                own[row["image_key"]] = row["own_weight"]
    in_force = {key: tuple(captions.values()) for key, captions in found.items()}
    return GeneratedCaptions(in_force, own, frozenset(origins))


def _single(value: float | None) -> float | None:
    """As float32 keeps it, so that what is stored compares equal."""
    return None if value is None else float(pa.scalar(value, pa.float32()).as_py())
