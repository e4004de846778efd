"""`--expand`: a text server writes prompts out; the user's own is kept, and is drawn whenever anything goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from terminus.errors import UserError
from terminus.serving.expansion import TextServer
from tests.serving.conftest import Server
from tests.serving.text_model import WRITTEN, TextModel, completion

OWN = "a dog"
MODEL = "random-nano"


@pytest.fixture(scope="module")
def writer() -> Iterator[TextModel]:
    one = TextModel()
    with one.serving():
        yield one


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, random_nano: Path, writer: TextModel) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("expanded") / "images"
    one = Server(folder, "--expand", writer.url, models=(str(random_nano),))
    yield one.ready()
    assert one.stop() == 0


@pytest.fixture
def drawn(served: Server, writer: TextModel) -> Callable[..., dict]:
    writer.asked.clear()

    def draw(**fields: object) -> dict:
        return served.draw(model=MODEL, prompt=OWN, seed=3, steps=2, **fields)

    return draw


def test_the_prompt_is_written_out_and_the_own_one_kept(drawn: Callable[..., dict], served: Server, writer: TextModel):
    writer.answer = (200, completion(f"<think>hm\n\n</think>\n  {WRITTEN}\n"))
    job = drawn(expand=True)
    (image,) = job["images"]
    assert writer.asked[0]["model"] == "writer"
    assert writer.asked[0]["messages"][-1] == {"role": "user", "content": OWN}
    assert (image["prompt"], image["metadata"]["prompt"]) == (WRITTEN, WRITTEN)
    assert (image["metadata"]["expanded_from"], job["warnings"]) == (OWN, [])
    assert f"Expanded from: {OWN}" in image["parameters"]
    plain = served.draw(model=MODEL, prompt=WRITTEN, seed=3, steps=2)
    assert "expanded_from" not in plain["images"][0]["metadata"]
    again = served.client.post(f"/api/v1/images/{image['id']}/again").json()
    assert served.until(again["id"], "finished", "failed")["again"]["equal"] is True
    assert len(writer.asked) == 1, "drawn again from what was written then"


def test_nobody_is_asked_unless_a_request_says_so(drawn: Callable[..., dict], served: Server, writer: TextModel):
    assert drawn()["images"][0]["prompt"] == OWN
    assert writer.asked == []
    assert served.client.get("/api/v1/options").json()["expand"] is True
    grid = {"request": {"model": MODEL, "prompt": OWN, "expand": True}, "axes": [{"field": "seed", "values": [1, 2]}]}
    assert served.post("/api/v1/grids", grid).status_code == 422, "its cells would have other words"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b"{}", "status 500"),
        (302, b"{}", "status 302"),
        (200, b"<html>", "no JSON"),
        (200, b"x" * (2 << 20), "does not end"),
        (200, completion(WRITTEN, "length"), "not whole"),
        (200, completion("<think>only this</think> "), "no prompt"),
        (200, completion(["a"]), "not whole"),
        (200, completion("[cat:dog:0.5]"), "no prompt that can be drawn"),
    ],
    ids=["error", "redirect", "html", "endless", "cut", "thought", "list", "grammar"],
)
def test_the_own_prompt_is_drawn_where_that_fails(
    drawn: Callable[..., dict], writer: TextModel, status: int, body: bytes, words: str
):
    writer.answer = (status, body)
    job = drawn(expand=True)
    assert job["state"] == "finished"
    assert "expanded_from" not in job["images"][0]["metadata"]
    assert job["images"][0]["prompt"] == OWN
    (warning,) = job["warnings"]
    assert warning.startswith("Drawn from your own prompt: ")
    assert words in warning


@pytest.mark.parametrize("text", ["ftp://x/v1", "here", "http://", "http://a:b@x/v1", "http://x:99999999/v1", ""])
def test_addresses_that_are_none(text: str):
    with pytest.raises(UserError, match="--expand"):
        TextServer.parse(text)


def test_a_model_may_be_named():
    assert TextServer.parse("http://x:1/v1/#qwen") == TextServer("http://x:1/v1", "qwen")
