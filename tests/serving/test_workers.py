"""Two workers: both draw, users take turns across them, and every image is the one that a single worker draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.conftest import Server

ANNA, BERT = "anna-token-of-some-length", "bert-token-of-some-length"
MODEL = "random-nano"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, random_nano: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("two")
    tokens = folder / "tokens"
    tokens.write_text(f"anna {ANNA}\nbert {BERT}\n", encoding="utf-8")
    options = ("--devices", "cpu,cpu", "--token-file", str(tokens))
    one = Server(folder / "images", *options, token=ANNA, models=(str(random_nano),))
    one.ready()
    yield one
    assert one.stop() == 0


def submit(served: Server, token: str, **fields: object) -> str:
    """A job that joins no other: each has steps of its own."""
    body = {"model": MODEL, "prompt": "a dog", "seed": 5, **fields}
    answer = served.post("/api/v1/jobs", body, authorization=f"Bearer {token}")
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def job(served: Server, token: str, key: str) -> dict:
    return served.client.get(f"/api/v1/jobs/{key}", headers={"authorization": f"Bearer {token}"}).json()


def wait(served: Server, token: str, key: str) -> dict:
    url, headers = f"/api/v1/jobs/{key}/events", {"authorization": f"Bearer {token}"}
    with served.client.stream("GET", url, headers=headers) as stream:
        for _ in stream.iter_lines():
            pass
    return job(served, token, key)


def test_users_take_turns_across_both_workers(served: Server):
    status = served.client.get("/api/v1/status").json()
    assert [worker["device"] for worker in status["workers"]] == ["cpu", "cpu"]
    assert len({worker["pid"] for worker in status["workers"]}) == 2
    annas = [submit(served, ANNA, steps=20 + number) for number in range(8)]
    berts = [submit(served, BERT, steps=20 + number) for number in range(2)]
    ends = {key: wait(served, ANNA, key)["finished"] for key in annas}
    last = max(wait(served, BERT, key)["finished"] for key in berts)
    assert sum(end > last for end in ends.values()) >= 3, "who asked for little later does not wait for all before"
    status = served.client.get("/api/v1/status").json()
    assert all(worker["models"] == [MODEL] for worker in status["workers"]), "both have drawn"


def test_both_draw_the_same(served: Server):
    """Four at once, of different steps, fall to both workers; drawn again one by one, every pixel is equal."""
    keys = [submit(served, ANNA, steps=6 + number) for number in range(4)]
    images = [wait(served, ANNA, key)["images"][0]["id"] for key in keys]
    for image in images:
        again = served.client.post(f"/api/v1/images/{image}/again").json()
        assert wait(served, ANNA, again["id"])["again"]["equal"] is True
