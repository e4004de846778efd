"""The work on candidates, wherever it runs: download what is to be downloaded, and examine.

Candidates and verdicts cross the border to the engine as rows of Arrow columns; nobody else knows these.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import pyarrow as pa

from terminus.conditioning import Crop, Size
from terminus.data import engine, record, source_filters
from terminus.data.engine import Errand, Row
from terminus.data.examine import Examined, ImageVerdict, Refused, Seen, examine_image
from terminus.data.fetch.addresses import Address, is_global
from terminus.data.fetch.download import DEFERRED, Budget, Downloaded, DownloadRequest, Policy, fetch_many
from terminus.data.filters import Filters, Measures, Score
from terminus.data.geometry import CropPlan, Transform
from terminus.data.record import Candidate, LargeBytes
from terminus.data.schema import columns_of, read_row, row_schema
from terminus.images import Color, Dropped, parse_color

URLS_PER_CALL = 16
"""Few, since the bytes of all of a call are held until its slowest is there; several share one TLS context."""
DOWNLOADED_BYTES = 128 << 20
"""Of the files that one call of `look` downloads (or one file, where that may be larger)."""
READY = 4
"""Downloads that are asked for, for each that the policy lets run: what waits for its turn costs nothing."""

_SCORES: tuple[Score, ...] = ("watermark", "unsafe", "aesthetic", "similarity")
Double = Annotated[float, pa.float64()]


@dataclass(frozen=True)
class _Asked:
    """A row of what the engine gets: one candidate."""

    data: LargeBytes | None
    path: bytes | None
    root: bytes | None
    background: str
    url: str | None
    """Set where the file is to be downloaded."""
    checksum: str | None
    mask: LargeBytes | None
    watermark: Double | None = None
    unsafe: Double | None = None
    aesthetic: Double | None = None
    similarity: Double | None = None


@dataclass(frozen=True)
class _Fetched:
    """A row of what the errand returns: the downloaded file, why there is none, or nothing for what has no URL."""

    fetched_data: LargeBytes | None = None
    lost: str | None = None
    lost_detail: str | None = None


@dataclass(frozen=True)
class _Verdict:
    """A row of what the engine returns. `reason` and `detail` are set for what is dropped, and `data`, `transparent`
    and `plan` for what may be kept."""

    reason: str | None = None
    detail: str | None = None
    image_hash: str | None = None
    md5: str | None = None
    size: tuple[int, ...] = ()
    """(height, width); empty where nothing was decoded."""
    thumbnail: bytes | None = None
    luminance: Double | None = None
    """Set together with `dhash`, `thumbprint` and `camera`: the measures."""
    dhash: str | None = None
    thumbprint: bytes | None = None
    camera: bool | None = None
    watermark: Double | None = None
    unsafe: Double | None = None
    aesthetic: Double | None = None
    similarity: Double | None = None
    data: LargeBytes | None = None
    transparent: bool | None = None
    plan: tuple[int, ...] = ()
    """The eight numbers of a `CropPlan`."""


_INPUT, _FETCHED, _OUTPUT = row_schema(_Asked), row_schema(_Fetched), row_schema(_Verdict)


@dataclass(frozen=True)
class Worker:
    """The way in which all candidates of one preparation are looked at."""

    filters: Filters
    transform: Transform
    background: Color
    policy: Policy
    allow: Callable[[Address], bool] = is_global
    """Which addresses downloads may connect to."""

    def look(self, candidates: Sequence[Candidate]) -> Iterator[Examined | Refused]:
        """The verdict on each, in order, as they become ready.

        A refusal for `DEFERRED` is none: the files downloaded for others fill the memory, and it is to be looked at
        again. Of a single candidate it never is.
        """
        if not candidates:
            return
        engine.require_readable({candidate.root for candidate in candidates if candidate.root is not None})
        columns = _columns(candidates, self.background)
        # Downloads, if there are any, come before the examination; their calls share a budget of bytes.
        errand = None
        if any(candidate.remote for candidate in candidates):
            calls = max(1, READY * self.policy.concurrency // URLS_PER_CALL)
            limit = self.filters.max_file_bytes
            budget = Budget(uuid.uuid4().hex, max(DOWNLOADED_BYTES, limit))
            fetch = partial(_fetched, limit=limit, policy=self.policy, allow=self.allow, budget=budget)
            errand = Errand(fetch, _FETCHED, URLS_PER_CALL, calls)
        task = partial(_examined, filters=self.filters, transform=self.transform)
        for row in engine.run(columns, _INPUT, task, _OUTPUT, errand):
            yield _unpacked(read_row(_Verdict, row))


def deferred(verdict: Examined | Refused) -> bool:
    """Whether the candidate has to be looked at again."""
    return isinstance(verdict, Refused) and verdict.dropped.reason == DEFERRED


def _columns(candidates: Sequence[Candidate], background: Color) -> dict[str, list[object]]:
    rows = [columns_of(_asked(candidate, background)) for candidate in candidates]
    return {name: [row[name] for row in rows] for name in _INPUT.names}


def _asked(candidate: Candidate, background: Color) -> _Asked:
    return _Asked(
        data=candidate.data,
        path=_encoded(candidate.path),
        root=_encoded(candidate.root),
        background=record.hex_color(candidate.background or background),
        url=candidate.url if candidate.remote else None,
        checksum=candidate.checksum,
        mask=candidate.mask,
        **source_filters.source_scores(candidate.metadata),
    )


def _encoded(path: Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _fetched(
    rows: list[Row], limit: int, policy: Policy, allow: Callable[[Address], bool], budget: Budget
) -> list[Row]:
    """Rows without a URL are passed over."""
    asked = [read_row(_Asked, row) for row in rows]
    requests = [DownloadRequest(one.url, one.checksum, limit) for one in asked if one.url is not None]
    answers = iter(fetch_many(requests, policy, allow, budget))
    return [columns_of(_Fetched() if one.url is None else _answer(next(answers))) for one in asked]


def _answer(found: Downloaded | Dropped) -> _Fetched:
    if isinstance(found, Dropped):
        return _Fetched(lost=found.reason, lost_detail=found.detail)
    return _Fetched(fetched_data=found.data)


def _examined(row: Row, filters: Filters, transform: Transform) -> Row:
    asked = read_row(_Asked, row)
    fetched = read_row(_Fetched, row) if "lost" in row else _Fetched()
    if fetched.lost is not None:
        return columns_of(_packed(Refused(Dropped(fetched.lost, fetched.lost_detail or ""))))
    file = asked.data if fetched.fetched_data is None else fetched.fetched_data
    if file is None:
        assert asked.path is not None
        assert asked.root is not None
        file = Path(os.fsdecode(asked.path)), Path(os.fsdecode(asked.root))
    subject = ImageVerdict(file, parse_color(asked.background), asked.checksum, asked.mask, _scores(asked))
    return columns_of(_packed(examine_image(subject, filters, transform)))


def _scores(row: _Asked | _Verdict) -> dict[Score, float]:
    found: dict[Score, float] = {}
    for name in _SCORES:
        value: float | None = getattr(row, name)
        if value is not None:
            found[name] = value
    return found


def _packed(verdict: Examined | Refused) -> _Verdict:
    seen = verdict.seen
    row = _Verdict(image_hash=seen.image_hash, md5=seen.md5, thumbnail=seen.thumbnail, **seen.scores)
    if seen.size:
        row = replace(row, size=tuple(seen.size))
    if measures := seen.measures:
        row = replace(row, luminance=measures.luminance, dhash=measures.dhash)
        row = replace(row, thumbprint=measures.thumbprint, camera=measures.camera)
    if isinstance(verdict, Refused):
        return replace(row, reason=verdict.dropped.reason, detail=verdict.dropped.detail)
    plan = verdict.plan
    numbers = (*plan.original, *plan.resized, *plan.crop, *plan.target)
    return replace(row, data=verdict.data, transparent=verdict.transparent, plan=numbers)


def _unpacked(row: _Verdict) -> Examined | Refused:
    measures = None
    if row.dhash is not None:
        assert row.luminance is not None
        assert row.thumbprint is not None
        measures = Measures(row.luminance, row.dhash, row.thumbprint, bool(row.camera))
    size = Size(*row.size) if row.size else None
    seen = Seen(row.image_hash, row.md5, size, measures, _scores(row), row.thumbnail)
    if row.reason is not None:
        return Refused(Dropped(row.reason, row.detail or ""), seen)
    numbers = row.plan
    plan = CropPlan(Size(*numbers[0:2]), Size(*numbers[2:4]), Crop(*numbers[4:6]), Size(*numbers[6:8]))
    assert measures is not None
    assert seen.image_hash is not None
    assert row.data is not None
    return Examined(row.data, bool(row.transparent), plan, seen.image_hash, measures, seen)
