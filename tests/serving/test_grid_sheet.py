"""The sheet of a grid: as many columns as the first axis has values, a row of its own for each of the others'."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from terminus.serving.grid_sheet import grid_sheet

AXES = [
    {"field": "guidance", "values": [2, 5, 8]},
    {"field": "seed", "values": [1, 2]},
    {"field": "adapters", "values": [[], [{"id": "ink", "weight": 0.5}]]},
]


def drawn(tmp_path: Path, axes: list[dict[str, object]], count: int) -> Image.Image:
    files: list[Path] = []
    for number in range(count):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (128, 128), (number * 20, 0, 0)).save(files[-1])
    return Image.open(io.BytesIO(grid_sheet(files, axes)))


def test_columns_go_along_the_first_axis(tmp_path: Path):
    one, two, three = (drawn(tmp_path, AXES[:axes], count) for axes, count in ((1, 3), (2, 6), (3, 12)))
    assert one.width == two.width == three.width
    assert 3 * 128 <= one.width < 4 * 128
    assert one.height < two.height < three.height
    # The reds of the images, in the order in which they stand on the sheet.
    reds = [three.getpixel((x, y)) for y in range(three.height) for x in range(three.width)]
    first_seen = list(dict.fromkeys(red[0] for red in reds if isinstance(red, tuple) and red[1:] == (0, 0)))
    assert first_seen == [number * 20 for number in range(12)]
