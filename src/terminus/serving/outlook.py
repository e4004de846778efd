"""Where a waiting job stands: its place in the queue and the seconds that are left."""

from __future__ import annotations

from collections.abc import Sequence

from terminus.serving.events import Events
from terminus.serving.jobs import Job, JobState
from terminus.serving.pace import Pace
from terminus.serving.queue import FairQueue
from terminus.serving.workers import WorkerProcess


class Outlook:
    """Places and times, from the queue, what the workers are at, and how fast they have been."""

    def __init__(self, queue: FairQueue, workers: Sequence[WorkerProcess], pace: Pace, events: Events) -> None:
        self._queue, self._workers, self._pace, self._events = queue, workers, pace, events

    def running(self) -> list[Job]:
        """Jobs that are drawn now."""
        return [job for worker in self._workers for job in worker.batch if not job.state.over]

    def position(self, job: Job) -> int:
        """1 is the next; 0 for one that does not wait."""
        return next((place for place, one in enumerate(self._queue.order(), 1) if one is job), 0)

    def seconds_left(self, job: Job) -> float:
        """Until the job has its images."""
        # Workers share what lies ahead; the job itself is drawn by one of them.
        own = self._pace.left(job)
        if job.state is JobState.RUNNING:
            return own
        return self._pace.seconds(self._ahead(job)) / max(1, len(self._workers)) + own

    def seconds_of_all(self) -> float:
        """Until everything that waits now is drawn."""
        return self._pace.seconds(self._ahead(None)) / max(1, len(self._workers))

    def tell_queued(self, job: Job) -> None:
        """Tells a job's listeners where it stands."""
        data = {"position": self.position(job), "seconds_left": round(self.seconds_left(job), 1)}
        self._events.publish(job.user, job.id, "queued", data)

    def tell_positions(self) -> None:
        """Those that somebody listens to hear where they stand now; one pass, however many wait."""
        # A running sum: asking each for its place would be quadratic in the queue.
        ahead, workers = self._pace.seconds(self.running()), max(1, len(self._workers))
        for place, job in enumerate(self._queue.order(), 1):
            own = self._pace.left(job)
            if self._events.watched(job.id):
                data = {"position": place, "seconds_left": round(ahead / workers + own, 1)}
                self._events.publish(job.user, job.id, "queued", data)
            ahead += own

    def _ahead(self, job: Job | None) -> list[Job]:
        ahead = self.running()
        for one in self._queue.order():
            if one is job:
                break
            ahead.append(one)
        return ahead
