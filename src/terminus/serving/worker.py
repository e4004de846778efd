"""A worker: the process that draws, one per device. Only here, and in the reader of files, is torch imported.

It is told what to draw through a pipe, and looks into the pipe again after every step: so a job can be cancelled at any
step. When the pipe ends, because the server did, so does the worker.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch
from PIL import Image

from terminus.errors import UserError
from terminus.sampling.api import SamplingStep, Terminus
from terminus.sampling.repeating import difference
from terminus.sampling.settings import ImageRequest
from terminus.serving import orders
from terminus.serving.drawing import draw, draw_once_more, prompt_requests
from terminus.serving.errors import error_parts
from terminus.serving.finishing import Finisher, preview
from terminus.serving.orders import DrawOrder
from terminus.serving.shelf import Shelf
from terminus.serving.worker_setup import WorkerSetup

_FAILURES = (
    RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, OSError,
    MemoryError,
)  # fmt: skip
"""What torch and the libraries on it raise: the job has failed, the worker goes on."""
_PREVIEW_SHARE = 3.0
"""Time between previews, in times of what one costs: they take at most a quarter."""


def run_worker(pipe: Connection, device: str, first_model: str | None, setup: WorkerSetup) -> None:
    """The life of a worker: it loads a model, and draws until it is told to stop or its server is gone."""
    # Ctrl-C and a service manager's SIGTERM go to every process; the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(setup.threads or usual_threads())
    try:
        DrawingWorker(pipe, device, setup).serve(first_model)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the server is gone; there is nobody to tell


def usual_threads() -> int:
    """PyTorch's own number of CPU threads but one, which the server needs, and a browser on the same machine.

    On two cores the page showed an image of nano after 2.7 to 3.2 s with one thread, 3.6 to 4.2 s with two. What
    OMP_NUM_THREADS says is kept.
    """
    given = torch.get_num_threads()
    return given if "OMP_NUM_THREADS" in os.environ else max(1, given - 1)


class DrawingWorker:
    """The models of one device, and the jobs that are drawn with them."""

    def __init__(self, pipe: Connection, device: str, setup: WorkerSetup) -> None:
        self._pipe, self._setup = pipe, setup
        self._shelf = Shelf(device)
        self._cancelled: set[str] = set()
        self._watched: set[str] = set()
        self._waiting: list[orders.Draw] = []
        self._stopped = False

    def serve(self, first_model: str | None) -> None:
        """Draws until told to stop."""
        try:
            self._finisher = Finisher(self._setup, self._shelf.device)
            if first_model is not None:
                self._shelf.model(first_model)
        except UserError as error:
            self._pipe.send(orders.Broken(error_parts(error)))
            return
        except _FAILURES as error:
            self._pipe.send(orders.Broken(error_parts(_internal(error))))
            return
        self._pipe.send(orders.Ready(self._shelf.device, first_model))
        while not self._stopped:
            if not self._waiting:
                self._hear(self._pipe.recv())
                continue
            self._batch(self._waiting.pop(0).orders)
            self._pipe.send(orders.Idle(self._shelf.loaded))

    def _hear(self, message: orders.ToWorker) -> None:
        match message:
            case orders.Draw():
                self._waiting.append(message)
                self._watched |= {one.job for one in message.orders if one.watched}
            case orders.Cancel():
                self._cancelled.add(message.job)
            case orders.Watch():
                self._watched.add(message.job)
            case orders.Stop():
                self._stopped = True

    def _listen(self) -> None:
        """Whatever has been told meanwhile."""
        while self._pipe.poll():
            self._hear(self._pipe.recv())

    def _batch(self, batch: Sequence[DrawOrder]) -> None:
        """Draws these together; where that fails, one by one, so that each has its own error."""
        try:
            self._draw(batch)
            errors: dict[str, str] | None = None
        except UserError as error:
            errors = error_parts(error)
        except _FAILURES as error:
            errors = error_parts(_internal(error))
        if errors is not None and len(batch) > 1:
            for order in batch:
                self._batch([order])
            return
        for order in batch:
            if errors is not None:
                self._pipe.send(orders.Failed(order.job, errors))
            else:
                self._pipe.send(orders.Done(order.job, order.job in self._cancelled))
            self._cancelled.discard(order.job)
            self._watched.discard(order.job)

    def _draw(self, batch: Sequence[DrawOrder]) -> None:
        first = batch[0]
        model = self._shelf.model(first.model)
        self._shelf.adapt(model, first.adapters)
        if first.again is not None:
            self._again(model, first)
            return
        requests = [prompt_requests(order, model) for order in batch]
        owners = {
            id(request): (order, number)
            for order, own in zip(batch, requests, strict=True)
            for number, request in enumerate(own)
        }
        progress = _Progress({order.job: len(own) for order, own in zip(batch, requests, strict=True)})
        steps = draw(model, first, [request for own in requests for request in own])
        last, cost = 0.0, 0.0
        for step in steps:
            self._listen()
            if self._stopped or all(order.job in self._cancelled for order in batch):
                self._cancelled |= {order.job for order in batch}
                return
            looked_at = self._finisher.shows_previews and any(order.job in self._watched for order in batch)
            began, shown = time.monotonic(), None
            if step.finished or (looked_at and began - last >= _PREVIEW_SHARE * cost):
                shown = step.images()
                last = time.monotonic()
                cost = last - began
            self._tell(step, shown, owners, progress)

    def _tell(
        self,
        step: SamplingStep,
        shown: Sequence[Image.Image] | None,
        owners: dict[int, tuple[DrawOrder, int]],
        progress: _Progress,
    ) -> None:
        """One step's news, to each of its jobs."""
        by_job: dict[str, list[int]] = {}
        for place, request in enumerate(step.requests):
            by_job.setdefault(owners[id(request)][0].job, []).append(place)
        for job, places in by_job.items():
            if job in self._cancelled:
                continue
            done = progress.advance(job, len(places), step)
            first = owners[id(step.requests[places[0]])][1]
            visible = shown if self._finisher.shows_previews else None
            previews = () if visible is None else tuple(preview(visible[place]) for place in places)
            if shown is not None and step.finished:
                for place in places:
                    order, number = owners[id(step.requests[place])]
                    self._pipe.send(self._finisher.drawn(order, number, step.requests[place], shown[place]))
            self._pipe.send(orders.Stepped(job, step.step, step.steps, done, first, previews))

    def _again(self, model: Terminus, order: DrawOrder) -> None:
        assert order.again is not None
        image = draw_once_more(model, order)
        gap = difference(image, order.again) or ""
        request = ImageRequest(order.request.prompt, order.request.seed or 0)
        self._pipe.send(self._finisher.drawn(order, 0, request, image, gap))


class _Progress:
    """How much of each job is done: steps of its images."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts
        self._done = dict.fromkeys(counts, 0)

    def advance(self, job: str, images: int, step: SamplingStep) -> float:
        """The share, 0..1, after one more step of so many images."""
        self._done[job] += images
        return min(1.0, self._done[job] / (self._counts[job] * step.steps))


def _internal(error: BaseException) -> UserError:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return UserError(
            "There is not enough memory for this", rule="Images that are drawn at once share the device's memory",
            fix="Draw fewer at once, or smaller",
        )  # fmt: skip
    return UserError(f"The worker could not draw this ({type(error).__name__}: {error})", fix="See the server's log")
