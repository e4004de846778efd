"""A text server of OpenAI's chat completions, which says what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

WRITTEN = "a brown dog asleep in tall grass, evening light"


def completion(text: object, finish: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]}).encode()


class TextModel(ThreadingHTTPServer):
    answer: tuple[int, bytes] = (200, completion(WRITTEN))

    def __init__(self) -> None:
        self.asked: list[dict] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answers within this context."""
        thread = Thread(target=self.serve_forever, args=(0.05,))
        thread.start()
        yield
        self.shutdown()
        thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: TextModel

    def do_GET(self) -> None:
        self.send(200, json.dumps({"data": [{"id": "writer"}]}).encode())

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send(*self.server.answer)

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
