from __future__ import annotations

from dataclasses import replace

import pytest

from terminus.conditioning import Size
from terminus.data.caption import Caption
from terminus.data.filters import CaptionRules, Classifier, Filters
from terminus.data.geometry import Transform
from terminus.data.record import Candidate, SourceMetadata
from terminus.data.source_filters import caption_allowed, judged
from terminus.images import Dropped

TRANSFORM = Transform(256)
PLAIN = Candidate("source", "1", (Caption("a red apple", "alt"),), url="https://example.org/a.jpg")


def reason(candidate: Candidate, **rules: object) -> str | None:
    found = judged(candidate, Filters.model_validate(rules), TRANSFORM)
    return found.reason if isinstance(found, Dropped) else None


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("a red apple", {"min_words": 3}, None),
        ("red  apple\n", {"min_words": 3}, "caption too short"),
        (" ", {}, "caption too short"),
        ("x" * 10, {"max_characters": 10}, None),
        ("x" * 11, {"max_characters": 10}, "caption too long"),
        ("Ein Apfel für Zoë, 100 % rot 🍎", {"script": "latin"}, None),
        ("красное яблоко", {"script": "latin"}, "caption in another script"),
        ("красное яблоко", {"script": "any"}, None),
        ("a red 苹果", {"script": "latin"}, "caption in another script"),
        ("12 + 30 = 42", {"script": "latin"}, None),
        ("Buy NOW at our ＳＨＯＰ", {"forbidden": ("shop",)}, "forbidden text in the caption"),
        ("a shopping bag", {"forbidden": ("Shop ",)}, None),
    ],
)
def test_caption_rules(text: str, rules: dict[str, object], expected: str | None):
    dropped = caption_allowed(text, CaptionRules.model_validate(rules))
    assert (dropped.reason if dropped else None) == expected


def test_captions_that_break_a_rule_are_left_out_and_the_image_goes_with_the_last():
    several = replace(PLAIN, captions=(Caption("no", "a"), Caption("a red apple", "b"), Caption("x", "c")))
    rules = Filters(captions=CaptionRules(min_words=2))
    kept = judged(several, rules, TRANSFORM)
    assert isinstance(kept, Candidate)
    assert kept.captions == (Caption("a red apple", "b"),)
    assert reason(replace(PLAIN, captions=(Caption("no", "a"),)), captions={"min_words": 2}) == "caption too short"
    assert reason(replace(PLAIN, captions=())) == "no caption"
    assert reason(replace(PLAIN, problem=Dropped("any reason"))) == "any reason"


def test_tags():
    tagged = replace(PLAIN, metadata=SourceMetadata(tags=("Anime", "girl")))
    assert reason(tagged, require_tags=("photo", "anime")) is None
    assert reason(tagged, require_tags=("photo",)) == "no required tag"
    assert reason(PLAIN, require_tags=("photo",)) == "no required tag"
    assert reason(tagged, exclude_tags=("ANIME",)) == "excluded tag"
    assert reason(tagged, require_tags=("anime",), exclude_tags=("girl",)) == "excluded tag"
    assert reason(PLAIN, exclude_tags=("anime",)) is None


def test_an_image_without_a_score_that_is_asked_for():
    scored = replace(PLAIN, metadata=SourceMetadata(watermark=0.2))
    assert reason(scored, max_watermark=0.5) is None
    assert reason(scored, max_watermark=0.1) == "watermark"
    assert reason(PLAIN, max_watermark=0.5) == "no watermark score"
    assert reason(PLAIN, max_watermark=0.5, unscored="keep") is None
    assert reason(scored, max_watermark=0.5, min_aesthetic=5.0) == "no aesthetic score"
    judge = Classifier(score="watermark", model="folder", labels=("mark",))
    assert reason(PLAIN, max_watermark=0.5, classifiers=(judge,)) is None, "the classifier will say"
    assert reason(PLAIN, max_unsafe=0.5, classifiers=(judge,)) == "no unsafe score"


def test_what_is_too_small_by_its_own_account_is_not_downloaded():
    def sized(height: int, width: int) -> Candidate:
        return replace(PLAIN, metadata=SourceMetadata(size=Size(height, width)))

    assert reason(sized(300, 300), min_edge=300) is None
    assert reason(sized(299, 900), min_edge=300) == "edge too short"
    assert reason(sized(300, 1300)) == "too elongated"
    assert reason(sized(255, 400)) == "smaller than its bucket"
    assert reason(replace(sized(10, 10), url=None, data=b"x"), min_edge=300) is None, (
        "a file that is there is looked at"
    )
