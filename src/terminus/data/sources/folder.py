"""A folder of images, with each caption in a file beside its image.

`cat.jpg` is captioned by `cat.txt` (the text) or `cat.json` ({"caption": "..."} or {"captions": [...]},
optionally "licence"); with both, the captions of both count. So do those of the rows that name it in a
`metadata.csv`, `.jsonl` or `.parquet` (`metadata`) of its folder or of one above. Whatever is read lies inside the
folder, also where a name is a link.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal, cast

from terminus.bounded_files import read_bounded
from terminus.config.base import Config
from terminus.data.caption import Caption
from terminus.data.record import Candidate
from terminus.data.sources.columns import BadRow, ColumnRow
from terminus.data.sources.metadata import Metadata
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.images import Dropped

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
SIDECAR_SUFFIXES = (".txt", ".json")
MAX_SIDECAR_BYTES = 65536
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files whose rows say more of the images in their folder and below."""


class FolderSource(Config):
    """Images under a folder and all folders in it, captions in .txt or .json files of the same name, or in the rows of
    metadata.csv, .jsonl or .parquet that name them in `file_name` (the "ImageFolder" of Hugging Face)."""

    kind: Literal["folder"]
    """A folder of images."""
    name: str
    """What the rows of this source are called in the store; keep it when the folder moves."""
    path: Path
    """The folder."""

    def count(self) -> int:
        """How many candidates there will be; of all files only those of metadata are read."""
        return sum(1 for _ in self._listed(self._root()))

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """Every file that is neither sidecar nor metadata, in the order of the sorted paths; rows of metadata that
        cannot be used where their file is met, and those that name no image at the end."""
        root = self._root()
        for one in self._listed(root):
            yield one if isinstance(one, Candidate) else self._candidate(root, *one)

    def _listed(self, root: Path) -> Iterator[Candidate | tuple[Path, tuple[Caption, ...], str | None]]:
        """Files, with what metadata says of them; folders that cannot be read, and rows of metadata of no use."""
        from terminus.data.seen_index import room_for_scratch

        with room_for_scratch(), closing((metadata := Metadata(self.name, root)).database):
            for path in _files(root):
                if isinstance(path, OSError):
                    yield self._unread(root, path)
                elif path.name in METADATA and not os.path.isdir(path):
                    yield from metadata.read(path)
                else:
                    yield path, *metadata.take(path)
            yield from metadata.unmatched()

    def _root(self) -> Path:
        try:
            with os.scandir(self.path):
                return self.path.absolute()
        except (OSError, ValueError) as error:
            raise UserError(
                _said_of_root(error),
                where=f"data.sources ({self.name}): {printable_caption(str(self.path))}",
                rule="A folder source reads the images under `path`",
                fix="Correct the path, which is relative to where the command runs, or the rights to read it.",
            ) from None

    def _unread(self, root: Path, error: OSError) -> Candidate:
        below = os.path.relpath(os.fsdecode(error.filename), root)
        problem = Dropped("folder cannot be read", error.strerror or type(error).__name__)
        return Candidate(self.name, f"{printable_caption(below)}/", problem=problem)

    def _candidate(self, root: Path, path: Path, described: tuple[Caption, ...], metadata: str | None) -> Candidate:
        identity = printable_caption(str(path.relative_to(root)))
        # What is no image is a candidate with a reason: nothing in the folder is passed over without a word.
        if os.path.islink(path) and os.path.isdir(path):
            return Candidate(self.name, identity, problem=Dropped("link to a folder"))
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            ending = f"the name ends in {printable_caption(path.suffix)!r}" if path.suffix else "the name has no ending"
            dropped = Dropped("not a JPEG, PNG or WebP image", ending)
            return Candidate(self.name, identity, problem=dropped)
        try:
            captions, licence, stamps = _sidecars(path, root)
        except _BadSidecar as error:
            return Candidate(
                self.name, identity, problem=Dropped("caption cannot be read", printable_caption(str(error)))
            )
        return Candidate(
            self.name,
            identity,
            captions + described,
            path=path,
            root=root,
            licence=licence or metadata,
            # Of the sidecars as well: an edited caption makes the image judged again.
            stamp="|".join((_stamp(path), *stamps)),
        )


class _BadSidecar(ValueError):
    """The sidecar exists and is of no use."""


def _said_of_root(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such folder"
    if isinstance(error, NotADirectoryError):
        return "this is not a folder"
    reason = error.strerror if isinstance(error, OSError) else None
    return f"this folder cannot be read ({reason or error})"


def _files(root: Path) -> Iterator[Path | OSError]:
    """All but sidecars, sorted by folder and name, metadata first. Links to folders are not followed, but named; of a
    folder that cannot be read there is its error."""
    unread: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=unread.append):
        yield from _taken(unread)
        # In place, since `os.walk` goes on with this list: sorted, and without the links.
        folders.sort()
        for linked in [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            folders.remove(linked)
            names.append(linked)
        present = set(names)
        # Metadata comes before the images that it describes.
        for name in sorted(names, key=lambda name: (name not in METADATA, name)):
            if not _is_sidecar(name, present):
                yield Path(folder, name)
    yield from _taken(unread)


def _taken(some: list[OSError]) -> list[OSError]:
    taken = some[:]
    some.clear()
    return taken


def _is_sidecar(name: str, present: set[str]) -> bool:
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in SIDECAR_SUFFIXES:
        return False
    return any(stem + ending in present for end in IMAGE_SUFFIXES for ending in (end, end.upper()))


def _sidecars(path: Path, root: Path) -> tuple[tuple[Caption, ...], str | None, list[str]]:
    captions: list[Caption] = []
    licence: str | None = None
    stamps: list[str] = []
    # Both may be there: their captions add up, and the licence is that of the .json.
    for suffix in SIDECAR_SUFFIXES:
        sidecar = path.with_suffix(suffix)
        text = _text(sidecar, root)
        if text is None:
            continue
        stamps.append(_stamp(sidecar))
        content: dict[str, object] = {"caption": text} if suffix == ".txt" else _object(text, sidecar.name)
        try:
            texts, metadata = _described(content, sidecar.name)
        except BadRow as error:
            raise _BadSidecar(f"{sidecar.name}: {error.dropped.detail}") from None
        captions += [Caption(one, "sidecar") for one in texts]
        licence = metadata or licence
    return tuple(captions), licence, stamps


def _text(path: Path, root: Path) -> str | None:
    """None where there is no such file."""
    try:
        os.lstat(path)
    except OSError as error:
        # The image's name may be as long as names may be, and .json is longer than its ending.
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None
        raise _BadSidecar(f"{path.name}: {error.strerror}") from None
    data = read_bounded(path, root, MAX_SIDECAR_BYTES)
    if isinstance(data, Dropped):
        raise _BadSidecar(f"{path.name}: {data.reason}" + (f" ({data.detail})" if data.detail else ""))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _BadSidecar(f"{path.name} is not UTF-8") from None


def _object(text: str, name: str) -> dict[str, object]:
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError):
        raise _BadSidecar(f"{name} is not JSON") from None
    if not isinstance(content, dict):
        raise _BadSidecar(f"{name} is not an object with `caption` or `captions`")
    return cast("dict[str, object]", content)


def _described(content: dict[str, object], name: str) -> tuple[list[str], str | None]:
    """Captions and licence; `BadRow` where they are not in UTF-8."""
    several = content.get("captions", [])
    if not isinstance(several, list):
        raise _BadSidecar(f"{name}: `captions` is not a list")
    texts = [*cast("list[object]", several), *([content["caption"]] if "caption" in content else ())]
    licence = content.get("licence", content.get("license"))
    if not all(isinstance(text, str) for text in texts) or not isinstance(licence, str | None):
        raise _BadSidecar(f"{name} holds a caption or licence that is not text")
    row = ColumnRow(name, {"captions": texts, "licence": licence}, {})
    return row.texts("captions"), row.licence()


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "unreadable"
    return f"{status.st_size}-{status.st_mtime_ns}"
