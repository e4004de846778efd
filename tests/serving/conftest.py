"""A real server: `terminus serve` in a process of its own, on a free port of this machine, drawing with nano."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from terminus import cli

MODEL = "nano"
STEPS = 6
"""Of most images here: enough to see, soon done."""


class Server:
    """One server, its folder, and a client of it."""

    def __init__(self, folder: Path, *arguments: str, token: str = "", models: tuple[str, ...] = (MODEL,)) -> None:
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        self._token = token
        self._command = [
            *(sys.executable, "-m", "terminus", "serve", *models),
            *("--port", "0", "--threads", "1", "--folder", str(folder), *arguments),
        ]
        self.start()

    def start(self) -> None:
        """Starts it, and waits for its address."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=self.folder.parent,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip().rstrip("/")
        if not self.address:
            self.process.wait(30)
            self.process.stdout.close()
            raise AssertionError(self.log.read_text())
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        self.client = httpx2.Client(base_url=self.address, timeout=120, headers=headers, trust_env=False)

    def ready(self, seconds: float = 120) -> Server:
        """Waits until it can draw."""
        deadline = time.monotonic() + seconds
        while self.client.get("/health").status_code != 200:
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        return self

    def post(self, path: str, content: object, **headers: str) -> httpx2.Response:
        """POST of JSON."""
        return self.client.post(path, json=content, headers=headers)

    def draw(self, **request: object) -> dict:
        """A job of these fields, when it is over."""
        answer = self.post("/api/v1/jobs?wait=true", {"model": MODEL, "steps": STEPS, **request})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def submit(self, **request: object) -> dict:
        """A job of these fields, as it is put into the queue."""
        answer = self.post("/api/v1/jobs", {"model": MODEL, "steps": STEPS, **request})
        assert answer.status_code == 202, answer.text
        return answer.json()

    def job(self, key: str) -> dict:
        """A job as it is now."""
        return self.client.get(f"/api/v1/jobs/{key}").json()

    def until(self, key: str, *states: str, seconds: float = 120) -> dict:
        """A job when it is in one of these states."""
        deadline = time.monotonic() + seconds
        while (job := self.job(key))["state"] not in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def upload(self, data: bytes) -> dict:
        """An upload of these bytes."""
        answer = self.client.post("/api/v1/uploads", files={"file": ("x.png", data, "image/png")})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def png(self, key: str) -> bytes:
        """An image's file."""
        return self.client.get(f"/api/v1/images/{key}.png").content

    def signal(self, number: int) -> None:
        """Sends a signal to the server itself."""
        self.process.send_signal(number)

    def children(self) -> list[int]:
        """Process ids of everything in the server's session but itself."""
        found: list[int] = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and int(stat.parent.name) != self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def workers(self) -> list[int]:
        """Process ids of the workers: those with a model in memory."""
        status = self.client.get("/api/v1/status").json()
        return [worker["pid"] for worker in status["workers"]]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
            assert self.process.stdout is not None
            self.process.stdout.close()
            return code
        except subprocess.TimeoutExpired:
            for pid in (self.process.pid, *self.children()):
                os.kill(pid, signal.SIGKILL)
            self.process.wait(5)
            raise


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    started: list[Server] = []

    def begin(*arguments: str, folder: str = "images", **named: object) -> Server:
        server = Server(tmp_path / folder, *arguments, **named)
        started.append(server)
        return server

    yield begin
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    one = Server(tmp_path_factory.mktemp("served") / "images")
    yield one.ready()
    assert one.stop() == 0


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """The bytes of the file that `terminus sample` writes for these options; each is drawn once."""
    known: dict[tuple[str, ...], bytes] = {}

    def sample(*options: str) -> bytes:
        if options not in known:
            out = tmp_path_factory.mktemp("sampled")
            assert cli.main(["sample", MODEL, *options, "--out", str(out)]) == 0
            (image,) = out.glob("0*.png")
            known[options] = image.read_bytes()
        return known[options]

    return sample
