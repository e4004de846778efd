"""The endpoints of the Hugging Face Hub that an upload uses, on loopback: one model repository that remembers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".png")


class UploadHub(ThreadingHTTPServer):
    """Large files by LFS, small ones inside the commit, as the Hub takes them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, object]] = {}
        """Name to what it was made with."""
        self.objects: dict[str, bytes] = {}
        """Large contents by their sha256."""
        self.files: dict[str, bytes] = {}
        """Of the newest commit; a Space's below `spaces/OWNER/NAME/`."""
        self.commits: list[str] = []
        self.settings: list[dict[str, object]] = []
        self.collected: list[dict[str, object]] = []
        self.sent: list[str] = []
        """sha256 of each upload, in order."""
        self.fail_uploads_after: int | None = None
        """So many uploads succeed, later ones are answered 403."""
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: UploadHub

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        hub = self.server
        hub.tokens.add(self.headers.get("Authorization"))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'owner')}/{asked['name']}"
            name = f"spaces/{name}" if asked.get("type") == "space" else name
            known = name in hub.repositories
            hub.repositories.setdefault(name, asked)
            self.send({"url": f"{hub.address}/{name}", "name": name}, 409 if known else 200)
        elif re.fullmatch(r"/api/(models|spaces)/[^/]+/[^/]+/preupload/main", path):
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                 "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            self.send({"files": files})
        elif path == "/api/validate-yaml":
            self.send({"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.send({"transfer": "basic", "objects": [self._object(one) for one in json.loads(body)["objects"]]})
        elif path.startswith("/lfs/"):
            self._store(path.removeprefix("/lfs/"), body)
        elif path.startswith("/verify/"):
            self.send({})
        elif found := re.fullmatch(r"/api/(models|spaces)/([^/]+/[^/]+)/commit/main", path):
            self._commit(body, "" if found[1] == "models" else f"spaces/{found[2]}/")
        elif path.endswith("/settings"):
            hub.settings.append(json.loads(body))
            self.send({})
        elif path.startswith("/api/collections/"):
            hub.collected.append(json.loads(body))
            self.send({"slug": "owner/some-1", "title": "some", "owner": {"name": "owner"}, "items": [],
                       "lastUpdated": "2026-01-01T00:00:00.000Z", "position": 0, "private": False, "theme": "blue",
                       "upvotes": 0, "isUpvotedByUser": False})  # fmt: skip
        else:
            self.send({"error": f"nothing at {path}"}, 404)

    def _object(self, asked: dict[str, object]) -> dict[str, object]:
        found = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.server.objects:
            return found
        where = f"{self.server.address}/lfs/{asked['oid']}"
        verify = {"href": f"{self.server.address}/verify/{asked['oid']}"}
        return found | {"actions": {"upload": {"href": where, "header": {}}, "verify": verify}}

    def _store(self, oid: str, body: bytes) -> None:
        left = self.server.fail_uploads_after
        if left is not None and len(self.server.sent) >= left:
            self.send({"error": "no more today"}, 403)
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.server.sent.append(oid)
        self.send({})

    def _commit(self, body: bytes, folder: str) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[folder + value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]
        self.server.commits.append(lines[0]["value"]["summary"])
        url = f"{self.server.address}/owner/name/commit/{'1' * 40}"
        self.send({"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})

    def send(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    with UploadHub() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
