"""A run that hangs ends, with the places where its threads stand; one that is slow does not."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from terminus.training.monitor import watchdog
from terminus.training.monitor.watchdog import Watchdog

HANGING = """
import threading
from terminus.training.monitor import watchdog
watchdog.TICK_SECONDS, watchdog.FIRST_SECONDS = 0.02, 0.1

def stuck_in_a_collective():
    threading.Event().wait()

with watchdog.Watchdog():
    stuck_in_a_collective()
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(watchdog, "LATER_SECONDS", 0.05)


def test_a_process_that_hangs_exits_with_1_and_its_stacks():
    child = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60)
    assert child.returncode == 1
    assert "stuck_in_a_collective" in child.stderr
    assert "nothing has happened" in child.stderr


@pytest.mark.usefixtures("quick")
def test_the_first_step_has_more_time_than_the_later_ones():
    left: list[int] = []
    with Watchdog(left.append) as guard:
        time.sleep(0.2)
        assert not left
        guard.alive()
        time.sleep(0.2)
    assert left == [1]


@pytest.mark.usefixtures("quick")
def test_signs_of_life_slow_steps_and_patience():
    left: list[int] = []
    with Watchdog(left.append) as guard:
        for _ in range(3):
            time.sleep(0.03)
            guard.alive()
        time.sleep(0.15)  # ten times what steps took
        guard.alive()
        with guard.patient(forever=True):
            time.sleep(0.7)
        with guard.patient():
            time.sleep(0.2)
    assert not left
