"""The embedded data set is what its page says: complete, small, licensed, and the same every time."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from terminus.data import emoji
from terminus.errors import UserError

ASSETS = files("terminus") / "assets" / "emoji"
EVERYTHING = ("3d", "flat")


def pixels(drawing: emoji.Emoji) -> np.ndarray:
    with Image.open(io.BytesIO(emoji.rgba(drawing))) as image:
        assert image.format == "WEBP"
        assert image.mode == "RGBA"
        return np.asarray(image)


def by_id(key: str) -> emoji.Emoji:
    return next(drawing for drawing in emoji.drawings() if drawing.id == key)


def test_every_drawing_is_a_square_with_something_on_it_and_room_around_it():
    for drawing in emoji.drawings():
        image = pixels(drawing)
        assert image.shape == (128, 128, 4), drawing.id
        covered = (image[..., 3] >= 128).mean()
        assert 0.05 <= covered <= 0.9, f"{drawing.id} covers {covered:.0%}"


def test_no_two_drawings_share_an_id_a_caption_or_their_pixels():
    for values in (
        [drawing.id for drawing in emoji.drawings()],
        [emoji.emoji_caption(drawing, "white") for drawing in emoji.drawings()],
        [hashlib.sha256(emoji.rgba(drawing)).digest() for drawing in emoji.drawings()],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_colour_goes_on_behind_the_edge():
    """Black behind a soft edge would darken it; a red circle is red wherever anything of it shows."""
    image = pixels(by_id("flat/red-circle")).astype(int)
    alpha = image[..., 3]
    rim = image[(alpha > 16) & (alpha < 240)][:, :3]
    assert len(rim) > 100
    assert rim.max(axis=1).min() > 170


def test_counts_and_size_are_those_of_a_data_set_that_ships():
    counts = Counter(drawing.style for drawing in emoji.drawings())
    assert counts["3d"] > 1800
    assert counts["flat"] > 1550
    assert sum(len(path.read_bytes()) for path in ASSETS.iterdir()) <= 12 * 2**20


def test_the_files_are_those_whose_hashes_the_readme_names():
    readme = (ASSETS / "README.md").read_text(encoding="utf-8")
    for name in ("3d.zip", "flat.zip", "index.jsonl"):
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() in readme


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fluent-emoji", "Microsoft Corporation"),
        ("lobehub", "LobeHub"),
        ("unicode-emoji-json", "Mu-An Chiou"),
        ("unicode-cldr", "UNICODE LICENSE V3"),
    ],
)
def test_licences_ship_with_the_drawings(name: str, words: str):
    assert words in (ASSETS / f"LICENSE-{name}").read_text(encoding="utf-8")


def test_a_held_out_name_is_held_out_in_every_style():
    names = {split: {d.name for d in emoji.drawings() if d.split == split} for split in ("train", "validation")}
    assert names["train"].isdisjoint(names["validation"])
    assert 0.03 <= len(names["validation"]) / len(names["train"]) <= 0.05


@pytest.mark.parametrize(
    ("key", "background", "words"),
    [
        ("3d/red-apple", "white", "a 3d render of a red apple on a white background"),
        ("flat/sun", "orange", "a flat drawing of a sun on an orange background"),
        ("3d/grapes", "black", "a 3d render of grapes on a black background"),
        ("3d/flag-france", "black", "a 3d render of the flag of France on a black background"),
        ("3d/flag-united-states", "red", "a 3d render of the flag of the United States on a red background"),
        ("3d/man-bald", "blue", "a 3d render of a bald man on a blue background"),
        ("3d/locked", "gray", "a 3d render of a closed padlock on a gray background"),
        ("3d/unicorn", "pink", "a 3d render of a unicorn on a pink background"),
        ("3d/hourglass-done", "brown", "a 3d render of an hourglass done on a brown background"),
        ("3d/new-button", "green", "a 3d render of a NEW button on a green background"),
        (
            "3d/family-man-man-boy",
            "white",
            "a 3d render of a family of two men and a boy on a white background",
        ),
    ],
)
def test_captions_read_as_english(key: str, background: str, words: str):
    assert emoji.emoji_caption(by_id(key), background) == words


def test_no_caption_keeps_the_notation_of_lists():
    for drawing in emoji.drawings():
        assert set(":()“”’").isdisjoint(drawing.subject), drawing.subject


def test_every_drawing_gets_black_and_white_first():
    backgrounds: dict[str, list[str]] = {}
    for row in emoji.emoji_rows(EVERYTHING, 4, seed=1):
        backgrounds.setdefault(row.drawing.id, []).append(row.background)
        assert row.rgb == emoji.BACKGROUNDS[row.background]
        assert row.background in row.caption
    assert len(backgrounds) == len(emoji.drawings())
    assert all(names[:2] == ["black", "white"] and len(set(names)) == 4 for names in backgrounds.values())
    others = Counter(name for names in backgrounds.values() for name in names[2:])
    expected = 2 * len(backgrounds) / (len(emoji.BACKGROUNDS) - 2)
    assert all(0.85 * expected < others[name] < 1.15 * expected for name in emoji.BACKGROUNDS if name in others)
    assert len(others) == len(emoji.BACKGROUNDS) - 2


def test_rows_are_a_function_of_the_seed():
    first = [row.id for row in emoji.emoji_rows(EVERYTHING, 3, seed=1, limit=200)]
    assert first == [row.id for row in emoji.emoji_rows(EVERYTHING, 3, seed=1, limit=200)]
    other = [row.id for row in emoji.emoji_rows(EVERYTHING, 3, seed=2, limit=200)]
    assert first != other
    assert [key.split("@")[0] for key in first] == [key.split("@")[0] for key in other]


def test_one_background_is_any_of_them():
    assert {row.background for row in emoji.emoji_rows(("3d",), 1, seed=0)} == set(emoji.BACKGROUNDS)


def test_limit_counts_drawings_and_balances_styles_and_grows():
    small = {row.drawing for row in emoji.emoji_rows(EVERYTHING, 2, seed=0, limit=100)}
    assert Counter(drawing.style for drawing in small) == {"3d": 50, "flat": 50}
    assert small < {row.drawing for row in emoji.emoji_rows(EVERYTHING, 2, seed=0, limit=300)}
    groups = {drawing.group for drawing in emoji.drawings()}
    assert {row.drawing.group for row in emoji.emoji_rows(("3d",), 1, seed=0, limit=300)} == groups
    assert sum(1 for _ in emoji.emoji_rows(("flat",), 2, seed=0, limit=10**6)) == 2 * sum(
        drawing.style == "flat" for drawing in emoji.drawings()
    )


def test_groups_and_colors_restrict_the_rows():
    rows = list(emoji.emoji_rows(EVERYTHING, 2, seed=0, colors=("white", "teal"), groups=("Food & Drink",)))
    assert {row.drawing.group for row in rows} == {"Food & Drink"}
    assert {row.background for row in rows} == {"white", "teal"}
    with pytest.raises(UserError, match="no background 'mauve'"):
        next(emoji.emoji_rows(EVERYTHING, 1, seed=0, colors=("mauve",)))
    with pytest.raises(UserError, match="no group 'Food'"):
        next(emoji.emoji_rows(EVERYTHING, 1, seed=0, groups=("Food",)))


@pytest.mark.parametrize(
    ("styles", "count", "limit", "words"),
    [
        (("oil",), 2, None, "oil"),
        ((), 2, None, "No style"),
        (("3d",), 13, None, "12 to choose from"),
        (("3d",), 0, None, "12 to choose from"),
        (("3d",), 2, 0, "limit"),
    ],
)
def test_what_is_not_there_is_a_users_error(styles: tuple[str, ...], count: int, limit: int | None, words: str):
    with pytest.raises(UserError, match=words):
        next(emoji.emoji_rows(styles, count, seed=0, limit=limit))
