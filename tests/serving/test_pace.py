"""The seconds that are left: of the right size from the second step of the first job on."""

from __future__ import annotations

import pytest

from terminus.serving.jobs import Job, JobRequest
from terminus.serving.pace import Pace


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def job(steps: int = 10, count: int = 1, native: int = 64) -> Job:
    return Job("local", JobRequest(model="nano", steps=steps, count=count), native=native)


def test_the_first_job_tells_from_its_second_step_on():
    clock = Clock()
    pace, first, second = Pace(clock), job(), job(steps=20)
    for step in range(1, 6):
        pace.stepped(first, step / 10)
        clock.now += 2.0
    clock.now -= 2.0
    assert pace.left(first) == pytest.approx(10.0), "five more steps of two seconds"
    assert pace.left(second) == pytest.approx(40.0)
    assert pace.seconds([first, second]) == pytest.approx(50.0)


def test_later_jobs_change_it_by_degrees():
    clock = Clock()
    pace = Pace(clock)
    for seconds in (1.0, 1.0, 3.0):
        one = job()
        for step in range(1, 11):
            pace.stepped(one, step / 10)
            clock.now += seconds
        clock.now -= seconds
        pace.ended(one)
    assert pace.left(job()) == pytest.approx(10 * (1.0 + 0.3 * 2.0))


def test_before_any_step_the_model_decides():
    """A job that names no size is as large as its model draws: 64 pixels of nano are no 1024 of SDXL."""
    pace = Pace(Clock())
    assert pace.left(job(native=1024)) == pytest.approx(256 * pace.left(job(native=64)))
    assert pace.left(job(native=64)) < 1.0


def test_a_job_that_was_cancelled_teaches_nothing():
    clock = Clock()
    pace, one = Pace(clock), job()
    known = pace.left(job())
    pace.stepped(one, 0.1)
    clock.now += 50
    pace.ended(one)
    assert pace.left(job()) == known
