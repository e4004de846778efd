"""One real server on the shipped model and one real browser, shared by all tests of the pages."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from terminus.model.naming import SHIPPED
from tests.serving.conftest import Server
from tests.serving.text_model import TextModel

WAIT = 90_000
"""Milliseconds: long enough for a machine that does something else too."""
_SECONDS = 120
expect.set_options(timeout=WAIT)
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one training run, as `terminus train` logs it."""
    run = tmp_path_factory.mktemp("runs") / "teal"
    run.mkdir()
    rows = [
        {
            "step": step,
            "images_seen": 4 * step,
            "loss": 1.2 / step**0.3,
            "learning_rate": 1e-4,
            "images_per_second": 5.0 + step % 3,
            "bands": {"000-099": 0.2 / step**0.2, "400-499": 0.7 / step**0.3, "900-999": 1.9 / step**0.4},
        }
        for step in range(1, 61)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (run / "recipe.yaml").write_text("run: {dir: teal}\n", encoding="utf-8")
    return run.parent


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, runs_folder: Path) -> Iterator[str]:
    """The address of `terminus serve` with the shipped model and another one, ready to draw."""
    folder = tmp_path_factory.mktemp("serve")
    other = folder / "models" / "other"
    shutil.copytree(SHIPPED["nano"], other)
    command = [sys.executable, "-m", "terminus", "serve", "nano", str(other), "--port", "0"]
    command += ["--folder", str(folder / "images"), "--runs", str(runs_folder), "--threads", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        assert address.startswith("http://127.0.0.1:"), (folder / "log").read_text()
        _wait_until_ready(address)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_SECONDS)
        process.stdout.close()


def _wait_until_ready(address: str) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}health", timeout=5):
                return
        except urllib.error.URLError:
            assert time.monotonic() < end, "the server did not become ready"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; without it these tests fail, since nothing else shows that the pages work.

    It ends with each file: while it is there an event loop runs in this process, and no test may start another.
    """
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        assert found, "these tests need a browser: apt-get install chromium"
        chromium = playwright.chromium.launch(executable_path=found, args=_FLAGS)
        yield chromium
        chromium.close()


class Visit:
    """A page in a context of its own, which notes whatever no page may do."""

    def __init__(self, context: BrowserContext, server: str) -> None:
        self.context, self.server = context, server
        self.faults: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        self.page.on("pageerror", lambda error: self._note(True, str(error)))
        self.page.on("request", lambda request: self._note(self._leaves(request.url), f"asked {request.url}"))

    def _note(self, fault: bool, words: str) -> None:
        if fault:
            self.faults.append(words)

    def _leaves(self, url: str) -> bool:
        return urlsplit(url).scheme not in ("data", "blob") and not url.startswith(self.server)

    def open(self, path: str = "") -> Page:
        """Opens a page and waits until it works."""
        self.page.goto(self.server + path)
        self.page.wait_for_selector("body[data-ready]")
        return self.page


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Callable[..., Visit]]:
    """Makes visits; at the end none of them may have left the origin or written an error to the console."""
    visits: list[Visit] = []

    def begin(width: int = 1280, height: int = 860, light: bool = False, touch: bool = False) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="light" if light else "dark",
            has_touch=touch,
            reduced_motion="reduce",
        )
        visits.append(Visit(context, server))
        return visits[-1]

    yield begin
    faults = [fault for one in visits for fault in one.faults]
    for one in visits:
        one.context.close()
    assert faults == []


class Client:
    """The native interface, for what a test needs to know of the server behind a page."""

    def __init__(self, server: str) -> None:
        self.server = server

    def ask(self, path: str, method: str = "GET", json_body: object = None) -> Any:
        """The JSON of an answer."""
        data = None if json_body is None else json.dumps(json_body).encode()
        request = urllib.request.Request(f"{self.server}api/v1/{path}", data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read() or b"null")

    def draw(self, prompt: str, **settings: object) -> dict[str, Any]:
        """The one image of a request, drawn in few steps."""
        request = {"model": "nano", "prompt": prompt, "seed": 1, "steps": 4, **settings}
        return self.ask("jobs?wait=true", "POST", request)["images"][0]

    def pixels(self, url: str) -> NDArray[np.uint8]:
        """An image of the server, height × width × 3."""
        with urllib.request.urlopen(self.server + url, timeout=_SECONDS) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read()), formats=("PNG",)).convert("RGB"))


@pytest.fixture(scope="session")
def client(server: str) -> Client:
    return Client(server)


@pytest.fixture(scope="session")
def apple(client: Client) -> dict[str, Any]:
    """An image that is there before a page is opened."""
    return client.draw("a 3d render of a red apple on a black background", seed=3, steps=10)


@pytest.fixture(scope="session")
def writer() -> Iterator[TextModel]:
    """A text server."""
    one = TextModel()
    with one.serving():
        yield one


@pytest.fixture(scope="session")
def steered(
    tmp_path_factory: pytest.TempPathFactory, random_nano: Path, steering: Path, writer: TextModel
) -> Iterator[Server]:
    """A server with control networks, an adapter, a text server, and a model whose licence restricts its use."""
    folder = tmp_path_factory.mktemp("steered")
    licensed = folder / "licensed"
    shutil.copytree(random_nano, licensed)
    (licensed / "README.md").write_text("---\nlicense: openrail++\n---\n", encoding="utf-8")
    one = Server(
        folder / "images", "--models", str(steering), "--expand", writer.url, models=(str(random_nano), str(licensed))
    )
    yield one.ready()
    assert one.stop() == 0
