"""Everything that the interfaces share: they translate, and this does."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from terminus.errors import UserError
from terminus.sampling.limits import SEEDS, check_factor
from terminus.serving import reading_tasks
from terminus.serving.catalogue import Catalogue, CatalogueEntry
from terminus.serving.control_networks import check_control
from terminus.serving.engine import JobEngine
from terminus.serving.errors import Refusal, not_found
from terminus.serving.events import Event, Events
from terminus.serving.expansion import KEY_VARIABLE, PromptExpander, TextServer
from terminus.serving.gallery import Gallery, key_of
from terminus.serving.jobs import ControlRequest, Job, JobRequest, check_request
from terminus.serving.ledger import Ledger
from terminus.serving.limits import LIMITS, ServeLimits, check_work
from terminus.serving.monitor import Monitor
from terminus.serving.orders import DrawOrder, Steering
from terminus.serving.prompt_spans import spans
from terminus.serving.reader import Reader
from terminus.serving.safety_rules import hidden_in
from terminus.serving.security import Tokens
from terminus.serving.state import ServerState
from terminus.serving.uploads import Uploads
from terminus.serving.worker_setup import WorkerSetup
from terminus.serving.workers import context

log = logging.getLogger("terminus")

_NATIVE = 1024
"""Side of an image of a model that does not say what it learnt at."""
_SEEDS = 2**32
"""Seeds that are drawn by lot: short enough to be read aloud."""


@dataclass(frozen=True)
class ServeOptions:
    """How a server was started."""

    models: Sequence[str] = ("nano",)
    host: str = "127.0.0.1"
    port: int = 7860
    folder: Path = Path("images")
    model_folders: Sequence[Path] = ()
    runs: Path = Path("runs")
    tokens: Tokens = field(default_factory=lambda: Tokens({}))
    root_path: str = ""
    devices: Sequence[str] = ("auto",)
    setup: WorkerSetup = field(default_factory=WorkerSetup)
    text_server: TextServer | None = None
    """That writes prompts out, for those who ask for it."""
    drain_seconds: float = 60.0
    limits: ServeLimits = LIMITS


class ClientGone(Exception):
    """Whoever waited for a job has left; it was cancelled."""


class Service:
    """The parts of one server."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.state = ServerState(options.folder)
        self.reader = Reader(context())
        self.catalogue = Catalogue(options.models, options.model_folders, self.state, self.reader)
        self.gallery = Gallery(options.folder, self.state)
        server = options.text_server
        self.expander = None if server is None else PromptExpander(server, os.environ.get(KEY_VARIABLE, ""))
        self.uploads = Uploads(self.state, self.reader)
        self.monitor = Monitor(options.runs)
        self.events = Events()
        self.engine = JobEngine(Ledger(self.state), self.gallery, self.events, options.limits, self.order_of)
        self.chosen_models: dict[str, str] = {}
        """By user: what an A1111 client has chosen."""
        self._chores: list[asyncio.Task[None]] = []
        self.started = time.time()

    @property
    def version(self) -> str:
        """Of Terminus."""
        return metadata.version("terminus-xl")

    async def as_request(self, recalled: Any) -> dict[str, Any]:
        """What an image tells, with ids of this server in place of names and hashes."""
        notes = list(recalled.notes)
        model = await self.catalogue.find(recalled.model, recalled.model_hash)
        if recalled.model and model is None:
            notes.append(f"The model {recalled.model[:100]} is not here")
        adapters: list[dict[str, Any]] = []
        for name, digest, weight in recalled.adapters:
            key = await self.catalogue.find(name, digest)
            if key is None:
                notes.append(f"The adapter {name[:100]} is not here")
            else:
                adapters.append({"id": key, "weight": weight})
        request = {**({"model": model} if model else {}), **recalled.request, "adapters": adapters}
        return {"source": recalled.source, "request": request, "model": recalled.model, "text": recalled.text,
                "settings": dict(recalled.settings), "notes": notes}  # fmt: skip

    async def read_settings(self, data: bytes) -> dict[str, Any]:
        """The settings in a stranger's image, as a request."""
        return await self.as_request(await self.reader.ask(reading_tasks.settings_task, data))

    async def enlarge(self, user: str, key: str, factor: float) -> bytes:
        """An image stretched (LANCZOS), as PNG."""
        check_factor(factor)
        self._check_enlarged(self.image_size(user, key), factor)
        return await self.reader.ask(reading_tasks.enlarge_task, self.image(user, key), factor)

    async def encode(self, path: Path, kind: str, quality: int | None) -> bytes:
        """An image's file as JPEG or WebP, which says of itself what the file does."""
        return await self.reader.ask(reading_tasks.encode_task, path, kind, quality, self.options.setup.signer)

    async def draw_again(self, user: str, key: str) -> Job:
        """A job that draws an image once more, from its own metadata."""
        shown = self.gallery.get(user, key)
        if shown["request"] is None or shown["metadata"] is None:
            raise UserError("This image does not say how to draw it again", rule="Only images of Terminus do")
        if hidden_in(shown["metadata"]):
            raise UserError(
                "The safety filter hid this image", rule="Of what is hidden nothing is kept to compare with"
            )
        try:
            request = JobRequest.model_validate({**shown["request"], "count": 1})
        except ValidationError as error:
            what = "This image was drawn from an image or a network that is not named here"
            raise UserError(what, fix="Draw it again with `terminus sample --again`") from error
        return await self.submit(user, request, again=key)

    async def read_prompt(self, model: str, prompt: str) -> dict[str, Any]:
        """Tokens by chunk, and the spans that a page colours."""
        counted = await self.reader.ask(reading_tasks.count_tokens_task, self.catalogue.entry(model).name, prompt)
        return {**counted, "spans": spans(prompt)}

    def start(self) -> None:
        """Starts the workers, and what is done beside."""
        first = self.catalogue.first
        name = None if first is None else self.catalogue.entry(first).name
        self.engine.start(self.options.devices, self.options.setup, name)
        self._chores = [asyncio.create_task(self._keep_house()), asyncio.create_task(self.rebuild())]

    async def stop(self) -> None:
        """Ends workers and chores, and lets go of the folder."""
        for chore in self._chores:
            chore.cancel()
        self.engine.stop()
        if self.expander is not None:
            await self.expander.close()
        self.reader.close()
        self.state.close()

    # Jobs.

    async def submit(
        self, user: str, request: JobRequest, *, key: str | None = None, group: str | None = None,
        again: str | None = None,
    ) -> Job:  # fmt: skip
        """A new job; the earlier one of the same `key`. UserError or `Refusal` for what cannot be drawn."""
        for one in request.controls:
            await self._check_control(one)
        if request.expand and group is not None:
            rule = "All images of a grid or a comparison are drawn from the same words"
            raise UserError("A prompt that is written out", where="expand", rule=rule)
        request, warnings = await self._expanded(request)
        # Nothing is waited for from here on: the same key twice at once is still one job.
        # A client that lost its connection asks again with the same key, and must not pay twice.
        known = self.engine.ledger.by_key(user, key) if key else None
        if known is not None:
            return self.engine.find(user, known.id) or known
        check_request(request)
        entry = self.catalogue.entry(request.model)
        self._check_consent(user, entry)
        self._check_sizes(user, request, entry)
        if request.seed is None:
            # Chosen now, so that a job that is drawn a second time draws the same.
            request = request.model_copy(update={"seed": secrets.randbelow(min(_SEEDS, SEEDS))})
        job = Job(user, request, key=key, group=group, again=again, warnings=warnings, native=self.native(entry))
        return self.engine.submit(job)

    async def _expanded(self, request: JobRequest) -> tuple[JobRequest, list[str]]:
        """The request with its prompt written out, if it asks for that; or as it was, and why."""
        if not request.expand:
            return request, []
        plain = request.model_copy(update={"expand": False})
        if self.expander is None:
            raise UserError(
                "This server writes no prompts out", where="expand", rule="It was started without --expand",
                fix="Leave `expand` out",
            )  # fmt: skip
        try:
            prompt = await self.expander.expand(request.prompt)
            read = await self.read_prompt(request.model, prompt)
            if read["problems"]:
                raise UserError("the text server's answer is no prompt that can be drawn")
        except UserError as error:
            return plain, [f"Drawn from your own prompt: {error.what}."]
        return plain.model_copy(update={"prompt": prompt, "expanded_from": request.prompt}), []

    def job(self, user: str, key: str) -> Job:
        """A user's job; `Refusal` 404 for any other."""
        job = self.engine.find(user, key)
        if job is None:
            raise not_found("job")
        return job

    async def wait(self, job: Job, request: Request | None, each: Any = None) -> Job:
        """The job when it is over; cancelled with `ClientGone` when the client leaves. `each` gets every event."""
        # Before the first look at its state, or its end could be missed.
        listener = self.events.listen(job.id)
        if each is not None:
            self.engine.watch(job)
        try:
            while not job.state.over:
                event: Event | None = await listener.next(0.5)
                if event is not None and each is not None:
                    await each(event)
                # At every event, too: steps that follow each other quickly leave no pause to ask in.
                if request is not None and await request.is_disconnected():
                    raise ClientGone
        except (ClientGone, asyncio.CancelledError):
            self.engine.cancel(job)
            raise
        finally:
            self.events.leave(listener)
        return job

    def order_of(self, job: Job) -> DrawOrder:
        """A job with files in place of ids; UserError or `Refusal` for one that is not there."""
        request, user = job.request, job.user
        again = None if job.again is None else self.gallery.file(user, job.again)
        adapters = tuple((self._file_of(one.id, "adapter"), one.weight) for one in request.adapters)
        controls = tuple(
            Steering(
                self.catalogue.entry(one.id, "control network").control or "ip",  # a file that nobody has asked about
                self._file_of(one.id, "control network"), self.image(user, one.image), one.weight, one.start, one.end,
            )
            for one in request.controls
        )  # fmt: skip
        return DrawOrder(
            job.id,
            self.catalogue.entry(request.model).name,
            request,
            None if request.image is None else self.image(user, request.image),
            None if request.mask is None else self.image(user, request.mask),
            adapters,
            controls,
            again=again,
        )

    def image(self, user: str, key: str) -> Path:
        """The file of an upload or an image."""
        try:
            # Ids of both kinds are unguessable and never equal: one field of a request serves both.
            return self.uploads.file(user, key)
        except Refusal:
            return self.gallery.file(user, key)

    def image_size(self, user: str, key: str) -> tuple[int, int]:
        """Width and height of an upload or an image."""
        try:
            self.uploads.file(user, key)
            return self.uploads.size(key)
        except Refusal:
            shown = self.gallery.get(user, key)
            return shown["width"], shown["height"]

    def _file_of(self, key: str, what: str) -> Path:
        path = self.catalogue.entry(key, what).path
        if path is None:
            raise not_found(what)
        return path

    async def _check_control(self, asked: ControlRequest) -> None:
        self.catalogue.entry(asked.id, "control network")
        entry = await self.catalogue.inspected(asked.id)
        if not entry.control:
            raise UserError(
                f"{entry.id} is no control network", where="controls",
                rule="Controls are ControlNets and T2I-Adapters in folders of diffusers, and IP-Adapters",
                fix="GET api/v1/options lists those that are here",
            )  # fmt: skip
        check_control(entry.control, asked.start, asked.end)

    def native(self, entry: CatalogueEntry) -> int:
        """Side of the images that a model learnt, in pixels."""
        return int((entry.finding or {}).get("native_pixels") or _NATIVE)

    def _check_sizes(self, user: str, request: JobRequest, entry: CatalogueEntry) -> None:
        native = self.native(entry)
        width, height = request.width or native, request.height or native
        if request.image is not None:
            own = self.image_size(user, request.image)
            if request.mask is not None and (size := self.image_size(user, request.mask)) != own:
                rule = "A mask has the size of its image; white is painted anew, black stays"
                what = f"The mask is {size[0]}x{size[1]}, the image {own[0]}x{own[1]}"
                raise UserError(what, where="mask", rule=rule)
            if request.width is None and not request.crop_to_mask:
                width, height = own
            if request.margins is not None:
                width += request.margins.left + request.margins.right
                height += request.margins.top + request.margins.bottom
            if request.task == "upscale":
                self._check_enlarged(own, request.factor or 2.0)
                width, height = native, native
        check_work(width, height, request.steps or 28, request.count, self.options.limits)
        if request.hires is not None:
            self._check_enlarged((width, height), request.hires.factor)

    def _check_enlarged(self, size: tuple[int, int], factor: float) -> None:
        most = self.options.limits.enlarged
        width, height = round(size[0] * factor), round(size[1] * factor)
        if width * height > most:
            raise UserError(f"This would be {width}x{height} pixels", rule=f"Images have at most {most:,} pixels")

    # Consent to restrictions.

    def needs_consent(self, user: str, entry: CatalogueEntry) -> bool:
        """Whether the model's licence has restrictions that this user has not yet agreed to."""
        if not restrictions(entry):
            return False
        return self.state.row("SELECT 1 FROM consents WHERE user = ? AND model = ?", (user, entry.id)) is None

    def consent(self, user: str, key: str) -> None:
        """The user agrees to a model's restrictions."""
        self.state.put("consents", user=user, model=self.catalogue.entry(key).id)

    def _check_consent(self, user: str, entry: CatalogueEntry) -> None:
        if self.needs_consent(user, entry):
            raise Refusal(403, UserError(
                f"The licence of {entry.id} restricts its use: {restrictions(entry)}",
                rule="Whoever draws with it agrees to that first", fix="Agree on the page of models, or POST "
                f"api/v1/models/{entry.id}/consent",
            ))  # fmt: skip

    # Chores.

    async def rebuild(self) -> None:
        """Takes images into the index that lie in the folder and are not in it."""
        # One by one in the reader's process: the server answers meanwhile.
        for user, path in self.gallery.strangers():
            try:
                facts = await self.reader.ask(reading_tasks.gallery_file_task, path)
            except UserError as error:
                log.warning("%s is not in the gallery: %s", path.name, error.what)
                continue
            said = facts.recalled
            request = {"model": said.model, **said.request} if said.request else None
            key = key_of(path)
            self.gallery.thumbnail(key).write_bytes(facts.thumbnail)
            self.gallery.add(key, path, user, {
                "created": path.stat().st_mtime, "width": facts.width, "height": facts.height,
                "model": (await self.catalogue.find(said.model, said.model_hash)) or said.model,
                "prompt": said.request.get("prompt", ""), "negative": said.request.get("negative", ""),
                "seed": said.request.get("seed"), "steps": said.request.get("steps"),
                "request": None if request is None else json.dumps(request),
                "metadata": facts.metadata or None, "parameters": facts.parameters,
            })  # fmt: skip

    async def _keep_house(self) -> None:
        while True:
            self.gallery.empty_trash()
            # A job that waits for a day still needs its images.
            self.uploads.remove_old({key for job in self.engine.queue.order() for key in job.request.image_ids})
            self.engine.ledger.forget_old()
            await asyncio.sleep(3600)


def restrictions(entry: CatalogueEntry) -> str:
    """What a model's licence forbids, in a sentence; "" where nothing is known to be."""
    licence = str((entry.finding or {}).get("licence") or "").lower()
    if "openrail" in licence:
        return "OpenRAIL licences list uses that are forbidden, among them harm to people and deceit"
    if any(word in licence for word in ("-nc", "noncommercial", "non-commercial")):
        return "not for commercial use"
    return ""
