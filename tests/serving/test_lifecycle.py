"""Jobs from arrival to end: cancelled at any step, drawn again after a kill, found again after a restart, drained."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.serving.conftest import STEPS, Server

LONG = {"prompt": "a bird", "steps": 150, "count": 4}
"""A job that nobody waits for to the end."""


def events(server: Server, key: str, stop: int = 10_000, **headers: str) -> list[tuple[int, str, dict]]:
    """(number, name, data) of a job's events, to its end or until there are `stop`."""
    found: list[tuple[int, str, dict]] = []
    with server.client.stream("GET", f"/api/v1/jobs/{key}/events", headers=headers) as answer:
        number, name = 0, ""
        for line in answer.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((number, name, json.loads(line[6:])))
                if len(found) == stop:
                    return found
    return found


def test_events_tell_every_step_and_are_resumed(server: Server):
    job = server.submit(prompt="a bird", seed=1, steps=12)
    told = events(server, job["id"])
    names = [name for _, name, _ in told]
    assert names[-1] == "finished"
    steps = [data for _, name, data in told if name == "step"]
    assert steps[-1]["step"] == steps[-1]["steps"] == 12
    assert any(step.get("previews", [""])[0].startswith("data:image/webp;base64,") for step in steps[:-1])
    assert steps[-1]["done"] == 1
    last = told[-2][0]
    again = events(server, job["id"], **{"last-event-id": str(last)})
    assert [name for _, name, _ in again] == ["finished"]
    assert told[-1][2]["images"][0]["seed"] == 1


def test_d3_cancel_at_a_step_twice_and_what_comes_next(server: Server):
    job = server.submit(**LONG)
    server.until(job["id"], "running")
    events(server, job["id"], stop=4)
    began = time.monotonic()
    assert server.client.delete(f"/api/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert server.client.delete(f"/api/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert server.draw(prompt="a dog")["state"] == "finished"
    assert time.monotonic() - began < 30, "the worker goes on at once"
    assert server.job(job["id"])["images"] == []


def test_d3_a_client_that_leaves_cancels_its_job(server: Server):
    with pytest.raises(httpx2.TimeoutException):
        server.client.post("/api/v1/jobs?wait=true", json={"model": "nano", **LONG}, timeout=2)
    newest = server.client.get("/api/v1/jobs").json()["jobs"]
    (job,) = [one for one in newest if one["request"]["steps"] == 150 and one["request"]["count"] == 4][:1]
    assert server.until(job["id"], "cancelled", seconds=10)


def test_d3_the_same_idempotency_key_is_one_job(server: Server):
    first, second = (
        server.post("/api/v1/jobs", {"model": "nano", "prompt": "a", "steps": 2}, **{"idempotency-key": "one"}).json()
        for _ in range(2)
    )
    assert first["id"] == second["id"]
    server.until(first["id"], "finished")


def test_d3_unknown_jobs(server: Server):
    for key in ("nothing", "..", "%2e%2e", "a" * 500):
        assert server.client.get(f"/api/v1/jobs/{key}").status_code == 404


def test_d3_a_worker_that_is_killed_is_replaced_and_its_job_drawn_again(server: Server):
    job = server.submit(prompt="a bird", seed=5, steps=60)
    server.until(job["id"], "running")
    events(server, job["id"], stop=4)
    (pid,) = server.workers()
    os.kill(pid, signal.SIGKILL)
    done = server.until(job["id"], "finished")
    assert len(done["images"]) == 1
    assert server.workers() != [pid]
    assert server.draw(prompt="a dog")["state"] == "finished"


def test_d3_what_ends_two_workers_is_marked(server: Server):
    job = server.submit(**LONG)
    for _ in range(2):
        server.until(job["id"], "running")
        events(server, job["id"], stop=5)
        (pid,) = server.workers()
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
    failed = server.until(job["id"], "failed")
    assert "twice" in failed["error"]["message"]
    assert server.draw(prompt="a dog")["state"] == "finished"


def descendants(pid: int) -> list[int]:
    """Processes that this one, or any of them, started."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def test_d3_a_server_that_is_killed_finds_its_queue_and_gallery(serve: Callable[..., Server]):
    server = serve().ready()
    done = server.draw(prompt="a cat", seed=2)
    running = server.submit(prompt="a bird", seed=3, steps=60)
    waiting = [server.submit(prompt=f"a dog {number}", seed=number) for number in range(2)]
    server.until(running["id"], "running")
    # A token count begins the process that reads, which is to end with the server as the workers are.
    assert server.post("/api/v1/prompts/read", {"model": "nano", "prompt": "a cat"}).status_code == 200
    processes = descendants(server.process.pid)
    assert {*server.workers()} < {*processes}
    server.signal(signal.SIGKILL)
    server.process.wait()
    deadline = time.monotonic() + 10
    while left := [pid for pid in processes if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, f"processes end with their server: {left}"
        time.sleep(0.1)
    server.client.close()
    server.process.stdout.close()
    server.start()
    server.ready()
    for job in (running, *waiting):
        assert len(server.until(job["id"], "finished")["images"]) == 1
    shown = server.client.get("/api/v1/images").json()["images"]
    assert {image["seed"] for image in shown} == {0, 1, 2, 3}
    assert done["images"][0]["id"] in {image["id"] for image in shown}


def test_d3_sigterm_finishes_what_is_drawn_and_keeps_what_waits(serve: Callable[..., Server]):
    server = serve().ready()
    running = server.submit(prompt="a bird", seed=3, steps=40)
    server.until(running["id"], "running")
    waiting = server.submit(prompt="a dog", seed=4)
    told: list[tuple[int, str, dict]] = []
    listener = threading.Thread(target=lambda: told.extend(events(server, running["id"])))
    listener.start()
    time.sleep(0.3)
    server.signal(signal.SIGTERM)
    time.sleep(0.2)
    if server.process.poll() is None:
        answer = server.post("/api/v1/jobs", {"model": "nano", "prompt": "late"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert server.client.get("/health").json() == {"status": "draining"}
    assert server.process.wait(60) == 0
    listener.join(10)
    assert told[-1][1] == "finished"
    server.client.close()
    server.process.stdout.close()
    server.start()
    server.ready()
    assert len(server.job(running["id"])["images"]) == 1
    assert len(server.until(waiting["id"], "finished")["images"]) == 1


def test_e_a_damaged_state_is_set_aside_and_the_gallery_made_anew(serve: Callable[..., Server]):
    server = serve().ready()
    image = server.draw(prompt="a cat (black:1.2)", negative="dog", seed=2)["images"][0]
    assert server.stop() == 0
    (server.folder / ".serve" / "state.sqlite").write_bytes(b"no database" * 1000)
    server.start()
    deadline = time.monotonic() + 60
    while not (found := server.client.get("/api/v1/images").json()["images"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for name in ("id", "url", "prompt", "negative", "seed", "steps", "width", "height", "model", "metadata"):
        assert found[0][name] == image[name], name
    assert list((server.folder / ".serve").glob("state.sqlite.damaged-*"))


def test_e_a_state_of_another_version_is_refused(serve: Callable[..., Server]):
    server = serve()
    assert server.stop() == 0
    database = sqlite3.connect(server.folder / ".serve" / "state.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(AssertionError, match="another version of Terminus"):
        server.start()
    assert server.process.returncode == 2


def test_e_one_server_a_folder_and_one_a_port(serve: Callable[..., Server], server: Server):
    with pytest.raises(AssertionError, match="Another server uses this folder"):
        serve(folder=str(server.folder))
    port = server.address.rpartition(":")[2]
    with pytest.raises(AssertionError, match="This address cannot be used"):
        serve("--port", port)


def test_e_a_folder_that_becomes_full_fails_the_job_and_not_the_server(serve: Callable[..., Server]):
    """A file where the day's folder would be stands for a disk that refuses: so it does for root too."""
    server = serve().ready()
    day = time.strftime("%Y-%m-%d")
    (server.folder / day).write_text("a file where the folder of the day would be")
    job = server.draw(prompt="a cat")
    assert job["state"] == "failed"
    assert "could not be written" in job["error"]["message"]
    assert str(server.folder) not in json.dumps(job)
    (server.folder / day).unlink()
    assert server.draw(prompt="a cat")["state"] == "finished"


def test_the_queue_is_bounded_and_says_when_to_ask_again(serve: Callable[..., Server], tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("anna anna-token-0123456789\nbert bert-token-0123456789\n")
    server = serve("--token-file", str(tokens), token="anna-token-0123456789").ready()
    bert = httpx2.Client(
        base_url=server.address, headers={"authorization": "Bearer bert-token-0123456789"}, trust_env=False
    )
    try:
        first = server.submit(**LONG)
        server.until(first["id"], "running")
        answers = [server.post("/api/v1/jobs", {"model": "nano", "steps": STEPS, "prompt": "a"}) for _ in range(101)]
        assert [answer.status_code for answer in answers[:100]] == [202] * 100
        assert answers[100].status_code == 429
        assert int(answers[100].headers["retry-after"]) >= 1
        places = [answer.json()["position"] for answer in answers[:100]]
        assert places == list(range(1, 101))
        # Another user's first job is the second in line, not the hundred and first.
        job = bert.post("/api/v1/jobs", json={"model": "nano", "steps": 2, "prompt": "b"}).json()
        assert job["position"] <= 2
        # Nobody sees or cancels another's jobs and images.
        assert bert.get(f"/api/v1/jobs/{first['id']}").status_code == 404
        assert bert.delete(f"/api/v1/jobs/{first['id']}").status_code == 404
        assert [one["id"] for one in bert.get("/api/v1/jobs").json()["jobs"]] == [job["id"]]
        for answer in answers[:100]:
            server.client.delete(f"/api/v1/jobs/{answer.json()['id']}")
        server.client.delete(f"/api/v1/jobs/{first['id']}")
        deadline = time.monotonic() + 60
        while not (done := bert.get(f"/api/v1/jobs/{job['id']}").json())["images"]:
            assert time.monotonic() < deadline, done
            time.sleep(0.1)
        image = done["images"][0]["id"]
        assert server.client.get(f"/api/v1/images/{image}.png").status_code == 404
        assert server.client.get("/api/v1/images").json()["images"] == []
    finally:
        bert.close()


def test_jobs_that_wait_are_drawn_as_one_batch(server: Server):
    blocker = server.submit(**LONG)
    server.until(blocker["id"], "running")
    jobs = [server.submit(prompt=f"a dog {number}", steps=20) for number in range(6)]
    other = server.submit(prompt="a dog", steps=21)
    server.client.delete(f"/api/v1/jobs/{blocker['id']}")
    server.until(jobs[0]["id"], "running")
    states = [server.job(job["id"])["state"] for job in (*jobs, other)]
    assert states == ["running"] * 6 + ["queued"]
    server.client.delete(f"/api/v1/jobs/{jobs[3]['id']}")
    for job in (*jobs[:3], *jobs[4:], other):
        assert len(server.until(job["id"], "finished")["images"]) == 1
    assert server.job(jobs[3]["id"])["images"] == []
