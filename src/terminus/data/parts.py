"""Archives and tables that were judged to their end: unchanged ones are not fetched again.

What became of their candidates is written down with them, so that the books of a run that skips them still balance.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from terminus.data.blocklist import Blocklist
from terminus.data.fetch.download import MAY_PASS
from terminus.data.record import PartRow, SourcePart
from terminus.data.settings import DataConfig, Source
from terminus.data.store import Store, quoted

UNSETTLED = MAY_PASS | {
    "archive cannot be read", "damaged archive", "truncated archive", "table cannot be read", "cannot be read",
}  # fmt: skip
"""Reasons that another reading may not give: a part with any of them is read again."""
_IDENTITY = ("source", "part", "stamp", "transform", "rules")


class SourceParts:
    """The verdicts on the parts of all sources, under one transform."""

    def __init__(self, data: DataConfig, store: Store, blocked: Blocklist) -> None:
        self.transform = data.transform.spec
        self.rules = {source.name: _rules(source, data.rules, blocked.digest) for source in data.sources}
        self.judged: dict[bytes, Counter[str]] = {}
        # What earlier runs judged to the end; a later row of the same part replaces an earlier one.
        if view := store.parts.latest():
            for batch in view.batches([*_IDENTITY, "reasons", "counts"], f"transform = {quoted(self.transform)}", 8192):
                for row in batch.to_pylist():
                    counts = Counter(dict(zip(row["reasons"], row["counts"], strict=True)))
                    self.judged[_id(*(row[name] for name in _IDENTITY))] = counts

    def find(self, source: Source, part: SourcePart) -> Counter[str] | None:
        """How many of its candidates were dropped for each reason or, under "", kept; None if it must be read."""
        if not part.stamp:
            return None
        return self.judged.get(_id(source.name, part.id, part.stamp, self.transform, self.rules[source.name]))

    def row(self, source: Source, part: SourcePart, counts: Mapping[str, int]) -> PartRow | None:
        """To be written once all of its candidates are; None if it must be read again."""
        if not part.stamp or UNSETTLED & counts.keys():
            return None
        rules = self.rules[source.name]
        return PartRow(source.name, part.id, part.stamp, self.transform, rules, tuple(counts), tuple(counts.values()))


def _rules(source: Source, rules: str, blocked: str) -> str:
    return hashlib.sha256("\x1f".join((source.model_dump_json(), rules, blocked)).encode()).hexdigest()[:32]


def _id(*parts: str) -> bytes:
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).digest()
