"""The engine: waiting jobs to idle workers, news from workers to listeners, and everything kept on the way.

All of it runs on the server's own thread. A job's row is written before its client hears of it, so that a server that
is killed finds its queue again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from terminus.errors import UserError
from terminus.serving import orders
from terminus.serving.errors import Refusal, error_parts, refused
from terminus.serving.events import Events
from terminus.serving.gallery import Gallery
from terminus.serving.jobs import Job, JobState
from terminus.serving.ledger import Ledger
from terminus.serving.limits import ServeLimits
from terminus.serving.outlook import Outlook
from terminus.serving.pace import Pace
from terminus.serving.queue import FairQueue, QueueFull
from terminus.serving.safety_rules import hidden_in
from terminus.serving.tally import JobTally
from terminus.serving.worker_setup import WorkerSetup
from terminus.serving.workers import WorkerProcess, context

log = logging.getLogger("terminus")

_ATTEMPTS = 2
"""Times that a job is begun: what ends two workers would end a third."""
_RESTARTS = 5
"""Workers of one device that may end in a minute; more means that it cannot be used."""
_TOGETHER = 16
"""Images of one batch, of several jobs."""
_BATCH_PIXELS = 4 * 1024**2


@dataclass(frozen=True)
class Written:
    """A finished image whose file is on the disk, or why it is not."""

    drawn: orders.Drawn
    key: str = ""
    path: Path = Path()
    error: UserError | None = None


class JobEngine:
    """Jobs, their queue and their workers."""

    def __init__(
        self, ledger: Ledger, gallery: Gallery, events: Events, limits: ServeLimits,
        order_of: Callable[[Job], orders.DrawOrder],
    ) -> None:  # fmt: skip
        self.ledger, self.gallery, self.events, self.limits = ledger, gallery, events, limits
        self._order_of = order_of
        self.queue = FairQueue(limits)
        self.workers: list[WorkerProcess] = []
        self.pace = Pace()
        self.outlook = Outlook(self.queue, self.workers, self.pace, events)
        self.tally = JobTally()
        self.draining = False
        self.broken: dict[str, str] | None = None
        self._active: dict[str, Job] = {}
        self._orders: dict[str, orders.DrawOrder] = {}
        self._ways = context()
        self._first_model: str | None = None
        self._ends: list[float] = []
        self._quiet = asyncio.Event()

    # Beginning and end.

    def start(self, devices: Sequence[str], setup: WorkerSetup, first_model: str | None) -> None:
        """Starts a worker per device, and takes up the jobs that an earlier server left."""
        self._first_model = first_model
        for device in devices:
            worker = WorkerProcess(device, setup, self._heard, self._prepared)
            self.workers.append(worker)
            worker.start(self._ways, first_model)
        for job in self.ledger.unfinished():
            self._active[job.id] = job
            job.state = JobState.QUEUED
            self.queue.add(job)
            self.outlook.tell_queued(job)

    @property
    def state(self) -> str:
        """ "ready", "loading", "failed" or "draining"."""
        if self.draining:
            return "draining"
        if any(worker.ready for worker in self.workers):
            return "ready"
        return "failed" if self.broken else "loading"

    async def drain(self, seconds: float) -> None:
        """Takes no more jobs, and waits for those that are drawn now; what waits is found by the next server."""
        self.draining = True
        self._check_quiet()
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            log.warning("%d jobs are not finished; they are drawn again at the next start", len(self.outlook.running()))
        self.events.close()

    def stop(self) -> None:
        """Ends the workers."""
        for worker in self.workers:
            worker.tell(orders.Stop())
        for worker in self.workers:
            worker.kill()

    # What clients ask.

    def submit(self, job: Job) -> Job:
        """Puts a job into the queue; `Refusal` where there is no room, UserError for what cannot be drawn."""
        if self.draining:
            raise refused(503, "The server is stopping", fix="Ask again in a minute", Retry_After="60")
        if self.broken and not any(worker.ready for worker in self.workers):
            raise refused(503, self.broken["message"], rule=self.broken.get("rule", ""), Retry_After="60")
        try:
            self.queue.check_room(job.user)
        except QueueFull as full:
            self.tally.refused += 1
            wait = str(max(1, min(600, round(self.outlook.seconds_of_all()))))
            raise refused(
                503 if full.whole else 429, f"{full.length} jobs wait already", rule="The queue is bounded",
                fix=f"Ask again in {wait} seconds", Retry_After=wait,
            ) from full  # fmt: skip
        # Before it is written: an order that names what is not there refuses the job.
        self._orders[job.id] = self._order_of(job)
        self.ledger.save(job)
        self._active[job.id] = job
        self.queue.add(job)
        self.outlook.tell_queued(job)
        self._pump_soon()
        return job

    def cancel(self, job: Job) -> None:
        """Ends a job, whether it waits or is drawn; nothing where it is over."""
        if job.state.over:
            return
        self.queue.remove(job)
        for worker in self.workers:
            if job in worker.batch:
                worker.tell(orders.Cancel(job.id))
        self._finish(job, JobState.CANCELLED)
        self.outlook.tell_positions()

    def find(self, user: str, key: str) -> Job | None:
        """A user's job, running or over."""
        job = self._active.get(key) or self.ledger.job(key)
        return job if job is not None and job.user == user else None

    def jobs(self, user: str) -> list[Job]:
        """A user's jobs: those that run, those that wait in their order, then those that are over, newest first."""
        waiting = [job for job in self.queue.order() if job.user == user]
        running = [job for job in self.outlook.running() if job.user == user]
        known = {job.id for job in (*waiting, *running)}
        return [*running, *waiting, *(job for job in self.ledger.recent(user) if job.id not in known)]

    def watch(self, job: Job) -> None:
        """Somebody listens: its worker makes previews from now."""
        for worker in self.workers:
            if job in worker.batch:
                worker.tell(orders.Watch(job.id))

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as clients see it."""
        waits = job.state is JobState.QUEUED
        position = self.outlook.position(job) if waits else None
        return {
            "id": job.id,
            "state": job.state.value,
            "created": job.created,
            "finished": job.finished,
            "position": position,
            "seconds_left": None if job.state.over else round(self.outlook.seconds_left(job), 1),
            "step": job.step,
            "steps": job.steps,
            "request": job.request.model_dump(),
            "images": self._images(job),
            "error": job.error,
            "warnings": job.warnings,
            "group": job.group,
            "again": None if job.again is None else {"image": job.again, **(job.again_result or {})},
        }

    # Work to workers.

    def _pump_soon(self) -> None:
        """After everything that is being asked at this moment: what is asked together can be drawn together."""
        asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        if self.draining:
            return
        given = False
        for worker in self.workers:
            while worker.idle and self._give(worker):
                given = True
        if given:  # those behind have moved up
            self.outlook.tell_positions()

    def _give(self, worker: WorkerProcess) -> bool:
        """Gives a worker the next jobs; whether there were any."""
        batch = self.queue.take(self._joins)
        if not batch:
            return False
        given: list[orders.DrawOrder] = []
        for job in batch:
            try:
                order = self._orders.get(job.id) or self._order_of(job)
            except (UserError, Refusal) as error:  # of a job of an earlier server: what it names is gone
                self._fail(job, error_parts(error.error if isinstance(error, Refusal) else error))
                continue
            job.state = JobState.RUNNING
            job.attempts += 1
            self.ledger.save(job)
            self._orders[job.id] = order
            worker.batch.append(job)
            given.append(replace(order, watched=self.events.watched(job.id)))
            self.events.publish(job.user, job.id, "started", {})
        if given:
            worker.tell(orders.Draw(tuple(given)))
        return True

    def _joins(self, together: list[Job], job: Job) -> bool:
        if job.attempts or any(one.attempts for one in together):
            return False  # what may have ended a worker is drawn alone
        one, other = self._orders.get(together[0].id), self._orders.get(job.id)
        if one is None or other is None or not one.joins(other):
            return False
        images = sum(each.request.count for each in together) + job.request.count
        area = (job.request.width or 1024) * (job.request.height or 1024)
        small = job.request.width is None or area * images <= _BATCH_PIXELS
        return small and images <= _TOGETHER

    # News from workers.

    def _prepared(self, message: orders.FromWorker) -> orders.FromWorker | Written:
        """In a worker's thread: a finished image is written before anybody hears of it."""
        if not isinstance(message, orders.Drawn):
            return message
        job = self._active.get(message.job)
        if job is None or job.state.over:
            return message
        try:
            return Written(message, *self.gallery.write(job.user, message.seed, message.png, message.thumbnail))
        except UserError as error:
            return Written(message, error=error)

    def _heard(self, worker: WorkerProcess, message: orders.FromWorker | Written | None) -> None:
        match message:
            case None:
                self._ended(worker)
            case orders.Ready():
                worker.ready, self.broken = True, None
                self._pump()
            case orders.Broken():
                self.broken = message.error
                error = message.error
                told = UserError(error["message"], where=error["where"], rule=error["rule"], fix=error["fix"])
                log.error("nothing is drawn on device %s: %s", worker.device, told)
            case orders.Idle():
                worker.loaded, worker.batch = message.loaded, []
                self._check_quiet()
                self._pump()
            case orders.Stepped():
                self._stepped(message)
            case Written():
                self._written(message)
            case orders.Done():
                self._done(message)
            case orders.Failed():
                if job := self._live(message.job):
                    self._fail(job, message.error)
            case orders.Drawn():
                pass  # of a job that was cancelled meanwhile

    def _live(self, key: str) -> Job | None:
        job = self._active.get(key)
        return None if job is None or job.state.over else job

    def _stepped(self, news: orders.Stepped) -> None:
        job = self._live(news.job)
        if job is None:
            return
        job.step, job.steps = news.step, news.steps
        self.pace.stepped(job, news.done)
        data = {"step": news.step, "steps": news.steps, "done": round(news.done, 4), "first": news.first,
                "seconds_left": round(self.outlook.seconds_left(job), 1)}  # fmt: skip
        self.events.publish(job.user, job.id, "step", data, news.previews)

    def _written(self, written: Written) -> None:
        drawn = written.drawn
        job = self._live(drawn.job)
        if job is None:
            return
        if written.error is not None:
            for worker in self.workers:
                if job in worker.batch:
                    worker.tell(orders.Cancel(job.id))
            self._fail(job, error_parts(written.error))
            return
        request = {**job.request.model_dump(), "seed": drawn.seed, "count": 1}
        if job.request.variation:
            request |= {"seed": job.request.seed, "count": job.request.count}
        self.gallery.add(written.key, written.path, job.user, {
            "created": time.time(), "width": drawn.width, "height": drawn.height, "model": job.request.model,
            "prompt": job.request.prompt, "negative": job.request.negative, "seed": drawn.seed,
            "steps": job.steps or job.request.steps, "request": json.dumps(request), "metadata": drawn.metadata or None,
            "parameters": drawn.parameters,
        })  # fmt: skip
        job.images.append(written.key)
        if why := hidden_in(json.loads(drawn.metadata or "null")):
            job.warnings.append(why.sentence)
            self.tally.hidden += 1
        self.tally.images += 1
        if drawn.difference is not None:
            job.again_result = {"equal": not drawn.difference, "difference": drawn.difference or None}
        self.ledger.save(job)

    def _done(self, news: orders.Done) -> None:
        job = self._live(news.job)
        if job is not None:
            self._finish(job, JobState.CANCELLED if news.cancelled else JobState.FINISHED)

    def _fail(self, job: Job, error: dict[str, str]) -> None:
        job.error = error
        self._finish(job, JobState.FAILED)

    def _finish(self, job: Job, state: JobState) -> None:
        job.state, job.finished = state, time.time()
        self.ledger.save(job)
        self._active.pop(job.id, None)
        self._orders.pop(job.id, None)
        data: dict[str, Any] = {"images": self._images(job), "warnings": job.warnings}
        if state is JobState.CANCELLED:
            data = {}
        if state is JobState.FINISHED and job.again is not None:
            data["again"] = {"image": job.again, **(job.again_result or {})}
        if state is JobState.FAILED:
            data = {"error": job.error}
        self.events.publish(job.user, job.id, state.value, data)
        self.pace.ended(job)
        self.tally.ended(state.value, job.finished - job.created)
        asyncio.get_running_loop().call_later(120, self.events.forget, job.id)

    def _ended(self, worker: WorkerProcess) -> None:
        """A worker's process is gone: its jobs are drawn again, the first time, and it is replaced."""
        worker.ready = False
        batch, worker.batch = worker.batch, []
        for job in reversed(batch):
            if job.state.over:
                continue
            if job.attempts >= _ATTEMPTS or self.draining:
                self._lose(job)
                continue
            job.state, job.step = JobState.QUEUED, 0
            self.ledger.save(job)
            self.queue.add(job, first=True)
            self.outlook.tell_queued(job)
        self._check_quiet()
        if self.draining:
            return
        now = time.monotonic()
        self._ends = [end for end in self._ends if now - end < 60] + [now]
        if len(self._ends) > _RESTARTS * len(self.workers):
            self.broken = self.broken or error_parts(
                UserError("The workers end again and again", fix="See the server's log")
            )
            return
        if not self.broken:
            log.warning("the worker of %s ended; another one is started", worker.device)
            self.tally.restarts += 1
            worker.start(self._ways, self._first_model)

    def _lose(self, job: Job) -> None:
        if self.draining:  # the next server draws it
            job.state = JobState.QUEUED
            self.ledger.save(job)
            return
        self._fail(job, error_parts(UserError(
            "The worker that drew this ended, twice", rule="A job is begun at most twice",
            fix="Draw fewer or smaller images at once; the server's log may say why",
        )))  # fmt: skip

    def _images(self, job: Job) -> list[dict[str, Any]]:
        return self.gallery.several(job.user, job.images)

    def _check_quiet(self) -> None:
        if self.draining and not any(worker.batch for worker in self.workers):
            self._quiet.set()
