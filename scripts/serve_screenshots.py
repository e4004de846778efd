"""Makes the screenshots of docs/serving.md and the README: a server on nano, a few images, Debian's Chromium.

python scripts/serve_screenshots.py        # minutes on two CPU cores; writes docs/images/serve-*.png
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

OUT = Path(__file__).parents[1] / "docs" / "images"
SUBJECTS = ("strawberry", "rainbow", "ghost", "rocket", "red apple", "sun", "snowman", "cat face")
COLOURS = 192
"""Of the files' palettes, which keeps each below 200 kB."""
WAIT = 120_000


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server that can draw."""
    command = [sys.executable, "-m", "terminus", "serve", "nano", "--port", "0", "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        while not ready(address):
            time.sleep(0.2)
        yield address
        process.send_signal(signal.SIGTERM)


def ready(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}health").status == 200
    except urllib.error.HTTPError:
        return False


def draw(address: str, subject: str, number: int) -> None:
    """Draws one image and waits for it."""
    style, ground = ("3d render", "flat drawing")[number % 2], ("black", "white")[number // 2 % 2]
    asked = {"model": "nano", "prompt": f"a {style} of a {subject} on a {ground} background", "seed": number % 3}
    request = urllib.request.Request(f"{address}api/v1/jobs?wait=true", json.dumps(asked).encode())
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request).read()


def visit(browser: Browser, address: str, light: bool = False, width: int = 1280, height: int = 800) -> Page:
    """An open page that works."""
    scheme = "light" if light else "dark"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def keep(page: Page, name: str) -> None:
    """Writes what is seen as docs/images/serve-NAME.png, and closes the page."""
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as seen:
        small = seen.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(OUT / f"serve-{name}.png", optimize=True)
    page.close()


def take(browser: Browser, address: str) -> None:
    page = visit(browser, address)
    page.fill("#prompt", "a 3d render of a (red:1.2) apple on a {black|white} background")
    page.fill("#seed", "3")
    page.fill("#count", "4")
    page.click("#draw")
    page.locator("button.tile img").first.wait_for()
    page.mouse.move(0, 0)
    keep(page, "draw")

    page = visit(browser, f"{address}canvas")
    page.locator("#choices button").nth(8).click()
    layer = page.locator("#image-layer")
    layer.wait_for()
    page.wait_for_timeout(500)
    page.fill("#prompt", "a 3d render of a blue apple on a black background")
    box = layer.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"], steps=12)
    page.mouse.up()
    keep(page, "canvas")

    keep(visit(browser, f"{address}gallery", light=True), "gallery")
    page = visit(browser, address, width=390, height=780)
    page.locator("#strip button").nth(9).click()
    page.locator("button.tile img").first.wait_for()
    keep(page, "phone")


def main() -> None:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as address, sync_playwright() as playwright:
        for number, subject in enumerate(SUBJECTS):
            draw(address, subject, number)
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        take(browser, address)
        browser.close()


if __name__ == "__main__":
    main()
