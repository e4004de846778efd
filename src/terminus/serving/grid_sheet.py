"""The sheet of a grid, made in the reader's process: no file of an image is opened where everybody is answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from terminus.sampling.sheet import sheet


def grid_sheet(files: Sequence[Path], axes: Sequence[dict[str, Any]]) -> bytes:
    """A PNG: columns go along the first axis, rows along the second, and the third is a further block of rows."""
    # Here: it brings torch, and the process that answers imports this file to name the function to the reader.
    from terminus.sampling.metadata import encode_image, mark

    images: list[Image.Image] = []
    for file in files:
        with Image.open(file, formats=("PNG",)) as image:
            images.append(image.convert("RGB"))
    columns = axes[0]
    captions = [_words(columns, number % len(columns["values"])) for number in range(len(images))]
    page = sheet(images, captions, len(columns["values"]), row_titles=_row_titles(axes))
    mark(page)
    return encode_image(page, "PNG")


def _row_titles(axes: Sequence[dict[str, Any]]) -> list[str]:
    if len(axes) == 1:
        return []
    rows = [_words(axes[1], number) for number in range(len(axes[1]["values"]))]
    if len(axes) == 2:
        return rows
    blocks = [_words(axes[2], number) for number in range(len(axes[2]["values"]))]
    return [f"{block}, {row}" for block in blocks for row in rows]


def _words(axis: dict[str, Any], number: int) -> str:
    value = axis["values"][number]
    if isinstance(value, list):
        value = ", ".join(f"{one['id']} {one.get('weight', 1)}" for one in value) or "none"
    return f"{axis['field']} {value}"
