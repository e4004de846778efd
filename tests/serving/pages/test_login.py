"""Signing in, below a path that a proxy would serve: one page is open to everybody, and it shows nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

WAIT = 90_000
TOKEN = "a-token-that-is-long-enough-to-be-one"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a token, below /terminus/; it need not draw."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text(TOKEN + "\n", encoding="utf-8")
    (folder / "tokens").chmod(0o600)
    command = [sys.executable, "-m", "terminus", "serve", "nano", "--port", "0", "--root-path", "/terminus"]
    command += ["--token-file", str(folder / "tokens"), "--folder", str(folder / "images"), "--threads", "1"]
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        assert address.endswith("/terminus/"), (folder / "log").read_text()
        yield address
    finally:
        # Nothing is drawn, so nothing is waited for: a model that is still being loaded would be.
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_token_opens_the_pages_below_their_path(browser: Browser, guarded: str):
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(guarded + "gallery")
    assert answer is not None
    assert answer.status == 401
    page.fill("#token", "another")
    page.click("button[type=submit]")
    expect(page.locator("#refused")).to_have_text("This token is not known.", timeout=WAIT)
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-page=gallery][data-ready]")
    page.get_by_role("link", name="Draw").click()
    page.wait_for_selector("body[data-page=draw][data-ready]")
    assert page.url == guarded
    outside = [url for url in asked if not url.startswith((guarded, "data:", "blob:"))]
    assert outside == []
    assert not any(TOKEN in url for url in asked)
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/terminus")
    assert TOKEN not in cookie["value"]
    context.close()
