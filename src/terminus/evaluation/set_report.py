"""The page and the sheet of a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from terminus.evaluation.captions import ImageSource
from terminus.evaluation.image_folder import ImageFolder
from terminus.evaluation.image_set import ImageSet
from terminus.evaluation.memorised import Memorised
from terminus.evaluation.metrics import FolderMetrics
from terminus.evaluation.pages import page_environment
from terminus.evaluation.tiles import Tile
from terminus.sampling.sheet import sheet

SHOWN = 32
"""Images on the page and on the sheet."""

Pair = tuple[Image.Image, Image.Image, float]
"""What was drawn, the nearest training image, and their distance."""


def write_folder_report(metrics: FolderMetrics, subject: ImageSet, out: Path) -> None:
    """Writes `report.html`."""
    names = subject.images.names if isinstance(subject.images, ImageFolder) else []
    tiles = [Tile(Image.fromarray(subject.images[row]), name) for row, name in enumerate(names[:SHOWN])]
    page = page_environment().get_template("evaluation_folder.html.j2").render(
        metrics=metrics, tiles=tiles, uri_pairs=near_pairs(metrics.image_set.memorised, subject)
    )  # fmt: skip
    (out / "report.html").write_text(page, encoding="utf-8")


def write_folder_sheet(images: ImageFolder, out: Path) -> None:
    """`samples.png`: the first images."""
    shown = images[:SHOWN]
    labels = [caption or name for caption, name in zip(images.captions, images.names, strict=True)][:SHOWN]
    sheet([Image.fromarray(image) for image in shown], labels).save(out / "samples.png")


def near_pairs(found: Memorised | None, subject: ImageSet) -> Sequence[Pair]:
    """The closest pairs of drawn and training images."""
    if found is None or subject.training is None:
        return []
    known: Sequence[ImageSource] = subject.training.images
    return [
        (Image.fromarray(subject.images[row]), Image.fromarray(known[other]), apart)
        for row, other, apart in found.nearest
    ]
