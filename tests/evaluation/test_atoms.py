"""Questions about what images show, asked of a real server on loopback that looks at the pixels it is sent."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from terminus.errors import UserError
from terminus.evaluation import command
from terminus.evaluation.against import Against
from terminus.evaluation.atoms import AskedPrompt, Atom, JudgeEndpoint, measure_atoms, question_captions, read_questions
from terminus.evaluation.settings import QUICK

RED, BLUE = (np.full((16, 16, 3), color, np.uint8) for color in ((220, 20, 20), (20, 20, 220)))
ASKED = (
    AskedPrompt("a red square", (Atom("object", "Is there a square?"), Atom("colour", "Is it red?"))),
    AskedPrompt("a red thing", (Atom("colour", "Is it red?"),)),
)


class _Judge(BaseHTTPRequestHandler):
    """Sure of what is red by the image's own colour, in doubt about all else."""

    server: Server

    def do_GET(self) -> None:
        self.send({"data": [{"id": "judge"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        image, text = asked["messages"][0]["content"]
        data = base64.b64decode(image["image_url"]["url"].split(",")[1])
        red = float(np.asarray(Image.open(io.BytesIO(data))).mean(axis=(0, 1))[0]) > 128
        yes = (0.9 if red else 0.1) if "red" in text["text"] else 0.5
        choice: dict[str, object] = {"message": {"content": "Yes"}, "finish_reason": "length"}
        if self.server.logprobs:
            # half of the mass is on another word, which counts for neither
            tops = [
                {"token": " Yes", "logprob": math.log(yes / 2)},
                {"token": "No", "logprob": math.log((1 - yes) / 2)},
            ]
            tops.append({"token": "It", "logprob": math.log(0.5)})
            choice["logprobs"] = {"content": [{"token": " Yes", "logprob": 0.0, "top_logprobs": tops}]}
        self.send({"model": "judge", "choices": [choice]})

    def send(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, logprobs: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Judge)
        self.logprobs = logprobs
        self.asked: list[dict] = []


@contextmanager
def judge(logprobs: bool = True) -> Iterator[tuple[JudgeEndpoint, Server]]:
    with Server(logprobs) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield JudgeEndpoint(f"http://127.0.0.1:{server.server_port}/v1", "judge"), server
        finally:
            server.shutdown()


def test_atoms_are_probabilities_of_yes():
    with judge() as (asked_of, server):
        found = measure_atoms(ASKED, [RED, BLUE], asked_of, lambda count: None)
    assert found.kinds["colour"].mean == pytest.approx((0.9 + 0.1) / 2)
    assert found.kinds["object"].mean == pytest.approx(0.5)
    assert found.score.mean == pytest.approx(((0.5 + 0.9) / 2 + 0.1) / 2)
    assert found.strict.mean == pytest.approx((math.sqrt(0.5 * 0.9) + 0.1) / 2)
    assert (found.prompts, found.unanswered, found.judge) == (2, 0, "judge")
    assert all(one["logprobs"] and one["top_logprobs"] == 20 for one in server.asked)
    assert server.asked[0]["temperature"] == 0


def test_a_server_without_log_probabilities_is_refused():
    with judge(logprobs=False) as (asked_of, _), pytest.raises(UserError, match="gives no log-probabilities"):
        measure_atoms(ASKED, [RED, BLUE], asked_of, lambda count: None)


def test_nobody_answers_and_no_address():
    with pytest.raises(UserError, match=r"--judge.url .*no answer from"):
        measure_atoms(ASKED, [RED, BLUE], JudgeEndpoint("http://127.0.0.1:9/v1", "judge"), lambda count: None)
    with pytest.raises(UserError, match="no server to ask"):
        measure_atoms(ASKED, [RED, BLUE], JudgeEndpoint("judge", "judge"), lambda count: None)


def test_the_prompts_that_come_along():
    asked = read_questions()
    assert len({one.prompt for one in asked}) == len(asked) == 200
    kinds = Counter(atom.kind for one in asked for atom in one.atoms)
    assert kinds.keys() == {"object", "count", "colour", "position", "relation"}
    assert min(kinds.values()) >= 50
    assert all(re.fullmatch(r"(Is|Are) [^?]+\?", atom.question) for one in asked for atom in one.atoms)
    drawn = question_captions(asked, seed=3)
    assert (drawn[0].seed, drawn[199].seed) == (3, 202)


def test_evaluate_asks_about_what_the_model_draws(random_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "read_questions", lambda: ASKED)
    few = replace(QUICK, extreme_images=2, color_images=1, light_images=1, sampling=replace(QUICK.sampling, steps=2))
    with judge() as (asked_of, server):
        path = command.evaluate(str(random_nano), tmp_path, few, Console(quiet=True), against=Against(judge=asked_of))
    found = json.loads(path.read_text(encoding="utf-8"))["atoms"]
    assert (found["prompts"], found["judge"]) == (2, "judge")
    assert found["kinds"].keys() == {"object", "colour"}
    assert len(server.asked) == 3
    assert "What prompts ask for" in (tmp_path / "report.html").read_text(encoding="utf-8")
