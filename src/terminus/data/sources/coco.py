"""Images with several captions each, as COCO's `captions_train2017.json` lists them.

The file has `images`, `annotations` (one caption each, by `image_id`) and `licenses`, in any order. It is read as a
stream, twice: first the captions, which stay in memory as text, then the images, which do not.
"""

from __future__ import annotations

import codecs
import itertools
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from terminus.conditioning import Size
from terminus.config.base import Config
from terminus.data import storage
from terminus.data.caption import Caption
from terminus.data.record import Candidate, SourceMetadata
from terminus.data.sources.columns import MAX_CAPTION_BYTES, one_line
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.images import Dropped

READ_BYTES = 1 << 20
MAX_ENTRY = 16 << 20
"""Longest entry of a list, in characters."""
MAX_IMAGE_BYTES = 100_000_000
"""Of a remote file."""
READERS = 16
"""Files of a remote folder that are read at once."""

_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)")
_DRIVE = re.compile(r"[A-Za-z]:")


class CocoSource(Config):
    """Captions in COCO's JSON format, with a folder of images or their links."""

    kind: Literal["coco"]
    """COCO captions."""
    name: str
    """What the rows of this source are called in the store; keep it when the files move."""
    path: str
    """The JSON file, such as captions_train2017.json: a path, s3:// or gs://."""
    images: str | None = None
    """The folder that `file_name` is in: a path, s3:// or gs://; null downloads `coco_url`, or else `flickr_url`."""

    def count(self) -> int:
        """How many images are listed; a `UserError` if the file is none of captions, or if there is no folder."""
        self._folder()
        return sum(1 for key, _, _ in self._entries() if key == "images")

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """One per image in the order of the list; before them captions that cannot be read, after them captions of
        images that are not listed."""
        # First reading: captions and licences, which may stand behind the images they belong to.
        folder = self._folder()
        notes = _Notes()
        for key, index, entry in self._entries():
            if key == "annotations" and (problem := notes.annotate(entry)):
                yield Candidate(self.name, f"annotations[{index}]", problem=problem)
            elif key == "licenses":
                notes.license(entry)
        # Second reading: the images, with what was noted of each.
        images = (self._image(index, entry, notes) for key, index, entry in self._entries() if key == "images")
        yield from _read(images) if folder is None and self.images else images
        # Captions that no image has asked for.
        for key, texts in notes.texts.items():
            if key not in notes.seen:
                problem = Dropped("caption without image", printable_caption(texts[:200]))
                yield Candidate(self.name, f"annotations of {key}", problem=problem)

    def _folder(self) -> Path | None:
        """The local folder of images; None where there is none or it is remote."""
        if self.images is None or storage.is_remote(self.images):
            return None
        if not os.path.isdir(self.images):
            raise UserError(
                "this is not a folder" if os.path.exists(self.images) else "there is no such folder",
                where=f"data.sources ({self.name}): {self.images}",
                rule="A coco source finds `file_name` in the folder `images`",
                fix="Correct the path; it is relative to where the command runs.",
            )
        return Path(self.images).absolute()

    def _entries(self) -> Iterator[tuple[str, int, object]]:
        """The entries of each list at the top: its key, each entry, and its place in the list."""
        listed: set[str] = set()
        try:
            with closing(storage.open_input(self.path)) as file:
                for key, index, entry in _Json(file).entries():
                    if key == "annotations" and index == 0:
                        self._check(entry)
                    listed.add(key)
                    yield key, index, entry
        except (_NotJson, UnicodeDecodeError, RecursionError, OSError) as error:
            raise self._wrong(f"this cannot be read as JSON ({error or type(error).__name__})") from None
        if absent := [key for key in ("images", "annotations") if key not in listed]:
            raise self._wrong(f"this file has no {' and no '.join(absent)}")

    def _check(self, entry: object) -> None:
        if isinstance(entry, dict) and "caption" not in entry and {"bbox", "segmentation", "keypoints"} & set(entry):
            raise self._wrong("the annotations of this file are no captions")

    def _wrong(self, what: str) -> UserError:
        return UserError(
            what,
            where=f"data.sources ({self.name}): {self.path}",
            rule="COCO captions are a JSON object with the lists `images` and `annotations`, in UTF-8",
            fix="Name a file such as captions_train2017.json.",
        )

    def _image(self, index: int, entry: object, notes: _Notes) -> Candidate:
        values = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
        key = _key(values.get("id"))
        if key is None:
            return Candidate(
                self.name, f"images[{index}]", problem=Dropped("image entry cannot be read", "it has no id")
            )
        if key in notes.seen:
            return Candidate(self.name, f"{key} (images[{index}])", problem=Dropped("two images have this id", key))
        notes.seen.add(key)
        captions = tuple(Caption(text, "coco") for text in dict.fromkeys(notes.texts.get(key, "").split("\n")) if text)
        candidate = Candidate(
            self.name,
            key,
            captions,
            metadata=SourceMetadata(size=_size(values)),
            licence=notes.licences.get(_key(values.get("license")) or ""),
        )
        return self._found(candidate, values)

    def _found(self, candidate: Candidate, values: dict[str, object]) -> Candidate:
        """The candidate with the place of the image's bytes, or the reason why there are none."""
        if self.images is None:
            return _linked(candidate, values)
        name = values.get("file_name")
        if not isinstance(name, str) or not name:
            return replace(candidate, problem=Dropped("row names no image", "no file_name"))
        if not _below(name):
            return replace(candidate, problem=Dropped("name leads out of the folder", printable_caption(name[:200])))
        if storage.is_remote(self.images):
            return replace(candidate, url=f"{self.images.rstrip('/')}/{name}")
        return _in_folder(candidate, Path(self.images).absolute(), name)


def _linked(candidate: Candidate, values: dict[str, object]) -> Candidate:
    """The candidate with the URL that the list gives."""
    links = [values.get(name) for name in ("coco_url", "flickr_url")]
    url = next((link for link in links if isinstance(link, str) and link), None)
    if url is None or not _valid(url):
        return replace(candidate, problem=Dropped("row names no image", "neither coco_url nor flickr_url"))
    return replace(candidate, url=url)


def _in_folder(candidate: Candidate, root: Path, name: str) -> Candidate:
    """The candidate with its file in a local folder."""
    try:
        status = os.stat(root / name)
    except OSError as error:
        reason = "image is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        detail = f"{name[:200]}: {error.strerror or type(error).__name__}"
        return replace(candidate, problem=Dropped(reason, printable_caption(detail)))
    return replace(candidate, path=root / name, root=root, stamp=f"{status.st_size}-{status.st_mtime_ns}")


@dataclass
class _Notes:
    """The facts that the first reading keeps."""

    texts: dict[str, str] = field(default_factory=dict[str, str])
    """Image id to its captions, one a line: a fifth of the memory of as many objects."""
    licences: dict[str, str] = field(default_factory=dict[str, str])
    seen: set[str] = field(default_factory=set[str])
    """Ids of images so far."""

    def annotate(self, entry: object) -> Dropped | None:
        """Takes a caption, or says why not."""
        values = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
        key, text = _key(values.get("image_id")), values.get("caption")
        if key is None or not isinstance(text, str) or not _valid(text):
            return Dropped("caption cannot be read", "no image_id, or no caption in UTF-8")
        if len(text.encode()) > MAX_CAPTION_BYTES:
            return Dropped("caption cannot be read", f"it is longer than {MAX_CAPTION_BYTES} bytes")
        self.texts[key] = f"{before}\n{one_line(text)}" if (before := self.texts.get(key)) else one_line(text)
        return None

    def license(self, entry: object) -> None:
        """Takes the name of a licence: SPDX's where it is one of Creative Commons."""
        values = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
        key, url, name = _key(values.get("id")), values.get("url"), values.get("name")
        if key is None:
            return
        if isinstance(url, str) and (known := _CREATIVE_COMMONS.search(url)):
            self.licences[key] = f"CC-{known[1].upper()}-{known[2]}"
        elif text := next((text for text in (name, url) if isinstance(text, str) and text), None):
            self.licences[key] = printable_caption(text[:200])


class _NotJson(ValueError):
    """With what is wrong."""


class _Json:
    """The lists of a JSON object, entry by entry: the standard library parses each out of a window of the file."""

    def __init__(self, file: object) -> None:
        self.file = cast("codecs._ReadableStream", file)  # pyright: ignore[reportPrivateUsage]
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.place, self.ended = "", 0, False

    def entries(self) -> Iterator[tuple[str, int, object]]:
        """Key, place in its list, and entry; what is no list is passed over."""
        self._take("{")
        while self._next() != "}":
            key = self._value()
            self._take(":")
            if self._next() != "[":
                self._value()
            else:
                self.place += 1
                for index in itertools.count():
                    if self._next() == "]":
                        break
                    yield str(key), index, self._value()
                    if self._next() != "]":
                        self._take(",")
                self.place += 1
            if self._next() != "}":
                self._take(",")

    def _value(self) -> object:
        while True:
            try:
                # Fails also where the window ends within the value: then more of the file is read, up to a limit.
                value, end = _DECODER.raw_decode(self.text, self.place)
            except ValueError as error:
                if len(self.text) - self.place > MAX_ENTRY or not self._more():
                    raise _NotJson(str(error).partition(":")[0]) from None
                continue
            # The first half of a number is a number, too: what follows must be seen.
            if self.ended or self.text[end : end + 1] in tuple(" \t\r\n,:]}"):
                self.place = end
                return value
            self._more()

    def _next(self) -> str:
        """The next character that is not white space, which is not taken."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._more():
                raise _NotJson("the file ends too early")

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise _NotJson(f"no {character!r} where there must be one")
        self.place += 1

    def _more(self) -> bool:
        if self.ended:
            return False
        data = self.file.read(READ_BYTES)
        self.ended = not data
        # What is read already falls out of the window.
        self.text, self.place = self.text[self.place :] + self.decoder.decode(data, final=self.ended), 0
        return not self.ended


_DECODER = json.JSONDecoder()


def _read(candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    """With the bytes of remote files, which are read a few at a time, in order."""
    with ThreadPoolExecutor(READERS) as pool:
        while group := list(itertools.islice(candidates, READERS)):
            yield from pool.map(_with_data, group)


def _with_data(candidate: Candidate) -> Candidate:
    if candidate.url is None:
        return candidate
    try:
        with closing(storage.open_input(candidate.url)) as file:
            if (size := file.size()) > MAX_IMAGE_BYTES:
                return replace(candidate, url=None, problem=Dropped("file too large", f"{size} bytes"))
            return replace(candidate, url=None, data=file.read())
    except UserError as error:
        return replace(candidate, url=None, problem=Dropped("cannot be read", error.what[:200]))
    except OSError as error:
        return replace(candidate, url=None, problem=Dropped("cannot be read", printable_caption(str(error)[:200])))


def _key(value: object) -> str | None:
    """An id as text, so that 139 and "139" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return printable_caption(str(value))[:200] or None


def _size(values: dict[str, object]) -> Size | None:
    height, width = values.get("height"), values.get("width")
    return Size(height, width) if type(height) is int and type(width) is int and min(height, width) > 0 else None


def _valid(text: str) -> bool:
    """Whether it has an encoding: JSON can hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(name: str) -> bool:
    """Whether a name stays in its folder, on any system."""
    odd = name.startswith(("/", "\\")) or "\\" in name or "\0" in name or _DRIVE.match(name) or not _valid(name)
    return not odd and ".." not in name.split("/")
