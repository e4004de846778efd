"""E: what the machine and its user do to a server: an environment without anything, a closed terminal, Ctrl-C twice."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving.conftest import Server

MODEL = "random-nano"
pytestmark = pytest.mark.slow
LONG = {"model": MODEL, "prompt": "a dog", "steps": 200, "count": 64}


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No home, no locale, no time zone that exists, a proxy that nobody answers, and files for their owner alone."""
    for name, value in (
        ("HOME", "/nonexistent"), ("LANG", "C"), ("LC_ALL", "C"), ("TZ", "Nowhere/Land"), ("COLUMNS", "40"),
        ("HTTP_PROXY", "http://127.0.0.1:9"), ("HTTPS_PROXY", "http://127.0.0.1:9"), ("ALL_PROXY", ""),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    before = os.umask(0o077)
    yield
    os.umask(before)


def gone(server: Server, seconds: float = 60) -> bool:
    """Whether every process of the server ends."""
    deadline = time.monotonic() + seconds
    while server.children() and time.monotonic() < deadline:
        time.sleep(0.1)
    return server.children() == []


def test_e_an_environment_without_anything(nothing: None, serve: Callable[..., Server], random_nano: Path):
    server = serve(folder="bilder für später", models=(str(random_nano),)).ready()
    job = server.draw(model=MODEL, prompt="ein Hund", steps=2)
    assert job["state"] == "finished", job["error"]
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    # Whoever read the address has gone, as `terminus serve | head -1` does.
    server.process.stdout.close()
    assert server.draw(model=MODEL, prompt="a cat", steps=2)["state"] == "finished"
    # The terminal is closed: the server ends as if it were killed, and its workers with it.
    server.signal(signal.SIGHUP)
    server.process.wait(120)
    assert gone(server)


def test_e_ctrl_c_twice_ends_at_once(serve: Callable[..., Server], random_nano: Path):
    server = serve(models=(str(random_nano),)).ready()
    job = server.submit(**LONG)
    server.until(job["id"], "running")
    server.signal(signal.SIGINT)
    deadline = time.monotonic() + 120
    while "stopping: 1 jobs are finished first" not in server.log.read_text():
        assert time.monotonic() < deadline, "the first one lets it finish"
        time.sleep(0.05)
    server.signal(signal.SIGINT)
    server.process.wait(20)  # a drain would take 60 seconds
    assert gone(server)
