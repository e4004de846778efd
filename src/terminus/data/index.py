"""Which rows of a version are in which bucket and of which source: found once, and kept beside the table.

To find out, a scan reads a few columns of every row: minutes for a billion of them, at every start of every process. A
version never changes, so what was found holds for ever, and the order of a run that is continued is that of its
beginning whatever happened to the table meanwhile. Whoever cannot write there scans again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast
from uuid import uuid4
from zlib import crc32

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from terminus.data import storage
from terminus.data.store import View
from terminus.errors import UserError

_SCHEMA = pa.schema([("first", pa.int64()), ("ends", pa.int64())])
_SOURCES, _CHECKSUM = b"sources", b"checksum"
_FORMAT = 2
"""Part of the files' names; files of another format are not read."""


class Bucket(NamedTuple):
    """The rows of one bucket as runs of consecutive ones."""

    first: Int64[np.ndarray, " runs"]
    """Row number of the first of each run."""
    ends: Int64[np.ndarray, " runs"]
    """How many rows there are up to the end of each run."""
    sources: dict[str, int]
    """How many are of each source, in their order."""


Find = Callable[[], tuple[Sequence[Bucket], bool]]
"""Finds, and says whether all of the table could be read."""


def kept(view: View, where: str, find: Find) -> Sequence[Bucket]:
    """The result of `find` for the rows of this version that match a condition, kept from the first time on.

    What was found in a table that is damaged is not kept: it may be restored.
    It is one of Lance's own identifiers of the commit that names the file, so that a table that was made anew at the
    same place, with the same version numbers, is another one.
    """
    commit = view.dataset.read_transaction(view.version)
    name = hashlib.sha256(f"{_FORMAT} {commit.uuid} {view.version} {where}".encode()).hexdigest()[:32]
    place = f"{str(view.dataset.uri).rstrip('/')}.index/{name}.arrow"
    # Whatever is wrong with a kept file, the rows are then found anew.
    with suppress(OSError, pa.ArrowException, ValueError, KeyError, UserError):
        return _read(place)
    found, whole = find()
    if whole:
        with suppress(OSError, pa.ArrowException, UserError):
            _write(place, found)
    return found


def _read(place: str) -> list[Bucket]:
    if "://" in place:
        with storage.open_input(place) as file:
            return _buckets(pa.ipc.open_file(pa.BufferReader(file.read())))
    # Mapped: the processes of a machine share it, and pages that are not asked for are not read.
    return _buckets(pa.ipc.open_file(pa.memory_map(place)))


def _buckets(reader: pa.RecordBatchFileReader) -> list[Bucket]:  # pyright: ignore[reportUnknownParameterType]
    sources = cast("list[dict[str, int]]", json.loads(reader.schema.metadata[_SOURCES]))
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    same = int(reader.schema.metadata[_CHECKSUM]) == _checksum(reader.schema.metadata[_SOURCES], batches)
    if not same or reader.schema.remove_metadata() != _SCHEMA:
        raise ValueError("this index is not what was written")
    return [
        Bucket(batch.column("first").to_numpy(), batch.column("ends").to_numpy(), named)
        for batch, named in zip(batches, sources, strict=True)
    ]


def _write(place: str, buckets: Sequence[Bucket]) -> None:
    sources = json.dumps([bucket.sources for bucket in buckets]).encode()
    batches = [pa.record_batch([pa.array(one.first), pa.array(one.ends)], names=_SCHEMA.names) for one in buckets]
    schema = _SCHEMA.with_metadata({_SOURCES: sources, _CHECKSUM: str(_checksum(sources, batches)).encode()})
    if "://" in place:
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, schema) as writer:
            _write_batches(writer, batches)
        storage.write_whole_file(place, content.getvalue().to_pybytes())
        return
    path = Path(place)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{uuid4().hex}.partial")  # several processes may begin at once
    with pa.OSFile(str(partial), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        _write_batches(writer, batches)
    partial.replace(path)


def _write_batches(writer: pa.RecordBatchFileWriter, batches: Sequence[pa.RecordBatch]) -> None:  # pyright: ignore[reportUnknownParameterType]
    for batch in batches:
        writer.write_batch(batch)


def _checksum(sources: bytes, batches: Sequence[pa.RecordBatch]) -> int:  # pyright: ignore[reportUnknownParameterType]
    """CRC-32 of all that the file says."""
    total = crc32(sources)
    for batch in batches:
        for column in batch.columns:
            total = crc32(column.to_numpy(), total)
    return total
