"""Tar archives of samples ("shards"), as WebDataset and img2dataset write them, local or in an object store.

A sample is an image beside its caption: `000.jpg` with `000.txt`, or `000.json` with the columns that img2dataset
writes. The checksums in that JSON are of the file that was downloaded, and img2dataset may have scaled it since, so
they are not compared with the member.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from types import MappingProxyType
from typing import Literal, cast

from pydantic import Field

from terminus.config.base import Config
from terminus.data import storage, tar
from terminus.data.caption import Caption
from terminus.data.record import Candidate, SourceMetadata, SourcePart
from terminus.data.sources.columns import FACTS, BadRow, ColumnRow, Columns, metadata
from terminus.data.sources.folder import MAX_SIDECAR_BYTES
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.images import Dropped

Role = Literal[
    "caption", "url", "width", "height", "similarity", "unsafe", "nsfw", "watermark", "aesthetic", "licence", "tags"
]  # fmt: skip
"""What a key of a sample's JSON can be for."""

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    **{role: names for role, names in FACTS.items() if role not in ("md5", "sha256")},
    "caption": ("caption", "captions", "text", "prompt", "alt_text"),
    "url": ("url",),
})  # fmt: skip
"""The names that each role goes by, the best first."""

IMAGES = ("jpg", "jpeg", "png", "webp")
MASK = "mask.png"
MAX_IMAGE_BYTES = 256 << 20
"""Held in memory for one sample; `data.filters.max_file_bytes` may say less."""
MAX_SHARDS = 1_000_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


class WebdatasetSource(Config):
    """Shards of samples: WebDataset's tar archives, and what img2dataset writes with that output format."""

    kind: Literal["webdataset"]
    """Tar archives of images with captions."""
    name: str
    """What the rows of this source are called in the store; keep it when the archives move."""
    path: str
    """An archive, a folder of archives, or a pattern such as data/{00000..00123}.tar; a path, s3:// or gs://."""
    image: str | None = None
    """Which ending is the image, if samples hold several: "png"; null is the one of jpg, jpeg, png and webp."""
    columns: dict[Role, str] = Field(default_factory=dict)
    """Which key of a sample's .json is what, where it is not called as usual: {caption: description}."""

    def count(self) -> int:
        """About how many samples there are, from the first archive; 0 for remote ones.

        `UserError` if there are no archives, or if the first cannot be opened.
        """
        shards = self._shards()
        with closing(storage.open_input(shards[0])) as file:
            if storage.is_remote(self.path):
                return 0
            return len(shards) * sum(1 for sample in tar.samples(file, lambda _: 0) if sample.key)

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """One per sample, archives in the order of their names; all before a damage is used, the rest has a reason."""
        for part in self.parts():
            yield from part.candidates()

    def parts(self) -> Iterator[SourcePart]:
        """The archives. One that did not change since its samples were judged need not be fetched again."""
        for shard in dict.fromkeys(self._shards()):
            try:
                stamp = storage.stamp(shard)
            except UserError:
                stamp = ""
            name = printable_caption(_below(shard, self.path))
            yield SourcePart(name, stamp, partial(self._samples, shard, name, stamp))

    def _shards(self) -> list[str]:
        expanded = _expanded(self.path)
        if len(expanded) > 1 or expanded[0] != self.path:
            return expanded
        found = storage.files(self.path, tar.ENDINGS)
        if not found:
            raise UserError(
                "there are no archives here",
                where=f"data.sources ({self.name}): {self.path}",
                rule=f"An archive is a file whose name ends in {', '.join(tar.ENDINGS)}",
                fix="Correct the path.",
            )
        return found

    def _samples(self, uri: str, shard: str, stamp: str) -> Iterator[Candidate]:
        try:
            file = storage.open_input(uri)
        except UserError as error:
            yield Candidate(self.name, shard, problem=Dropped("archive cannot be read", error.what), stamp="unreadable")
            return
        # A key that comes again, not next to the first: a second image must not take its id.
        met: dict[str, int] = {}
        with closing(file):
            for sample in tar.samples(file, self._wanted):
                if not sample.key:
                    yield Candidate(self.name, shard, problem=sample.problem, stamp=stamp)
                    continue
                key = printable_caption(sample.key)
                met[key] = met.get(key, 0) + 1
                if met[key] > 1:
                    sample.problem = Dropped("two samples have this key", key)
                    key = f"{key} ({met[key]})"
                yield self._candidate(sample, f"{shard}/{key}", stamp)

    def _wanted(self, ending: str) -> int:
        if ending in ("txt", "json"):
            return MAX_SIDECAR_BYTES
        image = ending in IMAGES if self.image is None else ending == self.image.lower()
        return MAX_IMAGE_BYTES if image or ending == MASK else 0

    def _candidate(self, sample: tar.TarSample, identity: str, stamp: str) -> Candidate:
        if sample.problem is not None:
            return Candidate(self.name, identity, problem=sample.problem, stamp=stamp)
        try:
            data = self._image(sample)
            row = self._row(sample, identity)
            captions = (*_text(sample), *row.captions("caption"))
            facts = metadata(row) if row.values else SourceMetadata()
            licence, url = row.licence(), row.text("url")
        except BadRow as error:
            return Candidate(self.name, identity, problem=error.dropped, stamp=stamp)
        # Of captions with the same text the first, so that the sidecar's origin stays.
        unique = {caption.text: caption for caption in reversed(captions)}
        return Candidate(
            self.name,
            identity,
            tuple(caption for caption in captions if unique[caption.text] is caption),
            data=data,
            url=url,
            metadata=facts,
            mask=sample.fields.get(MASK),
            licence=licence,
            stamp=stamp,
        )

    def _image(self, sample: tar.TarSample) -> bytes:
        endings = IMAGES if self.image is None else (self.image.lower(),)
        present = [ending for ending in endings if ending in sample.fields]
        if not present:
            raise BadRow("sample without an image", f"no member ends in {', '.join(endings)}")
        if len(present) > 1:
            raise BadRow("several images in a sample", f"{', '.join(present)}; `image` of the source says which one")
        return sample.fields[present[0]]

    def _row(self, sample: tar.TarSample, identity: str) -> ColumnRow:
        text = sample.fields.get("json")
        if text is None:
            return ColumnRow(identity, {}, {})
        try:
            content: object = json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            raise BadRow("caption cannot be read", "the .json is not JSON in UTF-8") from None
        if not isinstance(content, dict):
            raise BadRow("caption cannot be read", "the .json is not an object")
        values = cast("dict[str, object]", content)
        found = Columns(NAMES, {role: name for role, name in self.columns.items()}).among(list(values))
        return ColumnRow(identity, {role: values[name] for role, name in found.items()}, found)


def _text(sample: tar.TarSample) -> tuple[Caption, ...]:
    if (raw := sample.fields.get("txt")) is None:
        return ()
    try:
        row = ColumnRow(sample.key, {"txt": raw.decode("utf-8-sig")}, {"txt": "sidecar"})
    except UnicodeDecodeError:
        raise BadRow("caption cannot be read", "the .txt is not UTF-8") from None
    return row.captions("txt")


def _expanded(pattern: str) -> list[str]:
    """{a,b} and {00..12} written out, in the order of the pattern; other braces stay as they are."""
    choices: list[list[str]] = []
    end = 0
    for match in _BRACES.finditer(pattern):
        # Braces that are neither a range nor a list are part of a name.
        span = _RANGE.fullmatch(match[1])
        if span is None and "," not in match[1]:
            continue
        choices.append([pattern[end : match.start()]])
        if span is None:
            choices.append(match[1].split(","))
        else:
            low, high = int(span[1]), int(span[2])
            # Before the list is made: {0..999999999999} would not fit in memory.
            _bounded(pattern, high - low + 1)
            choices.append([str(number).zfill(len(span[1])) for number in range(low, high + 1)])
        end = match.end()
    choices.append([pattern[end:]])
    _bounded(pattern, math.prod(len(parts) for parts in choices))
    return ["".join(parts) for parts in itertools.product(*choices)]


def _bounded(pattern: str, count: int) -> None:
    if not 1 <= count <= MAX_SHARDS:
        raise UserError(
            f"this names {max(0, count)} archives",
            where=pattern,
            rule=f"A pattern names 1 to {MAX_SHARDS} of them, {{LOW..HIGH}} with the lower number first",
        )


def _below(uri: str, place: str) -> str:
    """The archive's path below the folder, or below the part of the pattern without braces: moving keeps the ids."""
    root = place.partition("{")[0].rpartition("/")[0] if uri == place or "{" in place else place.rstrip("/")
    if storage.is_remote(uri):
        return uri[len(root) + 1 :] if uri.startswith(root + "/") else uri
    return os.path.relpath(uri, root or os.curdir)
