"""What happens to jobs, told to whoever listens: one history per job, so that a listener who lost the line goes on."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

_KEPT = 256
"""Events of a job that are kept for those who come back."""
_WAITING = 512
"""Events that wait for one slow listener; of more, the steps are left out."""
OVER = ("finished", "failed", "cancelled")


@dataclass(frozen=True)
class Event:
    """One line of a job's story."""

    number: int
    job: str
    name: str
    data: dict[str, Any]
    previews: tuple[bytes, ...] = ()
    """WebP, one per image; in `step` alone."""

    def payload(self) -> dict[str, Any]:
        """The event's data, with previews as addresses that hold them."""
        if not self.previews:
            return self.data
        return {**self.data, "previews": [data_url(preview) for preview in self.previews]}

    def line(self, *, of_all: bool = False) -> bytes:
        """As server-sent events write it; where those `of_all` jobs are told, each names its job and shows nothing."""
        data = {**self.data, "job": self.job} if of_all else self.payload()
        return f"id: {self.number}\nevent: {self.name}\ndata: {json.dumps(data)}\n\n".encode()


def data_url(preview: bytes) -> str:
    """A WebP image as an address that holds it."""
    return "data:image/webp;base64," + base64.b64encode(preview).decode()


class Listener:
    """A queue of events for one listener. A slow one loses steps, and never what ends a job."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()
        self.closed = False

    def tell(self, event: Event) -> None:
        """Adds an event; one that waits already and is overtaken, a step of the same job, goes."""
        # A client that reads slowly needs only the newest step.
        if event.name == "step" and self._waiting and self._waiting[-1].name == "step":
            if self._waiting[-1].job == event.job:
                self._waiting.pop()
        elif len(self._waiting) >= _WAITING:
            self._waiting = deque(one for one in self._waiting if one.name != "step")
        self._waiting.append(event)
        self._news.set()

    def close(self) -> None:
        """Ends the listening, after what still waits."""
        self.closed = True
        self._news.set()

    async def next(self, timeout: float) -> Event | None:
        """The next event; None after `timeout` seconds without one, or when closed."""
        if not self._waiting and not self.closed:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), timeout)
            except TimeoutError:
                return None
        return self._waiting.popleft() if self._waiting else None


class Events:
    """Histories of jobs and their listeners."""

    def __init__(self) -> None:
        self._histories: dict[str, list[Event]] = {}
        self._of_job: dict[str, set[Listener]] = {}
        self._of_user: dict[str, set[Listener]] = {}
        self._previews: dict[str, bytes] = {}
        """The first image's newest preview, by job."""
        self._number = 0
        self.closed = False

    def publish(self, user: str, job: str, name: str, data: dict[str, Any], previews: Iterable[bytes] = ()) -> None:
        """Tells one event."""
        self._number += 1
        # Numbers grow over all jobs, so that Last-Event-ID tells where a reader was.
        event = Event(self._number, job, name, data, tuple(previews))
        if event.previews:
            self._previews[job] = event.previews[0]
        history = self._histories.setdefault(job, [])
        # Only the last step is kept: whoever comes late needs no history of them.
        if history and history[-1].name == name == "step":
            history.pop()
        history.append(event)
        del history[:-_KEPT]
        for listener in (*self._of_job.get(job, ()), *self._of_user.get(user, ())):
            listener.tell(event)

    def forget(self, job: str) -> None:
        """Lets go of a job's history."""
        self._histories.pop(job, None)
        self._previews.pop(job, None)

    def told(self, job: str) -> bool:
        """Whether a job has a history here."""
        return job in self._histories

    def last_step(self, job: str) -> tuple[float, bytes | None]:
        """How far a job is, 0..1, and its newest preview."""
        steps = [event for event in self._histories.get(job, ()) if event.name == "step"]
        if not steps:
            return 0.0, None
        return float(steps[-1].data["done"]), self._previews.get(job)

    def watched(self, job: str) -> bool:
        """Whether somebody listens to this job."""
        return bool(self._of_job.get(job))

    def listen(self, job: str, after: int = 0) -> Listener:
        """A listener to one job, who is first told what came after the event of this number."""
        listener = Listener()
        # History first and then the live events, in one go: nothing comes between.
        for event in self._histories.get(job, ()):
            if event.number > after:
                listener.tell(event)
        self._of_job.setdefault(job, set()).add(listener)
        return listener

    def listen_all(self, user: str) -> Listener:
        """A listener to all of a user's jobs, from now on."""
        listener = Listener()
        self._of_user.setdefault(user, set()).add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """Ends a listener."""
        for table in (self._of_job, self._of_user):
            for key in [key for key, those in table.items() if listener in those]:
                table[key].discard(listener)
                if not table[key]:
                    del table[key]

    def close(self) -> None:
        """Ends all listeners: the server stops."""
        self.closed = True
        for table in (self._of_job, self._of_user):
            for those in table.values():
                for listener in those:
                    listener.close()


async def stream(listener: Listener, *, of_all: bool = False, beat: float = 15.0) -> AsyncIterator[bytes]:
    """Lines of server-sent events: to the end of the job, or for ever where those `of_all` jobs are told."""
    # Milliseconds until a browser asks again after a break.
    yield b"retry: 2000\n\n"
    while True:
        event = await listener.next(beat)
        if event is None and listener.closed:
            return
        if event is None:
            # A comment line: proxies close a stream that is silent for a minute.
            yield b": still here\n\n"
            continue
        yield event.line(of_all=of_all)
        if event.name in OVER and not of_all:
            return
