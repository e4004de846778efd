"""How fast jobs are drawn, learnt from those that are and were: for the seconds that a client has still to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from terminus.serving.jobs import Job

_FIRST_GUESS = 3e-6
"""Seconds of one pixel and step, until a second step has told: those of a small model on a CPU."""
_USUAL_STEPS = 28
_NEWS = 0.3
"""Weight of the newest job in the moving average."""


@dataclass
class _Course:
    """One job that is drawn: when its first step was done, and how much of it was done then and is now, 0..1."""

    begun: float
    first: float
    done: float


class Pace:
    """Seconds of a unit of work, as a moving average, and how much of each job is done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = _FIRST_GUESS
        self._learnt = False
        """Whether a whole job has told; until then each step of the first one does."""
        self._courses: dict[str, _Course] = {}

    def stepped(self, job: Job, done: float) -> None:
        """So much of the job is done, 0..1."""
        course = self._courses.setdefault(job.id, _Course(self._clock(), done, done))
        course.done = done
        taken = self._taken(job, course)
        if not self._learnt and taken is not None:
            self._seconds = taken

    def ended(self, job: Job) -> None:
        """Learns from a job that is over."""
        course = self._courses.pop(job.id, None)
        if course is None or course.done < 1.0:
            return
        taken = self._taken(job, course)
        if taken is not None:
            self._seconds += (_NEWS if self._learnt else 1.0) * (taken - self._seconds)
            self._learnt = True

    def left(self, job: Job) -> float:
        """Seconds of work that one job still is."""
        course = self._courses.get(job.id)
        return _work(job) * self._seconds * (1 - (course.done if course else 0.0))

    def seconds(self, jobs: Iterable[Job]) -> float:
        """Seconds of work that several are."""
        return sum(self.left(job) for job in jobs)

    def _taken(self, job: Job, course: _Course) -> float | None:
        """Seconds of a unit of this job's work since its first step; None where there is no second one yet."""
        share = course.done - course.first
        return (self._clock() - course.begun) / (share * _work(job)) if share > 0 else None


def _work(job: Job) -> float:
    """Pixels times steps of all of its images."""
    request = job.request
    area = (request.width or job.native) * (request.height or job.native)
    return area * request.count * (request.steps or _USUAL_STEPS)
