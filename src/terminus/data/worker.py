"""What workers do with candidates, wherever they run: download what is to be downloaded, and examine.

Candidates and verdicts cross the border to the engine as rows of Arrow columns; nobody else knows these.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pyarrow as pa

from terminus.conditioning import Crop, Size
from terminus.data import engine, record, source_filters
from terminus.data.engine import Errand, Row
from terminus.data.examine import Examined, ImageVerdict, Refused, Seen, examine_image
from terminus.data.fetch.addresses import Address, is_global
from terminus.data.fetch.download import DEFERRED, Budget, Downloaded, DownloadRequest, Policy, fetch_many
from terminus.data.filters import Filters, Measures, Score
from terminus.data.geometry import CropPlan, Transform
from terminus.data.record import Candidate
from terminus.images import Color, Dropped

URLS_PER_CALL = 16
"""Few, since the bytes of all of a call are held until its slowest is there; several share one TLS context."""
DOWNLOADED_BYTES = 128 << 20
"""Of the files that one call of `look` downloads (or one file, where that may be larger)."""
READY = 4
"""Downloads that are asked for, for each that the policy lets run: what waits for its turn costs nothing."""

_SCORES: tuple[Score, ...] = ("watermark", "unsafe", "aesthetic", "similarity")
_INPUT = pa.schema([
    ("data", pa.large_binary()), ("path", pa.binary()), ("root", pa.binary()), ("background", pa.string()),
    ("url", pa.string()), ("checksum", pa.string()), ("mask", pa.large_binary()),
    *((name, pa.float64()) for name in _SCORES),
])  # fmt: skip
_FETCHED = pa.schema([("fetched_data", pa.large_binary()), ("lost", pa.string()), ("lost_detail", pa.string())])
_OUTPUT = pa.schema([
    ("reason", pa.string()), ("detail", pa.string()), ("image_hash", pa.string()), ("md5", pa.string()),
    ("size", pa.list_(pa.int32())), ("thumbnail", pa.binary()), ("luminance", pa.float64()), ("dhash", pa.string()),
    ("thumbprint", pa.binary()), ("camera", pa.bool_()), *((name, pa.float64()) for name in _SCORES),
    ("data", pa.large_binary()), ("transparent", pa.bool_()), ("plan", pa.list_(pa.int32())),
])  # fmt: skip


@dataclass(frozen=True)
class Worker:
    """How all candidates of one preparation are looked at."""

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
            yield _unpacked(row)


def deferred(verdict: Examined | Refused) -> bool:
    """Whether the candidate has to be looked at again."""
    return isinstance(verdict, Refused) and verdict.dropped.reason == DEFERRED


def _columns(candidates: Sequence[Candidate], background: Color) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {
        "data": [candidate.data for candidate in candidates],
        "path": [_encoded(candidate.path) for candidate in candidates],
        "root": [_encoded(candidate.root) for candidate in candidates],
        "background": [record.hex_color(candidate.background or background) for candidate in candidates],
        "url": [candidate.url if candidate.remote else None for candidate in candidates],
        "checksum": [candidate.checksum for candidate in candidates],
        "mask": [candidate.mask for candidate in candidates],
    }
    given = [source_filters.source_scores(candidate.metadata) for candidate in candidates]
    for name in _SCORES:
        columns[name] = [scores.get(name) for scores in given]
    return columns


def _encoded(path: Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def _fetched(
    rows: list[Row], limit: int, policy: Policy, allow: Callable[[Address], bool], budget: Budget
) -> list[Row]:
    """Rows without a URL are passed over."""
    asked = [row for row in rows if row["url"] is not None]
    requests = [DownloadRequest(cast(str, row["url"]), cast("str | None", row["checksum"]), limit) for row in asked]
    answers = iter(fetch_many(requests, policy, allow, budget))
    return [_answer(None if row["url"] is None else next(answers)) for row in rows]


def _answer(found: Downloaded | Dropped | None) -> Row:
    if isinstance(found, Dropped):
        return {"fetched_data": None, "lost": found.reason, "lost_detail": found.detail}
    return {"fetched_data": found.data if found else None, "lost": None, "lost_detail": None}


def _examined(row: Row, filters: Filters, transform: Transform) -> Row:
    if row.get("lost") is not None:
        return _packed(Refused(Dropped(cast(str, row["lost"]), cast(str, row["lost_detail"]))))
    # The file: downloaded, brought by the source, or a path that is read here.
    if row.get("fetched_data") is not None:
        file = cast(bytes, row["fetched_data"])
    elif row["data"] is not None:
        file = cast(bytes, row["data"])
    else:
        file = Path(os.fsdecode(cast(bytes, row["path"]))), Path(os.fsdecode(cast(bytes, row["root"])))
    subject = ImageVerdict(
        file,
        record.parse_color(cast(str, row["background"])),
        cast("str | None", row["checksum"]),
        cast("bytes | None", row["mask"]),
        _scores(row),
    )
    return _packed(examine_image(subject, filters, transform))


def _scores(row: Row) -> dict[Score, float]:
    return {name: cast(float, row[name]) for name in _SCORES if row[name] is not None}


def _packed(verdict: Examined | Refused) -> Row:
    seen, row = verdict.seen, cast(Row, dict.fromkeys(_OUTPUT.names))
    row |= {
        "image_hash": seen.image_hash,
        "md5": seen.md5,
        "thumbnail": seen.thumbnail,
        "size": seen.size,
        **seen.scores,
    }
    if measures := seen.measures:
        row |= {"luminance": measures.luminance, "dhash": measures.dhash}
        row |= {"thumbprint": measures.thumbprint, "camera": measures.camera}
    if isinstance(verdict, Refused):
        return row | {"reason": verdict.dropped.reason, "detail": verdict.dropped.detail}
    plan = verdict.plan
    numbers = [*plan.original, *plan.resized, *plan.crop, *plan.target]
    return row | {"data": verdict.data, "transparent": verdict.transparent, "plan": numbers}


def _unpacked(row: Row) -> Examined | Refused:
    measures, size = None, cast("list[int] | None", row["size"])
    if row["dhash"] is not None:
        parts = row["luminance"], row["dhash"], row["thumbprint"], row["camera"]
        measures = Measures(*cast("tuple[float, str, bytes, bool]", parts))
    seen = Seen(
        cast("str | None", row["image_hash"]),
        cast("str | None", row["md5"]),
        Size(*size) if size else None,
        measures,
        _scores(row),
        cast("bytes | None", row["thumbnail"]),
    )
    # Refused: nothing below is set.
    if row["reason"] is not None:
        return Refused(Dropped(cast(str, row["reason"]), cast(str, row["detail"])), seen)
    numbers = cast("list[int]", row["plan"])
    plan = CropPlan(Size(*numbers[0:2]), Size(*numbers[2:4]), Crop(*numbers[4:6]), Size(*numbers[6:8]))
    assert measures is not None
    assert seen.image_hash is not None
    return Examined(cast(bytes, row["data"]), bool(row["transparent"]), plan, seen.image_hash, measures, seen)
