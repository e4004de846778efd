"""Runs as their folders show them: curves that grow and stay small, and no file outside the folder."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from terminus.serving.errors import Refusal
from terminus.serving.monitor import Monitor
from terminus.serving.run_log import RunLog


def row(step: int, **more: object) -> str:
    return (
        json.dumps({"step": step, "images_seen": 4 * step, "loss": 1 / step, "bands": {"000-099": 0.5}, **more}) + "\n"
    )


def test_a_log_is_read_as_it_grows(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text(row(1) + row(2)[:10])
    log = RunLog(path)
    log.read_on()
    assert [one["step"] for one in log.rows] == [1]
    path.write_text(row(1) + row(2) + row(3, loss=float("nan"), validation={"all": 0.25}))
    log.read_on()
    assert [one["step"] for one in log.rows] == [1, 2, 3]
    table = log.table()
    assert table["columns"] == ["step", "images_seen", "loss", "000-099", "validation"]
    assert table["rows"][2] == [3, 12, None, 0.5, 0.25]
    path.write_text(row(1))
    log.read_on()
    assert [one["step"] for one in log.rows] == [1]


def test_a_long_log_is_thinned_evenly_and_ends_with_its_last_row(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(row(step) for step in range(1, 20_001)))
    log = RunLog(path)
    log.read_on()
    steps = [values[0] for values in log.table()["rows"]]
    assert len(steps) <= 2002
    assert steps[-1] == 20_000
    assert len({later - sooner for sooner, later in pairwise(steps[:-1])}) == 1


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"images_seen": true}', '{"images_seen": 1e999}', "[" * 10**5])
def test_lines_that_are_no_rows_are_left_out(tmp_path: Path, line: str):
    path = tmp_path / "log.jsonl"
    path.write_text(f"{line}\n{row(1)}")
    log = RunLog(path)
    log.read_on()
    assert [one["step"] for one in log.rows] == [1]


def test_pages_and_previews_are_found_and_nothing_else(tmp_path: Path):
    runs = tmp_path / "runs"
    (runs / "a" / "previews").mkdir(parents=True)
    (runs / "a" / "log.jsonl").write_text(row(1))
    (runs / "a" / "previews" / "images-000000000004.png").write_bytes(b"png")
    (runs / "a" / "recipe.yaml").write_text("data:\n  store: runs/data\n")
    (runs / "data").mkdir()
    (runs / "data" / "report.html").write_text("report")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (runs / "a" / "previews" / "images-1.png").symlink_to(tmp_path / "secret.png")
    monitor = Monitor(runs)
    (run,) = monitor.runs()
    assert (run["id"], run["state"], run["images_seen"]) == ("a", "running", 4)
    assert run["report"] == "api/v1/runs/a/report"
    assert run["card"] is None
    assert monitor.file("a", "report").path == runs / "data" / "report.html"
    assert monitor.file("a", "images-000000000004.png").media_type == "image/png"
    for name in ("images-1.png", "log.jsonl", "../../secret.png", "card", "images-2.png"):
        with pytest.raises(Refusal):
            monitor.file("a", name)
    with pytest.raises(Refusal):
        monitor.run("../runs/a")


def test_a_finished_run_says_its_goodput(tmp_path: Path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "log.jsonl").write_text(row(1))
    (tmp_path / "b" / "c" / "facts.json").write_text('{"goodput": {"share": 0.75}}')
    (run,) = Monitor(tmp_path).runs()
    assert (run["id"], run["state"], run["goodput"]) == ("b-c", "finished", 0.75)
