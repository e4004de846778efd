"""A server that speaks the chat-completions protocol and really looks at images, and a prepared store to caption."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from terminus.data.captioning import endpoint
from terminus.data.captioning.run import Captioned, write_captions
from terminus.data.captioning.settings import Captioner
from terminus.data.curate import curate
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.data.store import Store

from ..conftest import noise, save


def look(image: Image.Image) -> str:
    """What the server sees: changes with the pixels."""
    red, green, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0).round(-1)
    return f"a pattern of red {red:.0f}, green {green:.0f} and blue {blue:.0f}"


@dataclass
class Server:
    """What reached it, and what it is told to do instead of answering well."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    models: list[str] | None = field(default_factory=lambda: ["see-1"])
    behave: Callable[[int, dict[str, Any]], tuple[int, Any] | None] = lambda number, body: None
    """(number of the request, its body) -> status and body, or None to answer well."""
    extra: dict[str, str] = field(default_factory=dict)
    """Headers of what `behave` answers."""
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        parts = body["messages"][0]["content"]
        prefix, _, data = parts[0]["image_url"]["url"].partition(",")
        assert prefix == "data:image/jpeg;base64"
        image = Image.open(BytesIO(base64.b64decode(data, validate=True)))
        image.load()
        self.images.append(image)
        return completion(look(image))


def completion(text: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    content = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"model": "see-1-fp8", "choices": [{"message": content, "finish_reason": finish}], "usage": usage}


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            state.headers.append(dict(self.headers))
            if self.path != "/v1/models" or state.models is None:
                self.reply(404, {"detail": "Not Found"})
            else:
                self.reply(200, {"data": [{"id": name} for name in state.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                state.now += 1
                state.most_at_once = max(state.most_at_once, state.now)
            said = state.behave(number, body) or (200, state.answer(body))
            with state.lock:
                state.now -= 1
            self.reply(*said)

        def reply(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in state.extra.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the client went away, as some tests make it do

    with Quiet(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACKOFF", 0.001)


@pytest.fixture
def captioner(server: Server) -> Callable[..., Captioner]:
    """Settings that ask the server."""

    def build(**changes: Any) -> Captioner:
        model = {"kind": "endpoint", "url": server.url, "model": "see-1", "concurrency": 4} | changes.pop("model", {})
        return Captioner.model_validate({"name": "see", "model": model} | changes)

    return build


@pytest.fixture(scope="session")
def _curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and their store; copied for each test, because curating takes longer than most of them."""
    folder = tmp_path_factory.mktemp("curated")
    for index in range(12):
        image = Image.fromarray(noise(index, 70 + index, 80))
        save(folder / "images" / f"{index:02}.png", image, f"own {index}")
    data = _settings(folder)
    curate(data, Store(data.store), lambda _: None)
    return folder


@pytest.fixture
def prepared(tmp_path: Path, _curated: Path) -> DataConfig:
    """Twelve curated images with a caption each."""
    shutil.copytree(_curated, tmp_path, dirs_exist_ok=True)
    return _settings(tmp_path)


def _settings(folder: Path) -> DataConfig:
    source = FolderSource(kind="folder", name="folder", path=folder / "images")
    return DataConfig(store=str(folder / "store"), sources=(source,), resolution=64)


def ask(data: DataConfig, captioner: Captioner, **options: Any) -> Captioned:
    return write_captions(data, captioner, Console(file=StringIO()), **options)


def texts(data: DataConfig) -> dict[str, list[tuple[str, str, float]]]:
    """(origin, text, weight) of each image's captions, by its name."""
    table = Store(data.store).images.required().scan(["source_id", "captions", "caption_origins", "caption_weights"])
    return {
        row["source_id"]: list(zip(row["caption_origins"], row["captions"], row["caption_weights"], strict=True))
        for row in table.to_pylist()
    }
