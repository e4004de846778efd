"""The first stage of preparation: candidates become rows of `images`, or rows of `rejected` with a reason.

Append-only and idempotent. Candidates are judged in the order of their sources, whatever was killed or
added in between, so an interrupted preparation that is repeated ends like an undisturbed one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from terminus.data import allocation, record, source_filters
from terminus.data.blocklist import Blocklist
from terminus.data.duplicates import Twin
from terminus.data.examine import Examined, Refused
from terminus.data.fetch.addresses import Address, is_global
from terminus.data.fetch.download import MAY_PASS
from terminus.data.parts import SourceParts
from terminus.data.record import Candidate, ImageRow, Parted, PartRow, Rejection, SourcePart, Split
from terminus.data.rules import check_rules
from terminus.data.seen_index import KEPT, SeenIndex, room_for_scratch
from terminus.data.settings import DataConfig, Source
from terminus.data.store import IMAGES, LATENTS, Store, quoted
from terminus.data.takedown import take_down
from terminus.data.worker import DOWNLOADED_BYTES, Worker, deferred
from terminus.errors import UserError
from terminus.images import Dropped

GROUP = 2048
"""Candidates that are judged together."""
DOWNLOADED_GROUP = 1024
"""Of them, such as are downloaded: the bytes of a group may all wait for its slowest host."""
GROUP_BYTES = 128 << 20
"""A group is cut short when its candidates carry this many bytes."""
READ_BYTES = 256 << 20
"""The same, of files that are still to be read: photographs on disk must keep many cores busy."""
COMMIT_BYTES = 128 << 20
"""A commit comes earlier when this much image data waits for it."""
SPREAD = 1.25
"""How much larger than those before the files of the next downloads may be on average without being deferred."""
CAPTIONS = ("captions", "caption_origins", "caption_weights")
"""Columns of images and latents that a source may change for an image that stays."""
DESCRIBED = ("licence", "url", "watermark", "unsafe", "aesthetic", "similarity", "tags", "mask", "state")
"""The same, of images alone."""
UNWRITTEN = 20_000
"""Rejections that wait in memory, at most, for the first image that is kept."""


@dataclass
class Curated:
    """Counts of one run's candidates: candidates = added + unchanged + sum of dropped."""

    candidates: int = 0
    added: int = 0
    unchanged: int = 0
    """Kept by an earlier run."""
    revised: int = 0
    """Of the unchanged, those that their source describes otherwise since (captions, scores, mask, licence, ...)."""
    taken_down: int = 0
    """Images that an earlier run kept and that a block-list names since: they are no longer in `images`."""
    crowded: int = 0
    """Images that were compared with only some of those that may look the same (`duplicates.LONGEST`)."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    """By reason, whether judged now or by an earlier run."""
    sources: dict[str, Counter[str]] = field(default_factory=dict[str, "Counter[str]"])
    """By source: how many were dropped for each reason, and under `KEPT` how many were kept."""

    def add(self, source: str, became: Counter[str]) -> None:
        """Adds the counts of a part that an earlier run judged to its end."""
        self.candidates += became.total()
        self.unchanged += became[KEPT]
        self.sources[source] += became
        self.dropped += Counter({reason: count for reason, count in became.items() if reason != KEPT})

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
    allocation.give_back()
    if data.filters.classifiers:
        from terminus.data import classify

        for classifier in data.filters.classifiers:
            classify.check_classifier(classifier)
    with room_for_scratch():
        curation = _Curation(data, store, allow)
        for source in data.sources:
            curation.counts.sources[source.name] = Counter()
            for part in _parts(source, data.seed):
                curation.go_through(source, part, advance)
        curation.finish()
    return curation.counts


class _Triaged(NamedTuple):
    """A candidate, and what is known of it without looking."""

    candidate: Candidate
    state: str
    found: Candidate | Dropped | str
    """What is to be looked at; why it is dropped; or an earlier verdict."""


class _Curation:
    """One run's memory: what is known already, what waits for the next commit, and the counts."""

    def __init__(self, data: DataConfig, store: Store, allow: Callable[[Address], bool]) -> None:
        self.data, self.store, self.transform = data, store, data.transform
        self.spec = self.transform.spec
        self.counts = Curated()
        self.workers = {
            source.name: Worker(
                data.filters_for(source.name), self.transform, data.background_color, data.download, allow
            )
            for source in data.sources
        }
        self.blocked = Blocklist(data.filters.blocklists)
        self.counts.taken_down = take_down(store, self.blocked)
        self.parts = SourceParts(data, store, self.blocked)
        self.known = SeenIndex(near=data.filters.duplicates == "near")
        self.known.recall(store, self.spec, self.blocked)
        self.images: list[ImageRow] = []
        self.rejected: list[Rejection] = []
        self.revised: list[ImageRow] = []
        self.finished: list[PartRow] = []
        self.waiting_bytes = 0
        self.room = DOWNLOADED_GROUP
        """How many downloads are expected to fit into memory together."""

    def go_through(self, source: Source, part: SourcePart, advance: Callable[[int], None]) -> None:
        """Judges what a part of a source offers, unless an earlier run has, and nothing has changed."""
        if (became := self.parts.find(source, part)) is not None:
            self.counts.add(source.name, became)
            advance(became.total())
            return
        before = self.counts.sources[source.name].copy()
        for group in _groups(part.candidates()):
            triaged = deque(self._triaged(candidate) for candidate in group)
            while triaged:
                self._judge(triaged, advance)
                self._commit()
        if row := self.parts.row(source, part, self.counts.sources[source.name] - before):
            self.finished.append(row)
            self._commit()

    def finish(self) -> None:
        """An error if the sources gave nothing at all to train on."""
        self.counts.crowded = self.known.crowded
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

    def _judge(self, triaged: deque[_Triaged], advance: Callable[[int], None]) -> None:
        """Decides on the first of them, in order, and takes them off; as many as fit into memory together."""
        group = _fitting(triaged, self.room)
        looked_at = [one.found for one in group if isinstance(one.found, Candidate)]
        verdicts = self.workers[group[0].candidate.source].look(looked_at)
        begun, cut, sizes = len(triaged), False, list[int]()
        for candidate, state, found in group:
            if isinstance(found, Candidate):
                verdict = next(verdicts)
                if cut := deferred(verdict):
                    break
                if isinstance(verdict, Examined) and found.remote:
                    sizes.append(len(verdict.data))
                self._decide(found, state, verdict)
            elif isinstance(found, Dropped):
                self._refuse(candidate, state, Refused(found))
            elif found == KEPT:
                self.counts.unchanged += 1
                self.counts.sources[candidate.source][KEPT] += 1
            else:
                self.counts.drop(candidate, found)
            self.counts.candidates += 1
            triaged.popleft()
            advance(1)
        for _ in verdicts:
            pass  # files that came too early, without those before them: no others are asked for meanwhile
        # The next downloads: as many as fit by the size of these, twice as many if none came, half if none fitted.
        if sizes:
            self.room = min(DOWNLOADED_GROUP, max(1, int(DOWNLOADED_BYTES / (SPREAD * sum(sizes) / len(sizes)))))
        elif not cut:
            self.room = min(DOWNLOADED_GROUP, 2 * self.room)
        elif len(triaged) == begun:
            self.room = max(1, min(self.room, len(group)) // 2)

    def _triaged(self, candidate: Candidate) -> _Triaged:
        state = candidate.state(self.data.background_color)
        return _Triaged(candidate, state, self._triage(candidate, state))

    def _triage(self, candidate: Candidate, state: str) -> Candidate | Dropped | str:
        """An earlier verdict, a reason to drop it, or the candidate to look at."""
        if not self.known.meet(candidate):
            return "offered twice"
        verdict = self.known.verdict(candidate, state)
        if verdict is not None and verdict not in MAY_PASS:
            return verdict
        if candidate.url is not None and (listed := self.blocked.address(candidate.url)):
            return listed
        return source_filters.judged(candidate, self.data.filters_for(candidate.source), self.transform)

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
        if twin is not None and twin.name == name:  # its pixels are known: what is said of them has changed
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
        self.known.keep(Twin(key, name), measures)  # from now on others are compared with it
        self.counts.added += 1
        self.counts.sources[candidate.source][KEPT] += 1
        self.images.append(self._image_row(candidate, state, verdict, key, background))
        self.waiting_bytes += len(verdict.data)
        if self.waiting_bytes > COMMIT_BYTES:
            self._commit()

    def _image_row(
        self, candidate: Candidate, state: str, verdict: Examined, key: str, background: str | None
    ) -> ImageRow:
        measures, scores = verdict.measures, verdict.seen.scores | source_filters.source_scores(candidate.metadata)
        return ImageRow(
            key=key,
            image_hash=verdict.image_hash,
            source=candidate.source,
            source_id=candidate.source_id,
            split=candidate.split or validation_split(verdict.image_hash, self.data.validation_fraction),
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
            tags=candidate.metadata.tags,
            camera=measures.camera,
            mask=candidate.mask,
        )

    def _refuse(self, candidate: Candidate, state: str, refused: Refused, twin: Twin | None = None) -> None:
        """Counts it, and writes it down unless an earlier run has, for the same reason."""
        seen, reason = refused.seen, refused.dropped.reason
        self.counts.drop(candidate, reason)
        if self.known.verdict(candidate, state) == reason:
            return
        size = seen.size or candidate.metadata.size
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
                **(seen.scores | source_filters.source_scores(candidate.metadata)),
            )
        )

    def _commit(self) -> None:
        """Images first: a kill between the two commits costs only the judging of the rejected again."""
        if not (self.counts.added or self.counts.unchanged) and len(self.rejected) < UNWRITTEN:
            return  # nothing should be written before there is something to train on
        self.store.images.append(self.images)
        self.store.rejected.append(self.rejected)
        self._revise()
        self.store.parts.append(self.finished)
        self.images, self.rejected, self.revised, self.finished, self.waiting_bytes = [], [], [], [], 0

    def _revise(self) -> None:
        """Writes what a source says anew into both tables; the images' `state` comes last, so a kill only repeats this.

        A latent whose image has another mask is deleted, and the second stage makes it anew.
        """
        if not self.revised:
            return
        self.store.latents.delete("image_key", self._remasked())
        texts = {name: [getattr(row, name) for row in self.revised] for name in CAPTIONS}
        keys = [row.key for row in self.revised]
        self.store.latents.revise(_table({"image_key": keys} | texts, LATENTS), "image_key")
        rest = {name: [getattr(row, name) for row in self.revised] for name in DESCRIBED}
        self.store.images.revise(_table({"key": keys} | texts | rest, IMAGES), "key")

    def _remasked(self) -> list[str]:
        """Keys of the revised images that the store has with another mask."""
        masks = {row.key: row.mask for row in self.revised}
        where = f"key IN ({', '.join(quoted(key) for key in masks)})"
        stored = self.store.images.required().batches(["key", "mask"], where, size=64)
        pairs = (pair for batch in stored for pair in zip(*(column.to_pylist() for column in batch), strict=True))
        return [key for key, mask in pairs if mask != masks[key]]


def validation_split(image_hash: str, validation_fraction: float) -> Split:
    """A pure function of the content, so that growing the data never moves an image between the splits."""
    return "validation" if int(image_hash[-13:], 16) < validation_fraction * 16**13 else "train"


def _size(path: Path | None) -> int:
    """Bytes of the file; 0 where that cannot be known."""
    try:
        return 0 if path is None else path.stat().st_size
    except (OSError, ValueError):
        return 0


def _parts(source: Source, seed: int) -> Iterator[SourcePart]:
    """A source without parts is one, which is read every time."""
    return (
        source.parts() if isinstance(source, Parted) else iter([SourcePart("", "", partial(source.candidates, seed))])
    )


def _fitting(triaged: Iterable[_Triaged], room: int) -> list[_Triaged]:
    """The first of them, with at most `room` downloads."""
    group: list[_Triaged] = []
    for one in triaged:
        room -= isinstance(one.found, Candidate) and one.found.remote
        if room < 0:
            break
        group.append(one)
    return group


def _table(columns: Mapping[str, Sequence[object]], schema: pa.Schema) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]
    return pa.table(dict(columns), schema=pa.schema([schema.field(name) for name in columns]))


def _groups(candidates: Iterable[Candidate]) -> Iterator[Sequence[Candidate]]:
    """In order; none holds more than a bounded number of candidates, downloads and bytes."""
    group: list[Candidate] = []
    downloads = carried = read = 0
    for candidate in candidates:
        group.append(candidate)
        downloads += candidate.remote
        carried += len(candidate.data or b"") + len(candidate.mask or b"")
        read += _size(candidate.path)
        full = downloads >= DOWNLOADED_GROUP or carried >= GROUP_BYTES or read >= READ_BYTES
        if full or len(group) >= GROUP:
            yield group
            group, downloads, carried, read = [], 0, 0, 0
    if group:
        yield group
