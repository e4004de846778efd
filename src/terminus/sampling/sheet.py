"""Many images on one sheet, with captions that can be read: for samples, previews, evaluation and the demo."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_FONT_SIZE = 13
_LINE = 16
_LINES = 4
"""Lines of a caption; a longer one ends in an ellipsis."""
_LONGEST = 1000
"""Characters of a caption that are looked at."""
_MARGIN = 6
_READABLE = 128
"""Pixels; narrower images are enlarged, or no caption would fit under them."""
_WIDEST = 512
"""Pixels; wider images are reduced: a sheet is for the overview."""
_PAPER, _INK = (255, 255, 255), (32, 32, 32)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Cell = tuple[Image.Image, Sequence[str]]
"""An image and the lines of its caption."""


def sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] = (),
    columns: int | None = None,
    scale: int | None = None,
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """An RGB sheet of the images row by row, each with its caption below, each row with its title above.

    `columns` None is a nearly square sheet of at most 8. `scale` repeats each pixel that many times in both
    directions; None is the least that makes the widest image 128 pixels wide, and reduces what exceeds 512.
    """
    if not images or (captions and len(captions) != len(images)):
        raise ValueError(f"{len(images)} images and {len(captions)} captions")
    # Every image of one size class, every caption in lines of that width.
    widest = max(image.width for image in images)
    shown = [_resized(image.convert("RGB"), scale, widest) for image in images]
    width, height = max(image.width for image in shown), max(image.height for image in shown)
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [_wrapped(caption, width, font) for caption in captions or [""] * len(shown)]
    cells: list[_Cell] = list(zip(shown, texts, strict=True))

    columns = min(columns or _columns(len(images)), len(images))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return _page(rows, row_titles, (width, height), font)


def _page(rows: list[list[_Cell]], row_titles: Sequence[str], largest: tuple[int, int], font: _Font) -> Image.Image:
    """The page, whose rows have room for their longest captions; `largest` is the widest and the highest image."""
    width, height = largest
    # Room: each row is as high as its title, the highest image and its own longest caption.
    title_height = _LINE + _MARGIN if row_titles else 0
    row_heights = [title_height + height + _caption_height(row) + _MARGIN for row in rows]
    page = Image.new("RGB", (len(rows[0]) * (width + _MARGIN) + _MARGIN, sum(row_heights) + _MARGIN), _PAPER)

    # Row by row, images in the middle of their columns.
    pen = ImageDraw.Draw(page)
    top = _MARGIN
    for number, row in enumerate(rows):
        if number < len(row_titles):
            pen.text((_MARGIN, top), row_titles[number], _INK, font)
        for column, (image, lines) in enumerate(row):
            left, below = _MARGIN + column * (width + _MARGIN), top + title_height
            page.paste(image, (left + (width - image.width) // 2, below))
            _write_lines(pen, lines, left, below + height + 2, font)
        top += row_heights[number]
    return page


def _columns(count: int) -> int:
    """Columns of a nearly square sheet, at most 8."""
    for columns in range(1, 8):
        if columns**2 >= count:
            return columns
    return 8


def _caption_height(row: Sequence[_Cell]) -> int:
    return _LINE * max(len(lines) for _, lines in row) + 2


def _write_lines(pen: ImageDraw.ImageDraw, lines: Sequence[str], left: int, top: int, font: _Font) -> None:
    for number, line in enumerate(lines):
        pen.text((left, top + number * _LINE), line, _INK, font)


def _resized(image: Image.Image, scale: int | None, widest: int) -> Image.Image:
    if scale is None and widest > _WIDEST:
        size = (max(1, image.width * _WIDEST // widest), max(1, image.height * _WIDEST // widest))
        return image.resize(size, Image.Resampling.LANCZOS)
    # By a whole number, so that every pixel becomes a square.
    times = scale or -(-_READABLE // widest)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _wrapped(caption: str, width: int, font: _Font) -> list[str]:
    """Lines no wider than `width` pixels; a word that is wider is broken."""
    lines, line = [], ""
    for word in caption[:_LONGEST].split():
        while word:
            together = f"{line} {word}".strip()
            if font.getlength(together) <= width:
                line, word = together, ""
            elif line:
                lines, line = [*lines, line], ""
            else:
                # As many letters as fit, by bisection.
                fits = max(1, bisect_right(range(len(word) + 1), width, key=lambda n: font.getlength(word[:n])) - 1)
                line, word = word[:fits], word[fits:]
    lines = [*lines, line] if line else lines
    return lines if len(lines) <= _LINES else _shortened(lines, width, font)


def _shortened(lines: Sequence[str], width: int, font: _Font) -> list[str]:
    """The first lines, of which the last ends in an ellipsis."""
    last = lines[_LINES - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: _LINES - 1], last + "…"]
