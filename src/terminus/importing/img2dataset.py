"""A folder that img2dataset wrote: numbered archives, tables or folders of images, each with a table and counts.

Its options are not in it. What was done to the images is read off the sizes that it wrote down beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from terminus.config.source import Plain
from terminus.data import tar
from terminus.data.sources.columns import FACTS
from terminus.data.sources.laion import NAMES
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.importing.reading import Keys, Sourced, read_json_settings, root
from terminus.importing.recipe import Draft, Left, data_only, slug

TOOL = "img2dataset"
SAMPLED = 1000
"""Rows whose sizes are looked at."""
MAX_STATS = 2000
"""Files of counts that are added up."""
_SHARD = re.compile(r"\d{3,9}")
_SIDES = ("width", "height", "original_width", "original_height")
_READ = {
    "caption", "captions", "text", "prompt", "alt_text", "jpg", "txt", "key", "url", "status", "error_message", "width",
    "height", *(name.lower() for names in (*FACTS.values(), *NAMES.values()) for name in names),
}  # fmt: skip
_WHY = {
    "key": "the name of the sample in its archive is its id",
    "url": "the images are here; nothing is downloaded again",
    "status": "only downloads that succeeded are in the archives",
    "error_message": "only downloads that succeeded are in the archives",
    "exif": "whether a camera is named is read from the image itself (data.filters.require_exif_camera)",
    "sha256": "of the file before it was scaled, so it is not compared with the one that is here",
    "md5": "of the file before it was scaled, so it is not compared with the one that is here",
}


@dataclass(frozen=True)
class _Shards:
    """The files in the folder, by their names without endings."""

    archives: list[Path]
    tables: list[Path]
    folders: list[Path]
    counts: list[Path]


class _Sizes(NamedTuple):
    """Sides of one image in pixels, as the table has them."""

    width: int
    height: int
    original_width: int
    original_height: int


def looks_like(folder: Path) -> bool:
    """Whether a folder has numbered shards."""
    found = _shards(folder)
    return bool(found.counts or found.archives or (found.tables and found.folders))


def read_img2dataset(folder: Path) -> Draft:
    """The draft of the folder. `UserError` if there is nothing in it that a source reads."""
    # What there is to train on; counts alone name no images.
    found = _shards(folder)
    if not (found.archives or found.folders or found.tables):
        raise UserError(
            "there are counts of img2dataset here, and no images",
            where=str(folder),
            rule="Terminus reads its output formats webdataset, files and parquet; tfrecord is not read",
            fix="Run img2dataset with --output_format webdataset.",
        )
    draft = Draft(f"{folder.name}, a folder of {TOOL}", slug(folder.absolute().name))
    draft.set("run.dir", f"runs/{draft.name}", "a new folder")
    draft.set("data.store", f"runs/{draft.name}-data", "where prepared latents are kept")
    place = str(folder)
    # A source for the best of what is there: archives hold images, captions and all columns.
    if found.archives:
        draft.source("webdataset", draft.name, "", path=Sourced(place, f"{len(found.archives)} archives"))
    elif found.folders:
        draft.source("folder", draft.name, "", path=Sourced(place, f"{len(found.folders)} folders of images"))
        draft.notes.append(
            "A folder source reads captions from .txt and .json, and nothing else of the .json (scores, original "
            "sizes); "
            "a sample without a caption has null in it and is dropped as `caption cannot be read`. The tables and "
            "counts in "
            "the folder are in the report as files that are no images. --output_format webdataset has none of this."
        )
    else:
        columns: dict[str, Plain] = {"image": "jpg", "caption": "caption"}
        draft.source(
            "laion", draft.name, "", path=Sourced(place, f"{len(found.tables)} tables"), columns=Sourced(columns, "")
        )
        draft.notes.append("Rows whose download failed have no bytes but a link in these tables: it is tried again.")
    # What is known of the images: how many there should be, and whether they were scaled.
    _counts(draft, found.counts)
    _sizes(draft, found, bool(found.archives))
    data_only(draft)
    if not found.counts:
        draft.notes.append(
            "There are no *_stats.json files, so nothing is known of downloads that failed or are unfinished."
        )
    return draft


def _shards(folder: Path) -> _Shards:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"this folder cannot be read ({error.strerror})", where=str(folder)) from None
    numbered = [path for path in inside if _SHARD.fullmatch(path.name.split(".")[0])]
    return _Shards(
        [path for path in numbered if path.name.endswith(tar.ENDINGS)],
        [path for path in numbered if path.suffix == ".parquet"],
        [path for path in numbered if path.is_dir()],
        [path for path in inside if re.fullmatch(r"\d{3,9}_stats\.json", path.name)],
    )


def _counts(draft: Draft, files: list[Path]) -> None:
    """Says how many images there should be, and what failed."""
    total, reasons = Counter[str](), Counter[str]()
    for file in files[:MAX_STATS]:
        # Counts of all files together, and settings where a file has them.
        keys = root(read_json_settings(file), file)
        total.update(_whole_numbers(keys, ("count", "successes", "failed_to_download", "failed_to_resize")))
        if status := keys.table("status_dict"):
            reasons.update(_whole_numbers(status, list(status.values)[:100]))
        for key in ("image_size", "resize_mode", "resize_only_if_bigger", "encode_quality", "encode_format"):
            if (given := keys.raw(key)) and f"{given.origin}, by the counts" not in draft.notes:
                draft.notes.append(f"{given.origin}, by the counts")
    if not files:
        return
    # The most frequent reasons of failed downloads.
    reasons.pop("success", None)
    worst = ", ".join(f"{printable_caption(word[:60])}: {count}" for word, count in reasons.most_common(3))
    some = f", by the first {MAX_STATS} of {len(files)} files of counts" if len(files) > MAX_STATS else ""
    failed = f"; failed: {worst}" if worst else ""
    draft.notes.append(f"{total['successes']} of {total['count']} downloads succeeded{some}{failed}.")


def _whole_numbers(keys: Keys, names: Iterable[str]) -> Counter[str]:
    numbers = Counter[str]()
    for name in names:
        given = keys.whole(name)
        numbers[name] = given.value if given else 0
    return numbers


def _sizes(draft: Draft, found: _Shards, archives: bool) -> None:
    """The resizing that was done to the images, judged by the sizes of the first rows of the first table that can be
    read."""
    for table in found.tables:
        try:
            with pq.ParquetFile(table) as file:
                names = [str(name) for name in file.schema_arrow.names]
                wanted = [name for name in (*_SIDES, "status") if name in names]
                rows = next(file.iter_batches(SAMPLED, columns=wanted), None) if wanted else None
        except (OSError, pa.ArrowException, ValueError, NotImplementedError):
            draft.notes.append(f"{table.name} cannot be read; the next table was looked at.")
            continue
        _columns(draft, names)
        _resized(draft, rows.to_pylist() if rows is not None else [], archives)
        return
    draft.notes.append("No table could be read, so it is not known whether the images were scaled.")


def _columns(draft: Draft, names: list[str]) -> None:
    for name in names[:500]:
        if name.lower() in _WHY:
            draft.left.append(Left(f"column {printable_caption(name[:60])}", "", _WHY[name.lower()]))
        elif name.lower() not in _READ:
            draft.left.append(
                Left(f"column {printable_caption(name[:60])}", "", "unknown: no source reads a column of this name")
            )


def _resized(draft: Draft, rows: list[dict[str, object]], archives: bool) -> None:
    # What changed between the downloaded and the stored file was done by img2dataset.
    sizes = [size for row in rows if (size := _size(row)) is not None]
    if not sizes:
        draft.notes.append(
            "The table has no sizes before and after, so it is not known whether the images were scaled. If they "
            "were, the size that the model is told of is that of the scaled file."
        )
        return
    changed = [one for one in sizes if one[:2] != one[2:]]
    if changed:
        _note_scaled(draft, sizes, changed, archives)
    else:
        draft.notes.append(
            f"Of {len(sizes)} images looked at, all have the size that was downloaded: resize_mode no, or nothing "
            "was larger."
        )
    _resolution(draft, sizes)


def _note_scaled(draft: Draft, sizes: Sequence[_Sizes], changed: Sequence[_Sizes], archives: bool) -> None:
    """Says how many images were scaled, and what follows from it."""
    # One shape for all: cut or padded, which the sizes cannot tell apart.
    shapes = {one[:2] for one in sizes}
    one_shape = ""
    if len(shapes) == 1:
        [(width, height)] = shapes
        one_shape = (
            f", and all are {width}x{height}: cut or padded to one shape (resize_mode border, the default, puts white "
            "bars around; center_crop does not), which training will learn"
        )
    draft.notes.append(
        f"Of {len(sizes)} images looked at, {len(changed)} were scaled by {TOOL} (by area, not LANCZOS){one_shape}. "
        "The size that the model is told of each is that of the file as it is now, not original_width and "
        "original_height; to train on the originals, download them with --resize_mode no."
    )
    larger = [one for one in changed if one.width > one.original_width or one.height > one.original_height]
    if larger:
        draft.notes.append(
            f"{len(larger)} of them are larger than they were: enlarged or padded, which no filter can see."
        )
    if archives:
        draft.notes.append(
            "Before an image is looked at, one whose original_width and original_height are too small is dropped by "
            "these; one that was scaled down below its bucket is dropped when its file is read."
        )


def _size(row: Mapping[str, object]) -> _Sizes | None:
    """The sizes of an image after and before it was scaled; None where one is missing or none that an image has."""
    sides = [value for name in _SIDES if isinstance(value := row.get(name), int) and not isinstance(value, bool)]
    if len(sides) < len(_SIDES) or not all(0 < side < 1 << 20 for side in sides):
        return None
    return _Sizes(*sides)


def _resolution(draft: Draft, sizes: Sequence[_Sizes]) -> None:
    """The largest of the usual resolutions that at least half of the images have room for."""
    # The median of the shortest sides: nothing is enlarged here, so half of the images can be used.
    short = sorted(min(size.width, size.height) for size in sizes)
    middle = short[len(short) // 2]
    fitting = [side for side in (1024, 768, 512, 256, 128, 64) if side <= middle]
    if fitting:
        draft.set("data.resolution", fitting[0], f"half of the images have a shortest side of {middle} pixels or more")
    else:
        draft.notes.append(
            f"Half of the images have a shortest side below {middle + 1} pixels: too small for any resolution."
        )
