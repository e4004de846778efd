"""The few endpoints of the Hugging Face hub that a download uses, on loopback."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 50
"""What the client writes at a time: it goes on at whole chunks."""
LARGE = (".parquet", ".safetensors")
"""Kept on another host, as the hub does with large files: `resolve` redirects there, and the list has their sha256."""


class Hub(ThreadingHTTPServer):
    """One repository with one commit, under any id."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[str] = []
        """Method, path and range of each request."""
        self.break_after: int | None = None
        """The next large file breaks off after so many bytes, once."""
        self.spoiled: set[str] = set()
        """Files that arrive with other bytes, as many as there should be."""

    def tree(self) -> list[dict[str, object]]:
        return [self._entry(name, data) for name, data in self.files.items()]

    def _entry(self, name: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
        if not name.endswith(LARGE):
            return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry | {"oid": "1" * 40, "lfs": large}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if re.fullmatch(r"/api/\w+/\w+/\w+/revision/main", path):
            self.send({"id": "owner/name", "sha": COMMIT, "siblings": []})
        elif path.startswith("/api/") and path.endswith(f"/tree/{COMMIT}"):
            self.send(self.server.tree())
        elif (found := re.search(rf"/resolve/{COMMIT}/(.+)", path)) and found[1] in self.server.files:
            self.resolve(found[1], self.server.files[found[1]])
        elif path.startswith("/large/"):
            self.send_file(path.removeprefix("/large/"))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def resolve(self, name: str, data: bytes) -> None:
        self.send_response(302 if name.endswith(LARGE) else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if name.endswith(LARGE):
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Location", f"http://localhost:{self.server.server_port}/large/{name}")
            data = b""
        else:
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def send_file(self, name: str) -> None:
        data = self.server.files[name]
        if name in self.server.spoiled:
            data = data[::-1]
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(begin[1]) if begin else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if (stop := self.server.break_after) is not None:
            self.server.break_after = None
            self.wfile.write(data[:stop])
            self.close_connection = True
        else:
            self.wfile.write(data[first:])

    def send(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, home: str) -> Iterator[Hub]:
    """A hub with these files, and a client that knows no other; what it fetches lies under `home`."""
    with Hub(files) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", home)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{home}/hub")
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        try:
            yield server
        finally:
            server.shutdown()
