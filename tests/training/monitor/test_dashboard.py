"""What a run looks like while it trains: the view at every size, lines without a terminal."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import pty
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from rich.console import Console

from terminus.config.load import dump, load
from terminus.errors import UserError
from terminus.progress import Meter
from terminus.training.monitor.dashboard import About, Dashboard, about_run, watch
from terminus.training.monitor.history import Curve, Follower, History, parse_row, resample
from terminus.training.monitor.journal import Journal, LogRow
from terminus.training.monitor.screen import number, span, spark
from terminus.training.recipe import Recipe

BANDS = [f"{start:03d}-{start + 99:03d}" for start in range(0, 1000, 100)]


def a_row(step: int, **changes: object) -> LogRow:
    loss = 0.1 + math.exp(-step / 10)
    fields: dict[str, object] = {
        "step": step, "images_seen": 8 * step, "epoch": 0, "loss": loss, "error": 2 * loss, "learning_rate": 1e-4,
        "gradient_norm": 0.5, "bands": dict.fromkeys(BANDS, loss), "seconds": 0.1, "images_per_second": 80.0,
        "validation": {"all": 0.25, BANDS[0]: 0.3} if step == 3 else None,
    }  # fmt: skip
    return LogRow(**fields | changes)  # pyright: ignore[reportArgumentType]


def a_run(folder: Path, images: int = 800, name: str = "nano") -> About:
    return About(name, folder, images, saves_every=160, device=torch.device("cpu"))


def on_screen(width: int, height: int, what: About, history: History, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
    console.print(Dashboard(what, console, history).draw())
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def a_history(steps: int = 40) -> History:
    history = History()
    for step in range(1, steps + 1):
        history.add(a_row(step), {"all": 0.5} if step == 1 else None)
    return history


@pytest.mark.parametrize("height", [10, 24, 50])
@pytest.mark.parametrize("width", [30, 60, 80, 116, 140, 300])
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_it_fits_the_terminal(width: int, height: int, steps: int, tmp_path: Path):
    lines = on_screen(width, height, a_run(tmp_path, name="a name of a model " * 9), a_history(steps))
    assert max(map(len, lines)) <= width
    assert len(lines) <= 23 or width < 80
    assert lines[0].startswith("╭")
    assert lines[-1].endswith("╯")


@pytest.mark.parametrize("width", [80, 140])
def test_it_shows_what_matters(width: int, tmp_path: Path):
    (tmp_path / "checkpoints" / "images-000000000160").mkdir(parents=True)
    history = a_history()
    history.add(a_row(41, reason="not finite", loss=float("nan"), skipped=("a",)))
    text = "\n".join(on_screen(width, 24, a_run(tmp_path), history))
    for said in (
        "328 of 800 images", "41.0 %", "step 41", "5 s left", "median 80", "validation    0.2500",
        "before 0.5000 (-50 %)", "saved at 160 images", "1 step left out, the last is 41 (not finite)", *BANDS,
    ):  # fmt: skip
        assert said in text
    mean = sum(a_row(step).loss for step in range(1, 41)) / 40
    assert f"{mean:.4f}" in text  # the step that is not finite spoils no mean
    assert "MFU" not in text  # nobody knows the peak of this CPU


def test_one_measurement_is_drawn_beside_the_start(tmp_path: Path):
    lines = on_screen(80, 24, a_run(tmp_path, name="My run"), a_history(3))
    assert "My run" in lines[0]
    (line,) = [line for line in lines if "validation " in line]
    assert "█▁" in line  # 0.5 before the first step, 0.25 at the third


def test_mfu_is_said_where_work_and_peak_are_known(tmp_path: Path):
    what = About("x", tmp_path, 800, device=torch.device("cpu"), flops=20e12, peak=4 * 800e12, processes=4)
    text = "\n".join(on_screen(80, 24, what, a_history()))
    assert "MFU 50.0%" in text
    assert "4 processes" in text


def test_a_terminal_without_unicode(tmp_path: Path):
    assert any("#" in line for line in on_screen(80, 24, a_run(tmp_path), a_history(), encoding="ascii"))


def test_names_are_not_obeyed(tmp_path: Path):
    text = "\n".join(on_screen(80, 24, a_run(tmp_path, name="[red]x \x1b[2J\nnext"), a_history()))
    assert "[red]x ?[2J?next" in text


def test_a_curve_keeps_its_shape_in_bounded_memory():
    curve = Curve()
    for value in range(100_000):
        curve.add(float(value))
    curve.add(float("inf"))
    points = curve.points(10)
    assert len(curve.points(10**9)) <= 513
    assert points == sorted(points)
    assert points[0] == pytest.approx(5_000, rel=0.05)
    assert points[-1] == pytest.approx(95_000, rel=0.05)
    assert curve.now == pytest.approx(99_949.5)
    assert resample([], 5) == []


def test_a_spark_is_not_pressed_flat_by_the_first_steps():
    assert spark([9.0, 3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0]) == "███▅▅▅▁▁"
    assert spark([2.0, 2.0]) == "▁▁"
    assert spark([]) == ""
    assert [span(one) for one in (5.0, 65.0, 3_000.0, 90_000.0)] == ["5 s", "1 min 5 s", "50 min", "1 d 1 h"]
    assert [number(one) for one in (0.0, 1e-5, 12.345, 1234.5, math.inf)] == [
        "0",
        "1.0e-05",
        "12.3",
        "1,234",
        "not finite",
    ]


def test_a_log_reads_back_as_its_rows(tmp_path: Path):
    rows = [a_row(1), a_row(2, loss=float("inf"), reason="not finite", skipped=("a", "b")), a_row(3)]
    with Journal(tmp_path, 0) as journal:
        for row in rows:
            journal.write(row, {"all": 0.5} if row.step == 1 else None)
    parsed = [parse_row(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()]
    assert [one and one[1] for one in parsed] == [{"all": 0.5}, None, None]
    assert [one and one[0] for one in parsed][::2] == rows[::2]
    assert parsed[1] is not None
    assert math.isnan(parsed[1][0].loss)
    assert parsed[1][0].skipped == ("a", "b")


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b'{"step": 1}', b'{"step": {}}', b"\x00\xff"])
def test_what_is_no_row_is_passed_over(line: bytes):
    assert parse_row(line) is None


def test_a_log_is_followed_while_it_grows_and_read_again_when_it_was_written_anew(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    follower = Follower(path)
    assert follower.read() == 0
    with Journal(tmp_path, 0) as journal:
        for step in range(1, 9):
            journal.write(a_row(step))
        assert follower.read() == 8
        with path.open("ab") as torn:
            torn.write(b'{"step": 9, "ima')
        assert follower.read() == 0
        with path.open("r+b") as torn:
            torn.truncate(path.stat().st_size - 16)
        journal.undo(5, 1)
        assert follower.read() == 8
        journal.write(a_row(9))
        assert follower.read() == 1
    history = follower.history
    assert (history.undone, len(history.speeds)) == (3, 6)
    assert history.last == a_row(9)


def test_without_a_terminal_there_are_plain_lines_now_and_then(tmp_path: Path):
    console = Console(file=io.StringIO(), width=80)
    with Dashboard(a_run(tmp_path), console, History()) as dashboard:
        for step in range(1, 101):
            dashboard.row(a_row(step), {"all": 0.5})
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert [line.split(",")[0] for line in lines] == ["train: 24/800 images", "train: 800/800 images"]
    assert "validation 0.2500 (before 0.5000)" in lines[1]
    assert "\x1b" not in "".join(lines)


def drained(leader: int, received: bytearray) -> None:
    """What a terminal receives, until nobody writes to it any more."""
    with suppress(OSError):
        while data := os.read(leader, 65_536):
            received.extend(data)


def test_a_message_while_live_tears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leader, follower = pty.openpty()
    received = bytearray()
    reader = threading.Thread(target=drained, args=(leader, received))
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    logger = logging.getLogger("terminus")
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        handler = logging.StreamHandler()
        monkeypatch.setattr(logger, "handlers", [handler])  # whatever other tests have left there
        console = Console(stderr=True, width=80, height=24)
        with Dashboard(a_run(tmp_path, images=80), console, History()) as dashboard:
            assert dashboard.is_live
            for step in range(1, 11):
                dashboard.row(a_row(step))
                if step == 5:
                    time.sleep(1.2)
                    logger.warning("a message")
                    time.sleep(1.2)
        assert handler.stream is terminal is sys.stderr
    reader.join(10)
    os.close(leader)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", received.decode())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain)]
    assert lines.count("a message") == 1
    before, after = plain.split("a message")
    assert "40 of 80 images" in before
    assert before.count("╭") == before.count("╯")
    assert "╭" in after
    assert "100.0 %" in after
    assert received.rindex(b"\x1b[?25h") > received.rindex(b"\x1b[?25l")  # the cursor is there at the end


def test_a_terminal_that_goes_away_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    terminal = os.fdopen(follower, "w")
    console = Console(file=terminal, width=80, height=24)
    with Dashboard(a_run(tmp_path), console, History()) as dashboard:
        os.close(leader)
        dashboard.row(a_row(1))
    with suppress(OSError):
        terminal.close()
    assert dashboard.history.last == a_row(1)


YARDSTICK = 0.0047
"""Seconds of a quiet core of the Xeon that the bounds were set on."""


def yardstick() -> object:
    return json.loads(json.dumps([{"step": step, "text": str(step) * 3} for step in range(4_000)]))


def test_drawing_costs_as_little_after_weeks(tmp_path: Path):
    """Of processor time, once a second, and no more after a run of weeks; a row itself costs microseconds. The bounds
    are a quiet core's, on which `yardstick` takes 4.7 ms: where others share its caches, all of it is slower."""
    console = Console(file=io.StringIO(), width=140, height=40, force_terminal=True)
    short, long = (Dashboard(a_run(tmp_path), console, a_history(rows)) for rows in (30, 3_000))

    def seconds(work: Callable[[], object]) -> float:
        started = time.thread_time()
        work()
        return time.thread_time() - started

    def drawn(view: Dashboard) -> float:
        return seconds(lambda: console.print(view.draw()))

    turns = [(drawn(short), drawn(long)) for _ in range(10)]
    least_short, least_long = (min(column) for column in zip(*turns, strict=True))
    assert least_long < 2 * least_short
    slowness = max(1.0, min(seconds(yardstick) for _ in range(10)) / YARDSTICK)
    assert least_long < 0.01 * slowness
    row = a_row(3_001)
    assert min(seconds(lambda: long.row(row)) for _ in range(10)) < 0.001 * slowness


def test_a_bar_prints_messages_above_itself_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    handler = logging.StreamHandler()
    logger = logging.getLogger("terminus")
    logger.addHandler(handler)
    try:
        with Meter(Console(stderr=True, force_terminal=True, width=80), "work", 10) as meter:
            meter.advance(1)
            assert handler.stream is not screen
            logger.warning("a message")
        assert handler.stream is screen
    finally:
        logger.removeHandler(handler)
    assert "a message" in screen.getvalue()


def recipe_in(folder: Path, images: int = 80) -> Recipe:
    recipe = load("nano", Recipe, [f"run.dir={folder}", f"training.images={images}", "training.micro_batch=8"]).value
    (folder / "recipe.yaml").write_text(dump(recipe))
    return recipe


def test_a_run_of_another_process_is_watched_until_its_model_is_there(tmp_path: Path):
    recipe_in(tmp_path)
    console = Console(file=io.StringIO(), width=80)
    with Journal(tmp_path, 0) as journal:
        journal.write(a_row(1), {"all": 0.5})
        viewer = threading.Thread(target=watch, args=(tmp_path, console, 0.01))
        viewer.start()
        for step in range(2, 11):
            journal.write(a_row(step))
            time.sleep(0.02)
        assert viewer.is_alive()
    (tmp_path / "model").mkdir()
    (tmp_path / "facts.json").write_text(json.dumps({"images_seen": 80}))
    viewer.join(10)
    assert not viewer.is_alive()
    assert "train: 80/80 images" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_that_is_no_run_cannot_be_watched(tmp_path: Path):
    with pytest.raises(UserError):
        watch(tmp_path, Console(file=io.StringIO()))


def test_what_a_recipe_says_of_its_run(tmp_path: Path):
    recipe = recipe_in(tmp_path, images=81)
    what = about_run(recipe, tmp_path, device=torch.device("cpu"))
    assert (what.images, what.flops, what.peak) == (88, None, None)
