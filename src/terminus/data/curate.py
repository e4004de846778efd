"""The first stage of preparation: candidates become rows of `images`, or rows of `rejected` with a reason.

Append-only and idempotent. Candidates are judged in the order of their sources, whatever was killed or
added in between, so an interrupted preparation that is repeated ends like an undisturbed one.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import pyarrow as pa

from terminus.conditioning import Crop, Size
from terminus.data import engine, record
from terminus.data.examine import Examined, Refused, examine
from terminus.data.filters import Filters, Measures, NearDuplicates
from terminus.data.geometry import Plan, Transform
from terminus.data.record import Candidate, ImageRow, Rejection, Split
from terminus.data.settings import DataConfig
from terminus.data.store import IMAGES, LATENTS, Store
from terminus.errors import UserError
from terminus.pictures import Dropped

GROUP = 2048
"""Candidates per commit."""
COMMIT_BYTES = 256 << 20
"""A commit comes earlier when this much image data waits for it."""

_INPUT = pa.schema([
    ("data", pa.large_binary()), ("path", pa.binary()), ("root", pa.binary()), ("background", pa.string()),
])  # fmt: skip
_OUTPUT = pa.schema([
    ("reason", pa.string()), ("detail", pa.string()), ("image_hash", pa.string()), ("thumbnail", pa.binary()),
    ("data", pa.large_binary()), ("transparent", pa.bool_()), ("luminance", pa.float64()),
    ("dhash", pa.string()), ("thumbprint", pa.binary()), ("plan", pa.list_(pa.int32())),
])  # fmt: skip


@dataclass
class Curated:
    """What became of the candidates of one run: candidates = added + unchanged + sum of dropped."""

    candidates: int = 0
    added: int = 0
    unchanged: int = 0
    """Kept by an earlier run."""
    revised: int = 0
    """Of the unchanged, those that their source describes otherwise since (captions, licence)."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """By reason, whether judged now or by an earlier run."""


def curate(data: DataConfig, store: Store, advance: Callable[[int], None]) -> Curated:
    """Judges every candidate of every source that has not been judged in its present state."""
    check_rules(data, store)
    curation = _Curation(data, store)
    for source in data.sources:
        for group in _groups(source.candidates(data.seed)):
            curation.judge(group, advance)
    curation.finish()
    return curation.counts


def check_rules(data: DataConfig, store: Store) -> None:
    """One store holds the judgements of one set of rules; rows kept under others would break these."""
    view = store.images.latest()
    if view is None:
        return
    stored = cast(str, view.take([0], ["rules"]).column("rules")[0].as_py())
    # A rule that is younger than the store was then what its default is now.
    initial = DataConfig(store=data.store, sources=data.sources).rules
    before = _leaves(json.loads(initial)) | _leaves(json.loads(stored))
    now = _leaves(json.loads(data.rules))
    changed = [f"data.{key} was {before[key]} and is {now[key]}" for key in sorted(now) if before[key] != now[key]]
    if not changed:
        return
    raise UserError(
        f"the images here were chosen by other rules ({'; '.join(changed)})",
        where=data.store,
        rule="Rows are only ever added, so one store holds one choice",
        fix="Set these back, or prepare into another data.store.",
    )


class _Curation:
    """One run's memory: what is known already, what waits for the next commit, and the counts."""

    def __init__(self, data: DataConfig, store: Store) -> None:
        self.data, self.store, self.transform = data, store, data.transform
        self.spec = self.transform.spec
        self.counts = Curated()
        self.kept: set[tuple[str, str, str]] = set()
        self.refused: dict[tuple[str, str, str], str] = {}
        self.keys: dict[str, str] = {}
        self.near = NearDuplicates()
        self.images: list[ImageRow] = []
        self.rejected: list[Rejection] = []
        self.revised: list[ImageRow] = []
        self.waiting_bytes = 0
        self._recall()

    def judge(self, group: Sequence[Candidate], advance: Callable[[int], None]) -> None:
        """Decides on each of the group in order, and commits."""
        states = [self._identity(candidate) for candidate in group]
        unknown = [
            candidate
            for candidate, state in zip(group, states, strict=True)
            if state not in self.kept and state not in self.refused and _unusable(candidate) is None
        ]
        verdicts = self._examine(unknown)
        for candidate, state in zip(group, states, strict=True):
            self.counts.candidates += 1
            if state in self.kept:
                self.counts.unchanged += 1
            elif state in self.refused:
                self.counts.dropped[self.refused[state]] += 1
            elif dropped := _unusable(candidate):
                self._refuse(candidate, state, Refused(dropped))
            else:
                self._decide(candidate, state, next(verdicts))
            advance(1)
        self._commit()

    def finish(self) -> None:
        """An error if the sources gave nothing at all to train on; the store is untouched then."""
        if self.counts.added or self.counts.unchanged:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.dropped.most_common())
        raise UserError(
            f"none of {self.counts.candidates} candidates can be used ({reasons})"
            if self.counts.candidates
            else "the sources hold no images",
            where=f"data.sources ({', '.join(source.name for source in self.data.sources)})",
            rule="An image needs a caption, must decode, and must pass data.filters",
            fix="Correct the folder or the filters; nothing was written.",
        )

    def _recall(self) -> None:
        """What earlier runs decided under the same transform."""
        columns = ["key", "source", "source_id", "state", "dhash", "thumbprint"]
        same = f"transform = '{self.spec}'"
        near = self.data.filters.duplicates == "near"
        if view := self.store.images.latest():
            for batch in view.batches(columns, same):
                for row in batch.to_pylist():
                    name = f"{row['source']}/{row['source_id']}"
                    self.kept.add((row["source"], row["source_id"], row["state"]))
                    self.keys[row["key"]] = name
                    if near:
                        self.near.add(name, row["dhash"], row["thumbprint"])
        if view := self.store.rejected.latest():
            for batch in view.batches(["source", "source_id", "state", "reason"], same):
                for row in batch.to_pylist():
                    self.refused[(row["source"], row["source_id"], row["state"])] = row["reason"]

    def _identity(self, candidate: Candidate) -> tuple[str, str, str]:
        return candidate.source, candidate.source_id, candidate.state(self.data.background_color)

    def _examine(self, candidates: Sequence[Candidate]) -> Iterator[Examined | Refused]:
        if not candidates:
            return
        default = self.data.background_color
        columns: dict[str, list[object]] = {
            "data": [candidate.data for candidate in candidates],
            "path": [_encoded(candidate.path) for candidate in candidates],
            "root": [_encoded(candidate.root) for candidate in candidates],
            "background": [record.hex_color(candidate.background or default) for candidate in candidates],
        }

        task = partial(_examined, filters=self.data.filters, transform=self.transform)
        for row in engine.run(columns, _INPUT, task, _OUTPUT):
            yield _unpacked(row)

    def _decide(self, candidate: Candidate, state: tuple[str, str, str], verdict: Examined | Refused) -> None:
        if isinstance(verdict, Refused):
            self._refuse(candidate, state, verdict)
            return
        background = None
        if verdict.transparent:
            background = record.hex_color(candidate.background or self.data.background_color)
        key = record.image_key(verdict.image_hash, background, self.spec)
        measures = verdict.measures
        judged = self.data.filters.duplicates == "near" and not candidate.near_duplicates
        twin = self.keys.get(key)
        if twin == _name(candidate):
            self.counts.unchanged += 1
            self.counts.revised += 1
            self.revised.append(self._image_row(candidate, state, verdict, key, background))
            return
        if twin is not None:
            dropped = Dropped("exact duplicate", f"of {twin}")
        elif judged and (twin := self.near.find(measures.dhash, measures.thumbprint)) is not None:
            dropped = Dropped("near duplicate", f"of {twin}")
        else:
            self._keep(candidate, state, verdict, key, background)
            return
        self._refuse(candidate, state, Refused(dropped, verdict.image_hash, verdict.thumbnail))

    def _keep(
        self,
        candidate: Candidate,
        state: tuple[str, str, str],
        seen: Examined,
        key: str,
        background: str | None,
    ) -> None:
        name = _name(candidate)
        self.keys[key] = name
        if self.data.filters.duplicates == "near":
            self.near.add(name, seen.measures.dhash, seen.measures.thumbprint)
        self.counts.added += 1
        self.images.append(self._image_row(candidate, state, seen, key, background))
        self.waiting_bytes += len(seen.data)
        if self.waiting_bytes > COMMIT_BYTES:
            self._commit()

    def _image_row(
        self, candidate: Candidate, state: tuple[str, str, str], seen: Examined, key: str, background: str | None
    ) -> ImageRow:
        return ImageRow(
            key=key,
            image_hash=seen.image_hash,
            source=candidate.source,
            source_id=candidate.source_id,
            split=candidate.split or split(seen.image_hash, self.data.validation_fraction),
            captions=tuple(caption.text for caption in candidate.captions),
            caption_origins=tuple(caption.origin for caption in candidate.captions),
            data=seen.data,
            background=background,
            plan=seen.plan,
            luminance=seen.measures.luminance,
            dhash=seen.measures.dhash,
            thumbprint=seen.measures.thumbprint,
            licence=candidate.licence,
            state=state[2],
            transform=self.spec,
            rules=self.data.rules,
            caption_weights=tuple(caption.weight for caption in candidate.captions),
            url=candidate.url,
            watermark=candidate.said.watermark,
            unsafe=candidate.said.unsafe,
            aesthetic=candidate.said.aesthetic,
            similarity=candidate.said.similarity,
            tags=candidate.said.tags,
            mask=candidate.mask,
        )

    def _refuse(self, candidate: Candidate, state: tuple[str, str, str], refused: Refused) -> None:
        self.counts.dropped[refused.dropped.reason] += 1
        self.rejected.append(
            Rejection(
                source=candidate.source,
                source_id=candidate.source_id,
                image_hash=refused.image_hash,
                state=state[2],
                transform=self.spec,
                rules=self.data.rules,
                reason=refused.dropped.reason,
                detail=refused.dropped.detail,
                thumbnail=refused.thumbnail,
            )
        )

    def _commit(self) -> None:
        """Images first: a kill between the two commits costs only the judging of the rejected again."""
        if not (self.counts.added or self.counts.unchanged):
            return  # nothing may be written before there is something to train on
        self.store.images.append(self.images)
        self.store.rejected.append(self.rejected)
        self._revise()
        self.images, self.rejected, self.revised, self.waiting_bytes = [], [], [], 0

    def _revise(self) -> None:
        """Edited captions reach both tables; the images' `state` comes last, so a kill only repeats this."""
        if not self.revised:
            return
        texts = {
            "image_key": [row.key for row in self.revised],
            "captions": [row.captions for row in self.revised],
            "caption_origins": [row.caption_origins for row in self.revised],
            "caption_weights": [row.caption_weights for row in self.revised],
        }
        names = {name: LATENTS.field(name).type for name in texts}
        self.store.latents.revise(pa.table(texts, schema=pa.schema(names.items())), "image_key")
        texts["key"] = texts.pop("image_key")
        texts |= {"licence": [row.licence for row in self.revised], "state": [row.state for row in self.revised]}
        names = {name: IMAGES.field(name).type for name in texts}
        self.store.images.revise(pa.table(texts, schema=pa.schema(names.items())), "key")


def split(image_hash: str, validation_fraction: float) -> Split:
    """A pure function of the content, so that growing the data never moves an image between the splits."""
    return "validation" if int(image_hash[-13:], 16) < validation_fraction * 16**13 else "train"


def _name(candidate: Candidate) -> str:
    return f"{candidate.source}/{candidate.source_id}"


def _unusable(candidate: Candidate) -> Dropped | None:
    if candidate.problem is not None:
        return candidate.problem
    return None if candidate.captions else Dropped("no caption")


def _groups(candidates: Iterable[Candidate]) -> Iterator[Sequence[Candidate]]:
    iterator = iter(candidates)
    while group := tuple(itertools.islice(iterator, GROUP)):
        yield group


def _leaves(rules: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in rules.items():
        if isinstance(value, dict):
            found |= _leaves(cast("dict[str, object]", value), f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _encoded(path: Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _examined(row: dict[str, object], filters: Filters, transform: Transform) -> dict[str, object]:
    color = record.parse_color(cast(str, row["background"]))
    return _packed(examine(_source(row), color, filters, transform))


def _source(row: dict[str, object]) -> bytes | tuple[Path, Path]:
    if row["data"] is not None:
        return cast(bytes, row["data"])
    return Path(os.fsdecode(cast(bytes, row["path"]))), Path(os.fsdecode(cast(bytes, row["root"])))


def _packed(verdict: Examined | Refused) -> dict[str, object]:
    blank: dict[str, object] = {name: None for name in _OUTPUT.names}
    if isinstance(verdict, Refused):
        dropped = verdict.dropped
        return blank | {
            "reason": dropped.reason, "detail": dropped.detail,
            "image_hash": verdict.image_hash, "thumbnail": verdict.thumbnail,
        }  # fmt: skip
    plan, measures = verdict.plan, verdict.measures
    return blank | {
        "image_hash": verdict.image_hash, "thumbnail": verdict.thumbnail, "data": verdict.data,
        "transparent": verdict.transparent, "luminance": measures.luminance, "dhash": measures.dhash,
        "thumbprint": measures.thumbprint, "plan": [*plan.original, *plan.resized, *plan.crop, *plan.target],
    }  # fmt: skip


def _unpacked(row: dict[str, object]) -> Examined | Refused:
    thumbnail = cast("bytes | None", row["thumbnail"])
    if row["reason"] is not None:
        dropped = Dropped(cast(str, row["reason"]), cast(str, row["detail"]))
        return Refused(dropped, cast("str | None", row["image_hash"]), thumbnail)
    numbers = cast("list[int]", row["plan"])
    plan = Plan(Size(*numbers[0:2]), Size(*numbers[2:4]), Crop(*numbers[4:6]), Size(*numbers[6:8]))
    measures = Measures(cast(float, row["luminance"]), cast(str, row["dhash"]), cast(bytes, row["thumbprint"]))
    return Examined(
        cast(bytes, row["data"]),
        cast(str, row["image_hash"]),
        bool(row["transparent"]),
        measures,
        plan,
        thumbnail or b"",
    )
