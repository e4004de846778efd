"""The static files of the pages, read once and served from memory, so that no request ever names a path on disk.

Their addresses hold a digest of all of them: a browser may keep them for a year, and a new version has new addresses.
Relative addresses, of ES modules among others, still hold.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

_FOLDER = Path(__file__).parent / "static"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class StaticFile:
    """One file as it is sent."""

    media_type: str
    content: bytes
    compressed: bytes
    """The same by gzip."""


@cache
def static_files() -> dict[str, StaticFile]:
    """Every static file by its name relative to the folder, with forward slashes."""
    files: dict[str, StaticFile] = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            packed = gzip.compress(content, 9, mtime=0)
            files[path.relative_to(_FOLDER).as_posix()] = StaticFile(_MEDIA_TYPES[path.suffix], content, packed)
    return files


@cache
def build() -> str:
    """A digest of all static files, which is part of their addresses."""
    digest = hashlib.sha256()
    for name, file in static_files().items():
        digest.update(name.encode() + b"\0" + file.content + b"\0")
    return digest.hexdigest()[:12]


async def send_static_file(request: Request) -> Response:
    """The file of this name, to be kept for a year; 404 for every other name."""
    file = static_files().get(request.path_params["name"])
    if file is None or request.path_params["build"] != build():
        return PlainTextResponse("There is no such file", status_code=404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.media_type, headers=headers)
