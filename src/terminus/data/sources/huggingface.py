"""Data sets of the Hugging Face hub and of the `datasets` library: Parquet and Arrow files, read as what they are.

The library itself is not needed, and nothing of a data set is ever executed: a repository that consists of a loading
script has no files to read, and is refused. A repository is read at one commit, which the recipe names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

import pyarrow as pa
from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.data import storage
from terminus.data.record import Candidate, SourcePart
from terminus.data.sources import tables
from terminus.data.sources.columns import FACTS, BadRow, ColumnRow, Columns, column_checksum, metadata
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.images import Dropped

Role = Literal[
    "url", "image", "caption", "width", "height", "similarity", "unsafe", "nsfw", "watermark", "aesthetic",
    "md5", "sha256", "licence", "tags",
]  # fmt: skip
"""What a column can be for."""

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    **FACTS,
    "url": ("url", "image_url", "link"),
    "image": ("image", "img", "jpg", "png"),
    "caption": ("text", "caption", "captions", "prompt", "sentence", "alt_text"),
})  # fmt: skip
"""The names that each role goes by, the best first."""

ENDINGS = (".parquet", ".arrow")
METADATA = ("/metadata.csv", "/metadata.jsonl")
"""Beside images, where there are no tables that hold them: what `kind: folder` reads."""
ROWS = 32
"""Decoded at once of an Arrow file, whose batches may hold a thousand images."""
MAX_CARD_BYTES = 262_144

_BROKEN = (OSError, pa.ArrowException, ValueError, NotImplementedError)
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]{1,60})[\"']?[ \t]*$", re.MULTILINE)


class HuggingfaceSource(Config):
    """A data set of the Hugging Face hub, or a folder of one: a clone, or what `save_to_disk` wrote."""

    kind: Literal["huggingface"]
    """Parquet or Arrow files laid out as the hub does it."""
    name: str
    """What the rows of this source are called in the store; keep it when the folder moves."""
    path: str | None = None
    """The folder: a path, s3:// or gs://."""
    repo: str | None = Field(default=None, pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")
    """Instead of a folder: the id of a data set on the hub. Its files are fetched once, into the hub's cache."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """The commit of `repo` to read, so that every run reads the same."""
    split: str | None = "train"
    """Read the files whose names or folders say so (`data/train-00000.parquet`); null is all files."""
    columns: dict[Role, str] = Field(default_factory=dict)
    """Which column is what, where it is not called as usual: {image: photo, caption: description}."""

    @model_validator(mode="after")
    def _one_place(self) -> HuggingfaceSource:
        if (self.path is None) == (self.repo is None):
            raise ValueError("a huggingface source has either a path or a repo")
        if (self.repo is None) != (self.revision is None):
            raise ValueError("repo and revision (a commit, 40 hexadecimal digits) go together")
        return self

    def count(self) -> int:
        """About how many rows there are; `UserError` if the first file has no images or no captions."""
        found = self._files(root := self._root())
        first = found[0]
        if first.endswith(".parquet"):
            return tables.estimate(first, self._columns()) * len(found)
        next(self._arrow(first, root), None)
        return 0

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """One per row, files in the order of their names; unreadable files and rows with the reason."""
        for part in self.parts():
            yield from part.candidates()

    def parts(self) -> Iterator[SourcePart]:
        """The files. One that did not change since its rows were judged need not be read again."""
        root = self._root()
        licence = _card_licence(root)
        for number, uri in enumerate(self._files(root)):
            name = printable_caption(uri.removeprefix(root.rstrip("/") + "/"))
            try:
                stamp = f"{storage.stamp(uri)} {licence}"
            except UserError:
                stamp = ""
            yield SourcePart(name, stamp, partial(self._file, uri, root, licence, number == 0))

    def _file(self, uri: str, root: str, licence: str | None, first: bool) -> Iterator[Candidate]:
        """The first must have the columns (`UserError`)."""
        try:
            for candidate in self._rows(uri, root):
                yield replace(candidate, licence=candidate.licence or licence)
        except UserError as error:
            if first:
                raise
            name = printable_caption(uri.removeprefix(root.rstrip("/") + "/"))
            yield Candidate(self.name, f"{name}#0", problem=Dropped("table cannot be read", error.what))

    def _root(self) -> str:
        return _fetched(self.repo, self.revision or "") if self.repo else str(self.path)

    def _files(self, root: str) -> list[str]:
        every = storage.files(root, ENDINGS)
        # The hub's rule: the split's name stands between separators, in the file's name or a folder's.
        metadata = None if self.split is None else re.compile(rf"(?:^|[/._ -]){re.escape(self.split)}(?=[/._ -]|$)")
        found = [uri for uri in every if metadata is None or metadata.search(uri[len(root) :])]
        # Whether any file says of which split it is; if none does, all of them are what there is to train on.
        named = any(
            re.search(r"(?:^|[/._ -])(train|test|validation|dev|val)(?=[/._ -])", uri[len(root) :]) for uri in every
        )
        if found or (every and not named and self.split == "train"):
            return found or every
        if every:
            listed = ", ".join(printable_caption(uri[len(root) :].lstrip("/")) for uri in every[:10])
            raise UserError(
                f"there are no files of the split {self.split!r} here",
                where=f"data.sources ({self.name}): {root}",
                rule=f"The files are {listed}",
                fix="Set `split` to one of them, or to null for all.",
            )
        raise self._no_tables(root)

    def _no_tables(self, root: str) -> UserError:
        where = f"data.sources ({self.name}): {root}"
        # Nothing that could be read, or images beside metadata, which `kind: folder` reads.
        if not (beside := storage.files(root, METADATA)):
            return UserError(
                "there are no Parquet or Arrow files here",
                where=where,
                rule="Loading scripts are never executed",
                fix="Use the commit of the repository's branch refs/convert/parquet, where it has one.",
            )
        folder, before = root, "Write"
        if self.repo:
            fetch = f"hf download {self.repo} --repo-type dataset --revision {self.revision} --local-dir FOLDER"
            folder, before = "FOLDER", f"Fetch the images with `{fetch}`, and write"
        elif storage.is_remote(root):
            folder, before = "FOLDER", "Copy all of it to this machine, and write"
        return UserError(
            f"there are no Parquet or Arrow files here, but {printable_caption(beside[0][len(root) :].lstrip('/'))}",
            where=where,
            rule="Images beside a metadata.csv or metadata.jsonl are a folder of images with captions",
            fix=f"{before} `{{kind: folder, name: {self.name}, path: {folder}}}`.",
        )

    def _columns(self) -> Columns:
        return Columns(NAMES, {role: name for role, name in self.columns.items()}, (("image", "url"), ("caption",)))

    def _rows(self, uri: str, root: str) -> Iterator[Candidate]:
        if uri.lower().endswith(".arrow"):
            yield from self._arrow(uri, root)
            return
        below = printable_caption(uri.removeprefix(root.rstrip("/") + "/"))
        folder, slash, _ = below.rpartition("/")
        for candidate in tables.candidates(self.name, uri, self._columns(), self._candidate):
            yield replace(candidate, source_id=f"{folder}{slash}{candidate.source_id}")

    def _arrow(self, uri: str, root: str) -> Iterator[Candidate]:
        """The rows of an IPC stream, as `save_to_disk` writes it."""
        name = printable_caption(uri.removeprefix(root.rstrip("/") + "/"))
        number = 0
        with closing(storage.open_input(uri)) as file:
            try:
                reader = pa.ipc.open_stream(file)
                present: list[str] = reader.schema.names
                found = self._columns().find(present, uri)
                for batch in reader:
                    # Arrow does not check what it reads: offsets of a damaged file would lead outside its buffers.
                    batch.validate(full=True)
                    for row in _unpacked(batch, found):
                        yield self._read(ColumnRow(f"{name}#{number}", row, found))
                        number += 1
            except _BROKEN as error:
                detail = (str(error).splitlines() or [type(error).__name__])[0]
                problem = Dropped("table cannot be read", f"from this row on: {printable_caption(detail[:300])}")
                yield Candidate(self.name, f"{name}#{number}", problem=problem, stamp=storage.stamp(uri))

    def _read(self, row: ColumnRow) -> Candidate:
        try:
            return self._candidate(row)
        except BadRow as error:
            return Candidate(self.name, row.id, problem=error.dropped)

    def _candidate(self, row: ColumnRow) -> Candidate:
        data, url = row.image()
        return Candidate(
            self.name,
            row.id,
            row.captions("caption"),
            data=data,
            url=url,
            checksum=column_checksum(row),
            metadata=metadata(row),
            licence=row.licence(),
        )


def _unpacked(batch: pa.RecordBatch, found: Mapping[str, str]) -> Iterator[dict[str, object]]:  # pyright: ignore[reportUnknownParameterType]
    for start in range(0, batch.num_rows, ROWS):
        part = batch.slice(start, ROWS)
        columns = [cast("list[object]", part.column(name).to_pylist()) for name in found.values()]
        for values in zip(*columns, strict=True):
            yield dict(zip(found, values, strict=True))


def _card_licence(root: str) -> str | None:
    """The licence in the head of README.md, if it is one plain word."""
    uri = f"{root.rstrip('/')}/README.md"
    try:
        with closing(storage.open_input(uri)) as file:
            text = bytes(file.read(MAX_CARD_BYTES)).decode(errors="replace")
    except (UserError, OSError):
        return None
    # Only the YAML head between the two lines of dashes.
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = _LICENCE.search(head)
    return found[1] if found else None


def _fetched(repo: str, revision: str) -> str:
    """The folder of the repository's tables at that commit; what is there already is not fetched again."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, constants, snapshot_download

    # Plain files of their own: the hub's snapshots are links that lead out of their folder.
    folder = Path(constants.HF_HOME, "terminus", repo.replace("/", "--"), revision)
    checked = folder / ".checked"
    try:
        patterns = [*(f"*{ending}" for ending in ENDINGS), "*metadata.csv", "*metadata.jsonl", "README.md"]
        snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns, local_dir=folder)
        if not checked.exists():  # the client compares sizes only
            found = HfApi().verify_repo_checksums(repo, repo_type="dataset", revision=revision, local_dir=folder)
            _refuse_damaged(folder, [str(one["path"]) for one in found.mismatches], f"{repo}@{revision}")
            checked.touch()
    except (HTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"this data set cannot be fetched ({reason})",
            where=f"data.sources: {repo}@{revision}",
            rule="It must exist at that commit; a gated one needs HF_TOKEN of an account that may read it",
            fix="Correct repo and revision, or log in with `hf auth login`; the same command continues.",
        ) from None
    return str(folder)


def _refuse_damaged(folder: Path, names: list[str], where: str) -> None:
    """Files whose checksum is not that of the commit are deleted, so that the next run fetches them again."""
    for name in names:
        (folder / name).unlink()
    if names:
        raise UserError(
            f"what arrived as {', '.join(map(printable_caption, names[:5]))} is not what the hub lists",
            where=f"data.sources: {where}",
            rule="The checksum of each file is that of the commit",
            fix="The damaged files are deleted; the same command fetches them again.",
        )
