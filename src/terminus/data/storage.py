"""Storage of a data set's files: a local path, or s3://BUCKET/KEY and gs://BUCKET/KEY, read in the same way.

Remote places go through pyarrow's own clients. They take credentials, region and endpoint from the environment
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...), never from a recipe, so no recipe holds a secret. What is public is read
without an account where the environment says so, in the words that Lance's client knows too.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
from pyarrow import fs

from terminus.errors import UserError

SCHEMES = ("s3", "gs")
"""Of remote places."""
_ENVIRONMENT = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION",
    "AWS_SKIP_SIGNATURE", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SKIP_SIGNATURE", "CLOUD_STORAGE_EMULATOR_ENDPOINT",
)  # fmt: skip
"""What decides how a client is made."""
_PATIENCE = timedelta(seconds=60)
"""Of the client for gs://, whose own is 15 minutes: that long it would look for an account that is not there."""


def is_remote(uri: str) -> bool:
    """Whether it is in an object store; anything else is a local path. `UserError` for any other scheme."""
    scheme, separator, _ = uri.partition("://")
    if not separator or "/" in scheme:
        return False
    if scheme not in SCHEMES:
        raise UserError(
            f"files cannot be read through {scheme}://",
            where=uri,
            rule="A place is a local path, s3://BUCKET/KEY or gs://BUCKET/KEY",
            fix="Correct the path, or copy the files to one of these.",
        )
    return True


def files(uri: str, endings: tuple[str, ...]) -> list[str]:
    """The files under a folder and all folders in it whose names end so (in any case), sorted; or the file itself.

    Names that begin with "." or "_" are what other programs keep for themselves (`_temporary`, `.cache`) and are left
    out, with all that lies under them. `UserError` if nothing is there, if it may not be read, or if a link leads out.
    """
    wanted = tuple(ending.lower() for ending in endings)
    found = _remote_files(uri) if is_remote(uri) else _local_files(uri)
    return sorted(name for name in found if name.lower().endswith(wanted))


def open_input(uri: str) -> pa.NativeFile:  # pyright: ignore[reportUnknownParameterType]
    """The file, open for reading at any position; close it. `UserError` if that is not possible.

    What fails later, while it is read, is an `OSError`.
    """
    if is_remote(uri):
        store, path = _remote(uri)
        try:
            return store.open_input_file(path)
        except (OSError, pa.ArrowException) as error:
            _unreadable(uri, error)
    _regular(uri)
    try:
        return pa.OSFile(os.fsencode(uri))
    except OSError as error:
        _unreadable(uri, error)


def write_whole_file(uri: str, data: bytes) -> None:
    """A remote file with these bytes, instead of the one that may be there: whole or not at all.

    What goes wrong is an `OSError` or `pa.ArrowException`; a place that cannot be one is a `UserError`.
    """
    store, path = _remote(uri)
    with store.open_output_stream(path) as stream:
        stream.write(data)


def size(uri: str) -> int:
    """Bytes of the file."""
    if not is_remote(uri):
        return _regular(uri).st_size
    with open_input(uri) as file:
        return int(file.size())


def stamp(uri: str) -> str:
    """Changes when the file does: its size, and its time of change or (remote) its ETag. The file is not read."""
    if not is_remote(uri):
        status = _regular(uri)
        return f"{status.st_size}-{status.st_mtime_ns}"
    with open_input(uri) as file:
        facts: dict[str, bytes] = {str(name).lower(): value for name, value in (file.metadata() or {}).items()}
        # The best that the store offers; names of headers differ in case between stores.
        mark = facts.get("etag") or facts.get("generation") or facts.get("last-modified") or b""
        return f"{file.size()}-{mark.decode(errors='replace').strip(chr(34))}"


def _remote(uri: str) -> tuple[fs.FileSystem, str]:  # pyright: ignore[reportUnknownParameterType]
    """The store, and bucket/key in it. The key is taken as it stands: %20 is three letters of it."""
    scheme, _, path = uri.partition("://")
    authority, _, key = path.partition("/")
    bucket = authority.rpartition("@")[2]
    if not bucket:
        raise UserError("the bucket is missing", where=uri, rule=f"A place there is {scheme}://BUCKET/KEY")
    try:
        store = _store(f"{scheme}://{authority}", tuple(os.environ.get(name) for name in _ENVIRONMENT))
    except (OSError, pa.ArrowException, NotImplementedError) as error:
        _unreadable(uri, error)
    return store, f"{bucket}/{key}".rstrip("/")


@lru_cache(maxsize=64)
def _store(bucket: str, environment: tuple[str | None, ...]) -> fs.FileSystem:  # pyright: ignore[reportUnknownParameterType]
    """One client for a bucket as long as the environment says the same; finding its region takes a request."""
    said = dict(zip(_ENVIRONMENT, environment, strict=True))
    scheme, _, authority = bucket.partition("://")
    if scheme == "gs":
        anonymous = authority.startswith("anonymous@") or _yes(said["GOOGLE_SKIP_SIGNATURE"])
        return fs.GcsFileSystem(anonymous=anonymous, retry_time_limit=_PATIENCE)
    if _yes(said["AWS_SKIP_SIGNATURE"]):
        # pyarrow's own client does not know this variable, so the anonymous one is built here.
        server = said["AWS_ENDPOINT_URL_S3"] or said["AWS_ENDPOINT_URL"]
        kind, _, address = (server or "").rpartition("://")
        region = said["AWS_DEFAULT_REGION"] or (None if server else fs.resolve_s3_region(authority))
        return fs.S3FileSystem(
            anonymous=True, region=region, scheme=kind or "https", endpoint_override=address.rstrip("/") or None
        )
    return fs.FileSystem.from_uri(bucket)[0]


def _yes(said: str | None) -> bool:
    return (said or "").lower() in ("1", "true")


def _remote_files(uri: str) -> Iterator[str]:
    store, root = _remote(uri)
    start = uri[: len(uri.rstrip("/"))]
    try:
        here = store.get_file_info(root)
        if here.type == fs.FileType.NotFound:
            _missing(uri)
        if here.type == fs.FileType.File:
            yield start
            return
        found = store.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        _unreadable(uri, error)
    for info in found:
        below = info.path[len(root) + 1 :]
        if info.type == fs.FileType.File and not _private(below):
            yield f"{start}/{below}"


def _local_files(uri: str) -> Iterator[str]:
    if not os.path.isdir(uri):
        _regular(uri)
        yield uri
        return
    root = Path(uri)
    for folder, folders, names in os.walk(root, onerror=lambda error: _unreadable(uri, error)):
        # In place, so that `os.walk` does not enter them.
        folders[:] = [name for name in folders if not _private(name)]
        for name in [*folders, *names]:
            path = Path(folder, name)
            if _private(name) or (name in folders and not path.is_symlink()):
                continue
            # A link, also to a folder, which the walk does not enter.
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise UserError(
                    "this link leads out of the folder",
                    where=os.fsencode(path).decode(errors="backslashreplace"),
                    rule=f"Only what lies in {uri} is read",
                    fix="Remove the link, or name its target as the path.",
                )
            if path.is_file():
                yield str(path)


def _private(below: str) -> bool:
    return any(part.startswith((".", "_")) for part in below.split("/"))


def _regular(path: str) -> os.stat_result:
    """The open local file, if it can be read without waiting: no FIFO, no device."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        _missing(path)
    except (OSError, ValueError) as error:
        _unreadable(path, error)
    if not stat.S_ISREG(status.st_mode):
        raise UserError("this is not a regular file", where=path, rule="Data is read from files")
    return status


def _missing(uri: str) -> NoReturn:
    place = "in this bucket" if is_remote(uri) else "on this machine"
    raise UserError(
        f"there is nothing under this name {place}",
        where=uri,
        rule="A source reads a file, or the files under a folder",
        fix="Correct the path" + ("." if is_remote(uri) else "; it is relative to where the command runs."),
    ) from None


def _unreadable(uri: str, error: Exception) -> NoReturn:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    # pyarrow puts the path before and its own trace after what the store said.
    said = re.search(r"AWS Error (\w+).*?: (.*)", reason.splitlines()[0] if reason else "")
    reason = f"{said[1]}: {said[2]}" if said else reason.partition(". Detail:")[0]
    rule = (
        "The account in the environment (AWS_*, or Google's default credentials) must be allowed to read it; "
        "what is public is read without one under AWS_SKIP_SIGNATURE=true or GOOGLE_SKIP_SIGNATURE=true"
    )
    raise UserError(
        f"this cannot be read ({reason})",
        where=uri,
        rule=rule if is_remote(uri) else "The user who runs the command must be allowed to read it",
        fix="Correct the place or the rights; the same command continues.",
    ) from None
