"""A folder of images to judge, or to judge by: decoded one by one, so that any number of them fits in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from terminus.bounded_files import read_bounded
from terminus.conditioning import Size
from terminus.decode import HARD_PIXEL_LIMIT, Decoded, Limits, decode
from terminus.errors import UserError
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.image_folder_names import SUFFIXES
from terminus.images import Dropped

_LARGEST = 1 << 30
_LONGEST_CAPTION = 65_536
_RULE = "A folder of images holds .png, .jpg or .webp files, in folders within it too, each with a caption in a .txt \
file of its name if it has one"


@dataclass
class ImageFolder(Sequence[ImageSource]):
    """The images of a folder in the order of their names; each access decodes one, over white where it is clear."""

    path: Path
    files: tuple[Path, ...]
    sizes: tuple[Size, ...]
    unread: tuple[str, ...] = ()
    """Names of those that are no images, each with its reason."""
    captions: tuple[str | None, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, place: int) -> ImageSource: ...
    @overload
    def __getitem__(self, place: slice) -> list[ImageSource]: ...
    def __getitem__(self, place: int | slice) -> ImageSource | list[ImageSource]:
        if isinstance(place, slice):
            return [_pixels(file) for file in self.files[place]]
        return _pixels(self.files[place])

    def __iter__(self) -> Iterator[ImageSource]:
        return (_pixels(file) for file in self.files)

    @property
    def names(self) -> list[str]:
        """Paths relative to the folder."""
        return [file.relative_to(self.path).as_posix() for file in self.files]


def open_folder(path: Path, least: int = 1) -> ImageFolder:
    """UserError for what is no folder, and for one with fewer than `least` images that can be read."""
    if not path.is_dir():
        raise UserError("No folder is here", where=str(path), rule=_RULE)
    # Each is decoded once here and let go: a folder of 50,000 images does not fit the memory.
    listed = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    files: list[Path] = []
    sizes: list[Size] = []
    unread: list[str] = []
    for file in listed:
        size = _size(file)
        if isinstance(size, Size):
            files.append(file)
            sizes.append(size)
        else:
            unread.append(f"{file.relative_to(path).as_posix()} ({size})")
    if len(files) < least:
        raise UserError(_few(len(files), unread, least), where=str(path), rule=_RULE)
    return ImageFolder(path, tuple(files), tuple(sizes), tuple(unread), tuple(_caption(file) for file in files))


def check_sizes(drawn: Sequence[Size], reference: Sequence[Size], where: str) -> None:
    """UserError unless every size of the drawn images is one of the reference's, and the other way round.

    Extractors resize whatever they see, so that sets of different sizes compare without a word; but what is then
    measured is how differently they were resized (Parmar et al. 2104.11222).
    """
    theirs, ours = set(reference), set(drawn)
    if ours == theirs:
        return
    raise UserError(
        f"The reference images are of {_named(theirs)}, the drawn ones of {_named(ours)}",
        where=where,
        rule="A distance between images of different sizes measures how each was resized for the extractor as well as "
        "what they show",
        fix="Crop and resize the reference to the size that is drawn, or add --any-size if you compare with numbers "
        "that were measured so",
    )


def _named(sizes: set[Size]) -> str:
    some = sorted(sizes)[:3]
    more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
    return ", ".join(f"{size.width}×{size.height}" for size in some) + more


def _few(count: int, unread: Sequence[str], least: int) -> str:
    found = "no images" if count == 0 else f"{count} image, and {least} are needed"
    damaged = f"; files that are no images: {len(unread)}, the first {unread[0]}" if unread else ""
    return f"This folder has {found}{damaged}"


def _size(file: Path) -> Size | str:
    """(height, width), upright; or why this is no image."""
    decoded = _decoded(file)
    return decoded.size if isinstance(decoded, Decoded) else decoded.reason


def _decoded(file: Path) -> Decoded | Dropped:
    data = read_bounded(file, file.parent, _LARGEST)
    return data if isinstance(data, Dropped) else decode(data, Limits(len(data), HARD_PIXEL_LIMIT))


def _pixels(file: Path) -> ImageSource:
    decoded = _decoded(file)
    if isinstance(decoded, Dropped):
        raise UserError(f"This image changed while it was judged ({decoded.reason})", where=str(file))
    return np.asarray(decoded.on((255, 255, 255)))


def _caption(file: Path) -> str | None:
    """The text beside the image, else the prompt that Terminus wrote into it."""
    # The layout of kohya and many data sets comes before what a file says of itself.
    beside = file.with_suffix(".txt")
    if beside.is_file():
        data = read_bounded(beside, file.parent, _LONGEST_CAPTION)
        if isinstance(data, bytes):
            return " ".join(data.decode("utf-8-sig", "replace").split()) or None
    return _own_prompt(file)


def _own_prompt(file: Path) -> str | None:
    """The prompt in a PNG's A1111 text, its first line."""
    if file.suffix.lower() != ".png":
        return None
    with Image.open(file) as image:
        said = image.info.get("parameters")
    first = said.split("\nNegative prompt:")[0].split("\nSteps:")[0] if isinstance(said, str) else ""
    return " ".join(first.split()) or None
