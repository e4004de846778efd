"""Many images on one sheet, with captions that can be read: for samples, previews, evaluation and the demo."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_FONT_SIZE = 13
_LINE = 16
_LINES = 4
"""Of a caption; a longer one ends in an ellipsis."""
_LONGEST = 1000
"""Characters of a caption that are looked at."""
_MARGIN = 6
_READABLE = 128
"""Pixels; narrower images are enlarged, or no caption would fit under them."""
_WIDEST = 512
"""Pixels; wider images are reduced: a sheet is for the overview."""
_PAPER, _INK = (255, 255, 255), (32, 32, 32)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] = (),
    columns: int | None = None,
    scale: int | None = None,
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """RGB; images row by row, each with its caption below, each row with its title above.

    `columns` None is a nearly square sheet of at most 8. `scale` repeats each pixel that many times in both
    directions; None is the least that makes the widest image 128 pixels wide, and reduces what exceeds 512.
    """
    if not images or (captions and len(captions) != len(images)):
        raise ValueError(f"{len(images)} images and {len(captions)} captions")
    columns = columns or min(8, next(n for n in range(1, 9) if n * n >= len(images) or n == 8))
    columns = min(columns, len(images))
    shown = [_resized(image.convert("RGB"), scale, max(p.width for p in images)) for image in images]
    width, height = max(p.width for p in shown), max(p.height for p in shown)
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [_wrapped(caption, width, font) for caption in captions] or [[] for _ in shown]
    rows = [range(start, min(start + columns, len(shown))) for start in range(0, len(shown), columns)]
    title_height = _LINE + _MARGIN if row_titles else 0
    row_heights = [title_height + height + _caption_height(texts, row) + _MARGIN for row in rows]
    page = Image.new("RGB", (columns * (width + _MARGIN) + _MARGIN, sum(row_heights) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(page)
    top = _MARGIN
    for number, row in enumerate(rows):
        if number < len(row_titles):
            pen.text((_MARGIN, top), row_titles[number], _INK, font)
        for column, index in enumerate(row):
            left, below = _MARGIN + column * (width + _MARGIN), top + title_height
            page.paste(shown[index], (left + (width - shown[index].width) // 2, below))
            for line, text in enumerate(texts[index]):
                pen.text((left, below + height + 2 + line * _LINE), text, _INK, font)
        top += row_heights[number]
    return page


def _caption_height(texts: Sequence[Sequence[str]], row: range) -> int:
    return _LINE * max(len(texts[index]) for index in row) + 2


def _resized(image: Image.Image, scale: int | None, widest: int) -> Image.Image:
    if scale is None and widest > _WIDEST:
        size = (max(1, image.width * _WIDEST // widest), max(1, image.height * _WIDEST // widest))
        return image.resize(size, Image.Resampling.LANCZOS)
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
                fits = max(1, bisect_right(range(len(word) + 1), width, key=lambda n: font.getlength(word[:n])) - 1)
                line, word = word[:fits], word[fits:]
    lines = [*lines, line] if line else lines
    if len(lines) > _LINES:
        last = lines[_LINES - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: _LINES - 1], last + "…"]
    return lines
