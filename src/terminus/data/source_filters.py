"""Decisions on what a source says of an image, before its file is read or downloaded."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from terminus.data import filters, geometry
from terminus.data.caption import Caption
from terminus.data.filters import CaptionRules, Filters, Score
from terminus.data.geometry import Transform
from terminus.data.record import Candidate, SourceMetadata
from terminus.images import Dropped

LATIN_SHARE = 0.9


def judged(candidate: Candidate, rules: Filters, transform: Transform) -> Candidate | Dropped:
    """The candidate with the captions that may be used, or why it is dropped."""
    if candidate.problem is not None:
        return candidate.problem
    captions = _captions(candidate.captions, rules.captions)
    if isinstance(captions, Dropped):
        return captions
    dropped = _tags(candidate.metadata, rules) or _scores(candidate.metadata, rules)
    if candidate.remote:
        dropped = dropped or _size(candidate.metadata, rules, transform)
    return dropped or replace(candidate, captions=captions)


def source_scores(metadata: SourceMetadata) -> dict[Score, float]:
    """The scores that the source gives."""
    values: dict[Score, float | None] = {
        "watermark": metadata.watermark,
        "unsafe": metadata.unsafe,
        "aesthetic": metadata.aesthetic,
        "similarity": metadata.similarity,
    }
    return {name: value for name, value in values.items() if value is not None}


def caption_allowed(text: str, rules: CaptionRules) -> Dropped | None:
    """Whether one caption may be used."""
    if len(text.split()) < rules.min_words:
        return Dropped("caption too short", f"fewer than {rules.min_words} words")
    if len(text) > rules.max_characters:
        return Dropped("caption too long", f"{len(text)} characters, the limit is {rules.max_characters}")
    if rules.script == "latin" and not _latin(text):
        return Dropped("caption in another script", f"fewer than {LATIN_SHARE:.0%} of the letters are Latin")
    folded = _folded(text)
    for forbidden in rules.forbidden:
        if _folded(forbidden) in folded:
            return Dropped("forbidden text in the caption", forbidden)
    return None


def _captions(captions: tuple[Caption, ...], rules: CaptionRules) -> tuple[Caption, ...] | Dropped:
    """Those that pass; if none does, what is wrong with the first."""
    if not captions:
        return Dropped("no caption")
    faults = [caption_allowed(one.text, rules) for one in captions]
    passed = tuple(one for one, fault in zip(captions, faults, strict=True) if fault is None)
    return passed or next(fault for fault in faults if fault is not None)


def _tags(metadata: SourceMetadata, rules: Filters) -> Dropped | None:
    tags = {_folded(tag) for tag in metadata.tags}
    if excluded := [tag for tag in rules.exclude_tags if _folded(tag) in tags]:
        return Dropped("excluded tag", excluded[0])
    if rules.require_tags and tags.isdisjoint(_folded(tag) for tag in rules.require_tags):
        return Dropped("no required tag", f"none of {', '.join(rules.require_tags)}")
    return None


def _scores(metadata: SourceMetadata, rules: Filters) -> Dropped | None:
    given = source_scores(metadata)
    if dropped := filters.scores(given, rules):
        return dropped
    if rules.unscored == "keep":
        return None
    # A limit on a score that nobody gives; what a classifier will still give is no fault yet.
    to_come = {classifier.score for classifier in rules.classifiers}
    missing = [name for name in filters.limited_scores(rules) if name not in given and name not in to_come]
    return Dropped(f"no {missing[0]} score", "the source gives none") if missing else None


def _size(metadata: SourceMetadata, rules: Filters, transform: Transform) -> Dropped | None:
    """The size limits, for downloads alone: a file that is there is looked at instead."""
    if metadata.size is None:
        return None
    dropped = filters.shape(metadata.size, rules)
    if (
        dropped is None
        and geometry.nearest_bucket(metadata.size, geometry.buckets(transform.resolution, transform.step)) is None
    ):
        dropped = Dropped("smaller than its bucket", f"{metadata.size.width}x{metadata.size.height}")
    return dropped and Dropped(dropped.reason, f"{dropped.detail}; by the source's account, not downloaded")


def _latin(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    latin = sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)
    return latin >= LATIN_SHARE * len(letters)


def _folded(text: str) -> str:
    """Compatible forms and cases of letters made alike."""
    return unicodedata.normalize("NFKC", text).casefold()
