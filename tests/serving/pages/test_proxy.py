"""Behind nginx, below a path, with the lines that docs/serving.md gives for it: pages, uploads, events as they come."""

from __future__ import annotations

import io
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.serving.conftest import Server

from .conftest import Visit

DOCUMENT = Path(__file__).parents[3] / "docs" / "serving.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")
_CONFIG = """
daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {{}}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("proxied") / "images", "--root-path", "/terminus")
    yield one.ready()
    one.stop()


@pytest.fixture(scope="module")
def proxied(served: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server through nginx."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    documented = re.search(r"^location /terminus/ \{.*?^\}", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert documented is not None
    location = documented[0].replace("127.0.0.1:7860", served.address.split("/")[2])
    (folder / "nginx.conf").write_text(_CONFIG.format(port=port, location=location), encoding="utf-8")
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}/terminus/"
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                assert httpx2.get(f"{address}health", trust_env=False).status_code == 200
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_the_page_draws(browser: Browser, proxied: str):
    """Static files, events and images all lie below the path."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    one = Visit(context, proxied)
    page = one.open()
    page.fill("#prompt", "a flat drawing of a dog")
    page.fill("#steps", "12")
    page.click("#draw")
    page.wait_for_selector(".tile.preview img")
    image = page.locator("button.tile img").first
    image.wait_for()
    assert image.evaluate("one => one.naturalWidth") == 64
    page.get_by_role("link", name="Gallery").click()
    page.wait_for_selector("body[data-page=gallery][data-ready]")
    assert page.url == f"{proxied}gallery"
    expect(page.locator("#wall img")).to_have_count(1)
    assert one.faults == []
    context.close()


def test_events_come_while_it_is_drawn(served: Server, proxied: str):
    job = served.submit(prompt="a flat drawing of a cat", steps=100)
    events: list[str] = []
    with httpx2.stream("GET", f"{proxied}api/v1/jobs/{job['id']}/events", timeout=120, trust_env=False) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                events.append(line[7:])
            if line == "event: step" and events.count("step") == 1:
                assert served.job(job["id"])["state"] == "running"
    assert events.count("step") > 1
    assert events[-1] == "finished"


def test_an_image_of_some_megabytes_is_taken_in(proxied: str):
    """nginx takes one megabyte unless it is told otherwise."""
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    assert len(file.getvalue()) > 1 << 20
    answer = httpx2.post(
        f"{proxied}api/v1/uploads", files={"file": ("x.png", file.getvalue(), "image/png")}, timeout=60, trust_env=False
    )
    assert answer.status_code == 201, answer.text
