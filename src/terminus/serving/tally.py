"""Counts since the start, for whoever watches over the server."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

_BOUNDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds."""


class JobTally:
    """Jobs, images and times."""

    def __init__(self) -> None:
        self.jobs: Counter[str] = Counter()
        """By the state that they ended in."""
        self.images = self.hidden = self.refused = self.restarts = 0
        self.seconds = 0.0
        self._times = [0] * (len(_BOUNDS) + 1)

    def ended(self, state: str, seconds: float) -> None:
        """One more job is over, so long after it came."""
        self.jobs[state] += 1
        if state == "finished":
            self.seconds += seconds
            self._times[bisect_left(_BOUNDS, seconds)] += 1

    def buckets(self) -> list[tuple[float, int]]:
        """Finished jobs that took at most so many seconds."""
        return [(bound, sum(self._times[: place + 1])) for place, bound in enumerate(_BOUNDS)]
