"""Waiting jobs in fair turns: users take turns, and each user's own jobs keep their order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from terminus.serving.jobs import Job
from terminus.serving.limits import ServeLimits


class QueueFull(Exception):
    """No more jobs are taken now. `whole`: of nobody; else of this user."""

    def __init__(self, length: int, *, whole: bool) -> None:
        super().__init__(f"{length} jobs wait")
        self.length, self.whole = length, whole


class FairQueue:
    """Jobs by user. The user whose turn it is gives one, and goes to the end of the line."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._users: OrderedDict[str, list[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._users.values())

    def check_room(self, user: str) -> None:
        """`QueueFull` where no further job of this user may wait."""
        # The whole queue first: 503 is the server's state, 429 the user's own doing.
        if len(self) >= self._limits.waiting:
            raise QueueFull(len(self), whole=True)
        own = len(self._users.get(user, ()))
        if own >= self._limits.waiting_each:
            raise QueueFull(own, whole=False)

    def add(self, job: Job, *, first: bool = False) -> None:
        """Behind the user's other jobs; or `first`, for one that was begun before."""
        own = self._users.setdefault(job.user, [])
        # A job that a dead worker had begun has waited for its turn already.
        own.insert(0 if first else len(own), job)
        if first:
            self._users.move_to_end(job.user, last=False)

    def remove(self, job: Job) -> bool:
        """Takes a job out; whether it was there."""
        own = self._users.get(job.user, [])
        if job not in own:
            return False
        own.remove(job)
        self._forget_idle(job.user)
        return True

    def order(self) -> Iterator[Job]:
        """Jobs in the order in which they would be begun."""
        rows = [list(jobs) for jobs in self._users.values()]
        # Everybody's first job, then everybody's second.
        for turn in range(max(map(len, rows), default=0)):
            yield from (row[turn] for row in rows if turn < len(row))

    def take(self, joins: Callable[[list[Job], Job], bool]) -> list[Job]:
        """The next job, and with it those that `joins` lets be drawn at once; empty where none waits.

        Whoever is served along with another's turn does not lose their own.
        """
        if not self._users:
            return []
        user = next(iter(self._users))
        together = [self._users[user].pop(0)]
        self._users.move_to_end(user)
        for job in list(self.order()):
            if joins(together, job):
                together.append(job)
                self._users[job.user].remove(job)
        for name in list(self._users):
            self._forget_idle(name)
        return together

    def _forget_idle(self, user: str) -> None:
        if not self._users[user]:
            del self._users[user]
