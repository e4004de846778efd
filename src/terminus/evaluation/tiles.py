"""Which images of an evaluation people see, and what stands under each: its caption and, on the probe, its colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from PIL import Image

from terminus.evaluation.bias import BiasAsked
from terminus.evaluation.captions import DrawnCaption, ImageSource
from terminus.evaluation.luminance import Images
from terminus.evaluation.measure import EvaluationImages
from terminus.evaluation.prompts import EvaluationPrompt


@dataclass(frozen=True)
class Tile:
    """One image and what was asked for."""

    image: Image.Image
    caption: str
    color: str | None = None
    """Name of the background that the probe asked for."""
    rgb: tuple[int, int, int] | None = None
    """The same as sRGB, 0..255."""

    @property
    def label(self) -> str:
        """Background and caption on one line."""
        return self.caption if self.color is None else f"{self.color}: {self.caption}"


@dataclass(frozen=True)
class Row:
    """A titled row of tiles."""

    title: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Compared:
    """One caption with what each set has for it, by the set's title."""

    caption: str
    images: dict[str, Image.Image]


BEFORE, AFTER, REAL = "before", "this model", "real image"


def compared(gallery: EvaluationImages, most: int) -> list[Compared]:
    """The first captions of the model's own data, or of a file."""
    captions = gallery.captions
    if captions is None:
        return []
    sets: dict[str, Sequence[ImageSource]] = {}
    if gallery.before is not None:
        sets[BEFORE] = gallery.before.captions
    sets[AFTER] = gallery.own.captions
    if captions.images:
        sets[REAL] = captions.images
    return [
        Compared(caption.text, {title: Image.fromarray(some[row]) for title, some in sets.items()})
        for row, caption in enumerate(captions.items[:most])
    ]


def caption_rows(gallery: EvaluationImages, columns: int, most: int) -> list[Row]:
    """The same in rows of `columns`: before, and below it this model.

    Without the real images: a sheet goes with a published model, and these are not for everybody to publish.
    """
    shown = compared(gallery, most)
    rows: list[Row] = []
    for start in range(0, len(shown), columns):
        some = shown[start : start + columns]
        for title in (BEFORE, AFTER):
            # Without a parent there is no row "before".
            tiles = [Tile(one.images[title], one.caption) for one in some if title in one.images]
            rows += [Row(title, tiles)] if tiles else []
    return rows


def probe_rows(gallery: EvaluationImages, columns: int) -> list[Row]:
    """Titled rows of at most `columns` images of the contrast probe; black and white have the same subjects."""
    prompts = gallery.prompts
    black, white = asked(prompts, "black")[:columns], asked(prompts, "white")[:columns]
    mixed = _in_turns(prompts)[:columns]
    sets: list[tuple[str, Images, list[int]]] = []
    for what, rows in (("on black", black), ("on white", white), ("on colours", mixed)):
        if gallery.before is not None:
            sets.append((f"contrast probe {what}, before", gallery.before.probe, rows))
        sets.append((f"contrast probe {what}, this model", gallery.own.probe, rows))
    if gallery.leaky is not None:
        sets.append(("contrast probe on black, control: leaky schedule", gallery.leaky.probe, black))
        sets.append(("contrast probe on white, control: leaky schedule", gallery.leaky.probe, white))
    if gallery.real is not None:
        sets.append(("contrast probe on black, the real drawings", gallery.real, black))
    found: list[Row] = []
    for title, images, rows in sets:
        if rows:
            found.append(Row(title, [_tile(prompts, images, row) for row in rows]))
    return found


def light_tiles(gallery: EvaluationImages, light: Sequence[DrawnCaption], most: int) -> list[Tile]:
    """Images that were asked to be dark, and below them the same subjects bright; half of `most` each."""
    images = gallery.own.light
    if images is None:
        return []
    half, shown = len(light) // 2, min(len(light), most) // 2
    rows = [*range(shown), *range(half, half + shown)]
    return [Tile(Image.fromarray(images[row]), light[row].text) for row in rows]


def bias_rows(left_open: Sequence[BiasAsked], images: Images | None, most: int = 16) -> list[Row]:
    """A row of images for each group of the bias probe, as the prompts left them; none where none were drawn."""
    if images is None:
        return []
    found: list[Row] = []
    for group in dict.fromkeys(one.group for one in left_open):
        rows = [row for row, one in enumerate(left_open) if one.group == group and one.asked is None][:most]
        found.append(Row(group, [Tile(Image.fromarray(images[row]), left_open[row].caption.text) for row in rows]))
    return found


def _in_turns(prompts: Sequence[EvaluationPrompt]) -> list[int]:
    """Rows on coloured backgrounds: every colour once, then every colour again."""
    colors = dict.fromkeys(prompt.background for prompt in prompts)
    rows = [asked(prompts, name) for name in colors if name not in ("black", "white")]
    return [index for turn in zip_longest(*rows) for index in turn if index is not None]


def asked(prompts: Sequence[EvaluationPrompt], background: str) -> list[int]:
    """Rows of the probe's prompts for a background."""
    return [index for index, prompt in enumerate(prompts) if prompt.background == background]


def _tile(prompts: Sequence[EvaluationPrompt], images: Images, row: int) -> Tile:
    prompt = prompts[row]
    return Tile(Image.fromarray(images[row]), prompt.text, prompt.background, prompt.rgb)
