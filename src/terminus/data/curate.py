"""The first stage of preparation: candidates become rows of `images`, or rows of `rejected` with a reason.

Append-only and idempotent. Candidates are judged in the order of their sources, whatever was killed or
added in between, so an interrupted preparation that is repeated ends like an undisturbed one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pyarrow as pa

from terminus.data import claims, record
from terminus.data.addresses import Address, is_global
from terminus.data.blocklist import Blocklist
from terminus.data.download import MAY_PASS
from terminus.data.duplicates import Twin
from terminus.data.examine import Examined, Refused
from terminus.data.known import KEPT, Known, room_for_scratch
from terminus.data.record import Candidate, ImageRow, Rejection, Split
from terminus.data.settings import DataConfig
from terminus.data.store import IMAGES, LATENTS, Store
from terminus.data.worker import Worker
from terminus.errors import UserError
from terminus.pictures import Dropped

GROUP = 2048
"""Candidates that are judged together."""
DOWNLOADED_GROUP = 1024
"""Of them, such as are downloaded: the bytes of a group may all wait for its slowest host."""
GROUP_BYTES = 128 << 20
"""A group is cut short when its candidates carry this many bytes."""
COMMIT_BYTES = 256 << 20
"""A commit comes earlier when this much image data waits for it."""
UNWRITTEN = 20_000
"""Rejections that wait in memory, at most, for the first image that is kept."""


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
    sources: dict[str, Counter[str]] = field(default_factory=dict[str, "Counter[str]"])
    """By source: how many were dropped for each reason, and under `KEPT` how many were kept."""

    def drop(self, candidate: Candidate, reason: str) -> None:
        """One more is dropped."""
        self.dropped[reason] += 1
        self.sources[candidate.source][reason] += 1


def curate(
    data: DataConfig, store: Store, advance: Callable[[int], None], allow: Callable[[Address], bool] = is_global
) -> Curated:
    """Judges every candidate of every source that has not been judged in its present state.

    `allow` says which addresses may be downloaded from. Raises `UserError` and writes nothing if nothing can be used.
    """
    check_rules(data, store)
    if data.filters.classifiers:
        from terminus.data import classify

        for classifier in data.filters.classifiers:
            classify.check(classifier)
    with room_for_scratch():
        curation = _Curation(data, store, allow)
        for source in data.sources:
            curation.counts.sources[source.name] = Counter()
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

    def __init__(self, data: DataConfig, store: Store, allow: Callable[[Address], bool]) -> None:
        self.data, self.store, self.transform = data, store, data.transform
        self.spec = self.transform.spec
        self.counts = Curated()
        self.worker = Worker(data.filters, self.transform, data.background_color, data.download, allow)
        self.blocked = Blocklist(data.filters.blocklists)
        self.known = Known(near=data.filters.duplicates == "near")
        self.known.recall(store, self.spec)
        self.images: list[ImageRow] = []
        self.rejected: list[Rejection] = []
        self.revised: list[ImageRow] = []
        self.waiting_bytes = 0

    def judge(self, group: Sequence[Candidate], advance: Callable[[int], None]) -> None:
        """Decides on each of the group in order, and commits."""
        states = [candidate.state(self.data.background_color) for candidate in group]
        triaged = [self._triage(candidate, state) for candidate, state in zip(group, states, strict=True)]
        verdicts = self.worker.look([found for found in triaged if isinstance(found, Candidate)])
        for candidate, state, found in zip(group, states, triaged, strict=True):
            self.counts.candidates += 1
            if found == KEPT:
                self.counts.unchanged += 1
                self.counts.sources[candidate.source][KEPT] += 1
            elif isinstance(found, str):
                self.counts.drop(candidate, found)
            elif isinstance(found, Dropped):
                self._refuse(candidate, state, Refused(found))
            else:
                self._decide(found, state, next(verdicts))
            advance(1)
        self._commit()

    def finish(self) -> None:
        """An error if the sources gave nothing at all to train on."""
        if self.counts.added or self.counts.unchanged:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.dropped.most_common())
        written = "what was dropped is listed in the store" if self.store.rejected.latest() else "nothing was written"
        raise UserError(
            f"none of {self.counts.candidates} candidates can be used ({reasons})"
            if self.counts.candidates
            else "the sources hold no images",
            where=f"data.sources ({', '.join(source.name for source in self.data.sources)})",
            rule="An image needs a caption, must decode, and must pass data.filters",
            fix=f"Correct the sources or the filters; {written}.",
        )

    def _triage(self, candidate: Candidate, state: str) -> Candidate | Dropped | str:
        """What is known without looking: an earlier verdict, a reason to drop it, or the candidate to look at."""
        if not self.known.meet(candidate):
            return "offered twice"
        verdict = self.known.verdict(candidate, state)
        if verdict is not None and verdict not in MAY_PASS:
            return verdict
        if candidate.url is not None and (listed := self.blocked.address(candidate.url)):
            return listed
        return claims.judged(candidate, self.data.filters, self.transform)

    def _decide(self, candidate: Candidate, state: str, verdict: Examined | Refused) -> None:
        if isinstance(verdict, Refused):
            self._refuse(candidate, state, verdict)
            return
        background = None
        if verdict.transparent:
            background = record.hex_color(candidate.background or self.data.background_color)
        key = record.image_key(verdict.image_hash, background, self.spec)
        name = f"{candidate.source}/{candidate.source_id}"
        measures = verdict.measures
        twin = self.known.same(key)
        if twin is not None and twin.name == name:
            self.counts.unchanged += 1
            self.counts.revised += 1
            self.counts.sources[candidate.source][KEPT] += 1
            self.revised.append(replace(self._image_row(candidate, state, verdict, key, background), data=b""))
            return
        dropped = self.blocked.content(verdict.image_hash, verdict.seen.md5, measures.dhash)
        if dropped is None and twin is not None:
            dropped = Dropped("exact duplicate", f"of {twin.name}")
        elif dropped is None and not candidate.near_duplicates and (twin := self.known.alike(measures)):
            dropped = Dropped("near duplicate", f"of {twin.name}")
        if dropped is not None:
            self._refuse(candidate, state, Refused(dropped, verdict.seen), twin)
            return
        self.known.keep(Twin(key, name), measures)
        self.counts.added += 1
        self.counts.sources[candidate.source][KEPT] += 1
        self.images.append(self._image_row(candidate, state, verdict, key, background))
        self.waiting_bytes += len(verdict.data)
        if self.waiting_bytes > COMMIT_BYTES:
            self._commit()

    def _image_row(
        self, candidate: Candidate, state: str, verdict: Examined, key: str, background: str | None
    ) -> ImageRow:
        measures, scores = verdict.measures, verdict.seen.scores | claims.said_scores(candidate.said)
        return ImageRow(
            key=key,
            image_hash=verdict.image_hash,
            source=candidate.source,
            source_id=candidate.source_id,
            split=candidate.split or split(verdict.image_hash, self.data.validation_fraction),
            captions=tuple(caption.text for caption in candidate.captions),
            caption_origins=tuple(caption.origin for caption in candidate.captions),
            data=verdict.data,
            background=background,
            plan=verdict.plan,
            luminance=measures.luminance,
            dhash=measures.dhash,
            thumbprint=measures.thumbprint,
            licence=candidate.licence,
            state=state,
            transform=self.spec,
            rules=self.data.rules,
            caption_weights=tuple(caption.weight for caption in candidate.captions),
            url=candidate.url,
            **scores,
            tags=candidate.said.tags,
            camera=measures.camera,
            mask=candidate.mask,
        )

    def _refuse(self, candidate: Candidate, state: str, refused: Refused, twin: Twin | None = None) -> None:
        """Counts it, and writes it down unless an earlier run has, for the same reason."""
        seen, reason = refused.seen, refused.dropped.reason
        self.counts.drop(candidate, reason)
        if self.known.verdict(candidate, state) == reason:
            return
        size = seen.size or candidate.said.size
        self.rejected.append(
            Rejection(
                source=candidate.source,
                source_id=candidate.source_id,
                image_hash=seen.image_hash,
                state=state,
                transform=self.spec,
                rules=self.data.rules,
                reason=reason,
                detail=refused.dropped.detail,
                thumbnail=seen.thumbnail,
                twin=twin.key if twin else None,
                url=candidate.url,
                licence=candidate.licence,
                original_height=size.height if size else None,
                original_width=size.width if size else None,
                luminance=seen.measures.luminance if seen.measures else None,
                **(seen.scores | claims.said_scores(candidate.said)),
            )
        )

    def _commit(self) -> None:
        """Images first: a kill between the two commits costs only the judging of the rejected again."""
        if not (self.counts.added or self.counts.unchanged) and len(self.rejected) < UNWRITTEN:
            return  # nothing should be written before there is something to train on
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


def _groups(candidates: Iterable[Candidate]) -> Iterator[Sequence[Candidate]]:
    """In order; none holds more than a bounded number of candidates, downloads and bytes."""
    group: list[Candidate] = []
    downloads = weight = 0
    for candidate in candidates:
        group.append(candidate)
        downloads += candidate.url is not None
        weight += len(candidate.data or b"") + len(candidate.mask or b"")
        if len(group) >= GROUP or downloads >= DOWNLOADED_GROUP or weight >= GROUP_BYTES:
            yield group
            group, downloads, weight = [], 0, 0
    if group:
        yield group


def _leaves(rules: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in rules.items():
        if isinstance(value, dict):
            found |= _leaves(cast("dict[str, object]", value), f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
