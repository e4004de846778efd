"""The embedded data set: small drawings that ship with the package, so that everything works offline.

The images have alpha; the background is chosen per row and named in the caption ("a 3d render of a red apple
on a black background"), so that whether a model obeys words about light and dark can be measured.
docs/dataset.md says where the drawings come from; scripts/build_emoji.py makes them.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import chain, islice, zip_longest
from types import MappingProxyType
from typing import Literal

from terminus.errors import UserError

Style = Literal["3d", "flat"]
Split = Literal["train", "validation"]

STYLES: Mapping[Style, str] = MappingProxyType({"3d": "a 3d render of", "flat": "a flat drawing of"})
"""How the caption of each style begins."""

BACKGROUNDS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "black": (0, 0, 0),
        "white": (255, 255, 255),
        "gray": (128, 128, 128),
        "red": (255, 0, 0),
        "orange": (255, 165, 0),
        "yellow": (255, 255, 0),
        "green": (0, 128, 0),
        "blue": (0, 0, 255),
        "purple": (128, 0, 128),
        "pink": (255, 192, 203),
        "brown": (165, 42, 42),
        "teal": (0, 128, 128),
    }
)
"""sRGB, 0..255: what CSS means by these names (CSS Color Module Level 4, named colors)."""

CONTRAST = ("black", "white")
"""The backgrounds that every drawing gets first: the two that a leaky noise schedule cannot draw."""


@dataclass(frozen=True)
class Emoji:
    """One image without its background."""

    id: str
    """Style and slug of the name: "3d/red-apple"."""
    style: Style
    name: str
    """Unicode's short name, the same in both styles: "red apple", "flag: France"."""
    subject: str
    """The name as a noun phrase: "a red apple", "the flag of France"."""
    keywords: tuple[str, ...]
    group: str
    """Unicode's group: "Food & Drink", "Flags", ..."""
    split: Split
    """By name: a held-out subject is unseen in every style."""


@dataclass(frozen=True)
class EmojiRow:
    """One drawing on one background."""

    id: str
    """"3d/red-apple@black"."""
    drawing: Emoji
    background: str
    rgb: tuple[int, int, int]
    caption: str


@cache
def drawings() -> tuple[Emoji, ...]:
    """All drawings, ordered by style and name."""
    lines = (_assets() / "index.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(_drawing(json.loads(line)) for line in lines)


def rgba(drawing: Emoji) -> bytes:
    """The image as a WebP file: 128x128 pixels, straight alpha."""
    return _archive(drawing.style).read(f"{drawing.id.split('/')[1]}.webp")


def emoji_caption(drawing: Emoji, background: str) -> str:
    """ "a flat drawing of a sun on an orange background"."""
    article = "an" if background[0] in "aeiou" else "a"
    return f"{STYLES[drawing.style]} {drawing.subject} on {article} {background} background"


def plain_caption(drawing: Emoji) -> str:
    """ "a flat drawing of a sun"."""
    return f"{STYLES[drawing.style]} {drawing.subject}"


def brightness_caption(drawing: Emoji, rgb: tuple[int, int, int]) -> str | None:
    """ "a dark image of a sun" for backgrounds of a luma below 1/4, "a bright image of a sun" above 3/4; else None."""
    luma = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255  # Rec.601
    if 0.25 <= luma <= 0.75:
        return None
    return f"a {'dark' if luma < 0.25 else 'bright'} image of {drawing.subject}"


def emoji_rows(
    styles: Sequence[str],
    backgrounds_per_drawing: int,
    seed: int,
    limit: int | None = None,
    colors: Sequence[str] = tuple(BACKGROUNDS),
    groups: Sequence[str] = (),
) -> Iterator[EmojiRow]:
    """Drawings of these styles on backgrounds out of `colors`, in the order of `drawings()`.

    Black and white come first if they are among them, the others in an order that (seed, drawing) decides; one
    background is any of them. `limit` counts drawings, not rows, and takes as many of each style as it can. `groups`
    are Unicode's ("Food & Drink"); none named is all of them.
    """
    _check(styles, backgrounds_per_drawing, limit, colors, groups)
    for drawing in _subset(frozenset(styles), limit, frozenset(groups)):
        for background in _backgrounds(drawing, backgrounds_per_drawing, seed, colors):
            text = emoji_caption(drawing, background)
            yield EmojiRow(f"{drawing.id}@{background}", drawing, background, BACKGROUNDS[background], text)


def _subset(styles: frozenset[str], limit: int | None, groups: frozenset[str]) -> list[Emoji]:
    chosen = [one for one in drawings() if one.style in styles and (not groups or one.group in groups)]
    if limit is None:
        return chosen
    # Ordered by name alone, so that a small subset holds the same subjects in both styles.
    shuffled = sorted(chosen, key=lambda drawing: _hash(drawing.name))
    by_style = [[drawing for drawing in shuffled if drawing.style == style] for style in sorted(styles)]
    # In turn one of each style.
    turns = chain.from_iterable(zip_longest(*by_style))
    kept = set(islice((drawing for drawing in turns if drawing is not None), limit))
    return [drawing for drawing in chosen if drawing in kept]


def _backgrounds(drawing: Emoji, count: int, seed: int, colors: Sequence[str]) -> list[str]:
    # By hash, so that the order of some colours does not depend on which others there are.
    order = sorted(colors, key=lambda name: _hash(f"{seed}:{drawing.id}:{name}"))
    first = [name for name in CONTRAST if name in colors] if count >= len(CONTRAST) else []
    return [*first, *(name for name in order if name not in first)][:count]


def _check(
    styles: Sequence[str], backgrounds_per_drawing: int, limit: int | None, colors: Sequence[str], groups: Sequence[str]
) -> None:
    known = sorted({drawing.group for drawing in drawings()})
    if unknown := _unknown(groups, known):
        raise UserError(
            f"There is no group {unknown}",
            rule=f"The groups are {', '.join(known)}",
            fix="Name some of them, or none for all",
        )
    if unknown := _unknown(colors, BACKGROUNDS):
        raise UserError(
            f"There is no background {unknown}",
            rule=f"The backgrounds are {', '.join(BACKGROUNDS)}",
            fix="Name some of them",
        )
    unknown = _unknown(styles, STYLES)
    if unknown or not styles:
        raise UserError(
            f"The embedded drawings have no style {unknown}" if unknown else "No style is named",
            rule=f"The styles are {', '.join(STYLES)}",
            fix="Name one or more of them",
        )
    if not 1 <= backgrounds_per_drawing <= len(colors):
        raise UserError(
            f"{backgrounds_per_drawing} backgrounds per drawing are asked for",
            rule=f"There are {len(colors)} to choose from: {', '.join(colors)}",
            fix=f"Ask for 1 to {len(colors)}",
        )
    if limit is not None and limit < 1:
        raise UserError(f"The limit is {limit}", rule="It counts drawings", fix="Ask for 1 or more, or leave it out")


def _unknown(names: Sequence[str], known: Collection[str]) -> str:
    """The names that are not known, quoted; "" if all are."""
    return ", ".join(repr(name) for name in names if name not in known)


def _drawing(row: dict[str, str | list[str]]) -> Emoji:
    fields = {name: row[name] for name in ("id", "style", "name", "subject", "group", "split")}
    return Emoji(**fields, keywords=tuple(row["keywords"]))  # pyright: ignore[reportArgumentType]


@cache
def _archive(style: Style) -> zipfile.ZipFile:
    # Held in memory: an open file's position would be shared with every forked worker.
    return zipfile.ZipFile(io.BytesIO((_assets() / f"{style}.zip").read_bytes()))


def _assets() -> Traversable:
    return files("terminus") / "assets" / "emoji"


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
