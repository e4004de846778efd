"""A real server over loopback: what it is sent, what its failures become, and when we stop asking."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from terminus.data.captioning import endpoint, run
from terminus.data.captioning.run import write_captions
from terminus.data.captioning.settings import Captioner
from terminus.data.captioning.table import Answers
from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.errors import UserError

from .conftest import Server, ask, completion, look, texts

Make = Callable[..., Captioner]


def test_the_server_sees_the_training_pixels_and_the_prompt(prepared: DataConfig, captioner: Make, server: Server):
    result = ask(prepared, captioner(prompt="Describe. Known: {captions}; {tags}", max_tokens=50), limit=1)
    (body,) = server.requests
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("see-1", 50, 0.0, 0)
    assert body["messages"][0]["content"][1]["text"] == "Describe. Known: own 0; "
    assert server.images[0].size == (64, 64), "the planned crop, and not the file's 80 x 70"
    assert (result.answered, result.prompt_tokens, result.completion_tokens) == (1, 100, 10)
    assert texts(prepared)["00.png"][1][:2] == ("see", look(server.images[0]))
    assert "authorization" not in {name.lower() for headers in server.headers for name in headers}


def test_several_crops_share_a_caption_of_the_whole(prepared: DataConfig, captioner: Make, server: Server):
    ask(prepared.model_copy(update={"crops": 3}), captioner(), limit=1)
    assert server.images[0].size == (73, 64), "80 x 70, at the size from which crops are cut"


def test_as_many_as_allowed_are_asked_at_once(prepared: DataConfig, captioner: Make, server: Server):
    gate = threading.Barrier(4)  # breaks, and fails the test, unless four requests are there together

    def wait(number: int, body: object) -> None:
        gate.wait(5)

    server.behave = wait
    assert ask(prepared, captioner()).answered == 12
    assert server.most_at_once == 4


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_is_tried_again(status: int, prepared: DataConfig, captioner: Make, server: Server):
    server.behave = lambda number, body: (status, {"error": {"message": "busy"}}) if number < 3 else None
    result = ask(prepared, captioner(), limit=2)
    assert (result.answered, dict(result.failed), len(server.requests)) == (2, {}, 5)


def test_the_server_says_how_long_to_wait(prepared: DataConfig, captioner: Make, server: Server):
    server.extra = {"Retry-After": "0.3"}
    server.behave = lambda number, body: (429, {}) if number == 0 else None
    begun = time.monotonic()
    assert ask(prepared, captioner(), limit=1).answered == 1
    assert time.monotonic() - begun > 0.3


def test_a_dropped_connection_is_tried_again(prepared: DataConfig, captioner: Make, server: Server):
    def hang_up(number: int, body: object) -> None:
        if number < 2:
            raise ConnectionAbortedError

    server.behave = hang_up
    assert ask(prepared, captioner(), limit=2).answered == 2


def test_one_image_that_fails_does_not_stop_the_others(prepared: DataConfig, captioner: Make, server: Server):
    server.behave = lambda number, body: (400, {"error": {"message": "image is cursed"}}) if number == 3 else None
    result = ask(prepared, captioner())
    assert (result.answered, dict(result.failed)) == (11, {"HTTP 400": 1})
    server.behave = lambda number, body: None
    again = ask(prepared, captioner())
    assert (again.before, again.answered, len(server.requests)) == (11, 1, 13)


def test_a_server_that_fails_throughout_is_left_alone(
    prepared: DataConfig, captioner: Make, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run, "FAILURES_IN_A_ROW", 2)
    server.behave = lambda number, body: (400, {"message": "no max_tokens here"}) if number >= 3 else None
    with pytest.raises(UserError, match=r"4 images in a row .*4 HTTP 400.*no max_tokens here"):
        ask(prepared, captioner(model={"concurrency": 2}))
    assert len(server.requests) < 12
    kept = [name for name, captions in texts(prepared).items() if len(captions) == 2]
    assert len(kept) == 3, "what was answered is kept, and training may have it"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ((200, b"<html>hello</html>"), "no chat completion"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, {"choices": [{"message": None}]}), "no chat completion"),
        ((200, b"[" * 100_000), "no chat completion"),
        ((200, b" " * (endpoint.MAX_BYTES + 1)), "no connection"),
    ],
    ids=["html", "no choices", "no message", "deep", "huge"],
)
def test_nonsense_is_a_failure(
    response: tuple[int, Any], reason: str, prepared: DataConfig, captioner: Make, server: Server
):
    server.behave = lambda number, body: response
    assert dict(ask(prepared, captioner(), limit=1).failed) == {reason: 1}


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (completion(""), "empty"),
        (completion(None), "empty"),
        (completion("I'm sorry, I can't."), "refused"),
        (completion("", refusal="I can't help with that."), "refused"),
        (completion("x", "content_filter"), "refused"),
        (completion("A large red", "length"), "cut short"),
        (completion("a dog and " * 9), "repeats itself"),
    ],
)
def test_a_useless_answer_is_recorded_and_not_asked_for_again(
    response: dict[str, Any], reason: str, prepared: DataConfig, captioner: Make, server: Server
):
    server.behave = lambda number, body: (200, response)
    assert dict(ask(prepared, captioner(), limit=1).refused) == {reason: 1}
    before = len(server.requests)
    again = ask(prepared, captioner(), limit=1)
    assert (again.before, dict(again.refused), len(server.requests)) == (1, {reason: 2}, before + 1)
    assert all(len(captions) == 1 for captions in texts(prepared).values())


def test_parts_of_a_message_are_joined(prepared: DataConfig, captioner: Make, server: Server):
    server.behave = lambda number, body: (200, completion([{"type": "text", "text": "A "}, {"text": "dog"}, 3, {}]))
    ask(prepared, captioner(), limit=1)
    assert texts(prepared)["00.png"][1][:2] == ("see", "A dog")


def test_a_wrong_model_is_known_before_anything_is_asked(prepared: DataConfig, captioner: Make, server: Server):
    server.models = ["qwen", "cogvlm"]
    with pytest.raises(UserError, match=r"no model 'see-1'; it serves qwen, cogvlm"):
        ask(prepared, captioner())
    assert server.requests == []


def test_a_server_without_a_list_of_models_is_asked(prepared: DataConfig, captioner: Make, server: Server):
    server.models = None
    assert ask(prepared, captioner(), limit=1).answered == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_at_once_and_is_never_shown(
    status: int, prepared: DataConfig, captioner: Make, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SEE_KEY", "sk-very-secret")
    server.behave = lambda number, body: (status, {"error": {"message": "bad key sk-very-secret"}})
    console = Console(file=StringIO())
    with pytest.raises(UserError, match=r"refuses us .*bad key \*\*\*.*SEE_KEY") as caught:
        write_captions(prepared, captioner(model={"key_env": "SEE_KEY"}), console)
    assert all(headers["authorization"] == "Bearer sk-very-secret" for headers in _lower(server.headers))
    assert "very-secret" not in str(caught.value)
    assert len(server.requests) <= 4


def _lower(headers: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name.lower(): value for name, value in some.items()} for some in headers]


def test_the_key_is_in_no_file(prepared: DataConfig, captioner: Make, server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEE_KEY", "sk-very-secret")
    ask(prepared, captioner(model={"key_env": "SEE_KEY"}))
    files = [path for path in Path(prepared.store).rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if b"very-secret" in path.read_bytes()] == []


def test_a_missing_key_is_named(prepared: DataConfig, captioner: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SEE_KEY", raising=False)
    with pytest.raises(UserError, match="SEE_KEY is not set"):
        ask(prepared, captioner(model={"key_env": "SEE_KEY"}))


@pytest.mark.parametrize("status", [302, 404, 405])
def test_an_address_without_chat_stops_at_once(status: int, prepared: DataConfig, captioner: Make, server: Server):
    server.extra = {"Location": "http://169.254.169.254/"}
    server.behave = lambda number, body: (status, {"detail": "nothing here"})
    with pytest.raises(UserError, match=rf"no chat completions here \(HTTP {status}: nothing here\)"):
        ask(prepared, captioner())
    assert len(server.requests) <= 4


def test_nobody_there(prepared: DataConfig, captioner: Make):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    begun = time.monotonic()
    with pytest.raises(UserError, match="no answer from"):
        ask(prepared, captioner(model={"url": url}))
    assert time.monotonic() - begun < 5
    assert Answers(Store(prepared.store)).table.latest() is None


def test_a_server_that_only_listens(prepared: DataConfig, captioner: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoint, "CHECK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=r"no answer from .*TimeoutError"):
            ask(prepared, captioner(model={"url": url}))


def test_a_silent_server_times_out(
    prepared: DataConfig, captioner: Make, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.2)
    monkeypatch.setattr(endpoint, "RETRIES", 1)
    release = threading.Event()
    server.behave = lambda number, body: (release.wait(10) and None) or None
    try:
        assert dict(ask(prepared, captioner(), limit=1).failed) == {"timed out": 1}
    finally:
        release.set()


def test_ctrl_c_ends_at_once_and_keeps_what_was_answered(
    prepared: DataConfig, captioner: Make, server: Server, monkeypatch: pytest.MonkeyPatch
):
    release = threading.Event()

    def behave(number: int, body: object) -> None:
        if number >= 4:
            release.wait(10)

    server.behave = behave
    count = 0

    def interrupt(self: object, *ignored: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Meter, "advance", interrupt)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ask(prepared, captioner())
    assert time.monotonic() - begun < 3
    release.set()
    assert Answers(Store(prepared.store)).table.count() == 3


@pytest.mark.parametrize(
    "url",
    ["ftp://x/v1", "localhost:8000/v1", "http://", "http://me:secret@x/v1", "http://x/v1?key=1", "http://x:99999/"],
)
def test_an_address_that_cannot_be_one(url: str, captioner: Make):
    with pytest.raises(ValidationError):
        captioner(model={"url": url})


def test_settings_that_mean_nothing(captioner: Make):
    assert captioner(model={"url": "https://x/v1/chat/completions"}).model.url == "https://x/v1"  # pyright: ignore[reportAttributeAccessIssue]
    for wrong in ({"prompt": "What of {caption}?"}, {"name": "a'b"}, {"name": ""}, {"model": {"key_env": "sk-123"}}):
        with pytest.raises(ValidationError):
            captioner(**wrong)
    assert captioner(prompt='Answer in JSON: {"a": 1}').prompt
