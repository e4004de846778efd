"""How fast jobs are drawn, learnt from those that were: for the seconds that a client has still to wait."""

from __future__ import annotations

import time
from collections.abc import Iterable

from terminus.serving.jobs import Job

_FIRST_GUESS = 3e-6
"""Seconds of one pixel and step, until the first job has told: those of a small model on a CPU."""
_USUAL_SIDE = 512
_USUAL_STEPS = 28


class Pace:
    """Seconds of a unit of work, as a moving average, and how much of each job is done."""

    def __init__(self) -> None:
        self._seconds = _FIRST_GUESS
        self._begun: dict[str, float] = {}
        self._done: dict[str, float] = {}

    def stepped(self, job: Job, done: float) -> None:
        """So much of the job is done, 0..1."""
        self._begun.setdefault(job.id, time.monotonic())
        self._done[job.id] = done

    def ended(self, job: Job) -> None:
        """Learns from a job that is over."""
        begun, done = self._begun.pop(job.id, None), self._done.pop(job.id, 0.0)
        if begun is not None and done >= 1.0:
            taken = (time.monotonic() - begun) / _work(job)
            self._seconds += 0.3 * (taken - self._seconds)

    def left(self, job: Job) -> float:
        """Seconds of work that one job still is."""
        return _work(job) * self._seconds * (1 - self._done.get(job.id, 0.0))

    def seconds(self, jobs: Iterable[Job]) -> float:
        """Seconds of work that several are."""
        return sum(self.left(job) for job in jobs)


def _work(job: Job) -> float:
    request = job.request
    side = _USUAL_SIDE
    area = (request.width or side) * (request.height or side)
    return area * request.count * (request.steps or _USUAL_STEPS)
