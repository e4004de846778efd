"""The embedded drawings as a source: their captions."""

from __future__ import annotations

from terminus.data.sources.embedded import EmbeddedSource


def texts(**settings: object) -> dict[str, list[str]]:
    source = EmbeddedSource(kind="embedded", styles=("3d",), limit=1, colors=("black", "white", "red"), **settings)
    return {one.source_id.split("@")[1]: [caption.text for caption in one.captions] for one in source.candidates(0)}


def test_captions_name_the_background_unless_told_otherwise():
    for color, (text,) in texts().items():
        assert text.endswith(f"on a {color} background")


def test_plain_captions_do_not_and_brightness_is_said_of_what_is_dark_or_bright():
    found = texts(captions=("plain", "brightness"))
    plain = found["red"][0]
    assert plain.startswith("a 3d render of ")
    assert "background" not in plain
    subject = plain.removeprefix("a 3d render of ")
    assert found == {
        "black": [plain, f"a dark image of {subject}"],
        "white": [plain, f"a bright image of {subject}"],
        "red": [plain],
    }
