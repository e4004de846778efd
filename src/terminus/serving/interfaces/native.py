"""The native interface: jobs with their events, uploads, and what a page needs to know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from terminus.serving import choices
from terminus.serving.events import Event, stream
from terminus.serving.interfaces.models import control_shown
from terminus.serving.interfaces.parts import FormImage, image_of, service_of, user_of
from terminus.serving.jobs import Closed, Id, Job, JobRequest, Text
from terminus.serving.service import ClientGone, Service

router = APIRouter()
api = APIRouter(prefix="/api/v1", tags=["jobs"])

SSE = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Headers of a stream: a proxy must pass every line on at once."""


class PromptText(Closed):
    """A prompt to be looked at."""

    model: Id
    prompt: Text


@router.get("/health", tags=["server"])
async def health(request: Request) -> JSONResponse:
    """200 when an image can be drawn; tells nothing else."""
    state = service_of(request).engine.state
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@api.get("/status", tags=["server"])
async def status(request: Request) -> dict[str, Any]:
    """The server, its queue and its workers."""
    service = service_of(request)
    engine = service.engine
    names = {service.catalogue.entry(key).name: key for key in service.catalogue.ids()}
    return {
        "version": service.version,
        "state": engine.state,
        "message": engine.broken["message"] if engine.broken else None,
        "queue": {"length": len(engine.queue), "limit": service.options.limits.waiting},
        "workers": [
            {
                "device": worker.device,
                "pid": worker.pid,
                "ready": worker.ready,
                "busy": bool(worker.batch),
                "models": [names[one] for one in worker.loaded if one in names],
            }
            for worker in engine.workers
        ],
        "limits": service.options.limits.public(),
        "user": user_of(request),
    }


@api.get("/options", tags=["server"])
async def list_options(request: Request) -> dict[str, Any]:
    """What can be chosen, with titles and sentences, and the defaults."""
    service = service_of(request)
    networks = [control_shown(entry) for entry in await service.catalogue.controls()]
    rules = service.options.setup.safety
    return {
        **choices.offered_choices(service.options.limits),
        "controls": networks,
        "expand": service.expander is not None,
        "safety": None if rules is None else rules.shown(),
    }


@api.post("/prompts/read")
async def read_prompt(request: Request, asked: PromptText) -> dict[str, Any]:
    """Tokens by chunk, and the spans that a page colours."""
    return await service_of(request).read_prompt(asked.model, asked.prompt)


@api.post("/uploads", status_code=201, tags=["images"], openapi_extra=FormImage)
async def new_upload(request: Request) -> dict[str, Any]:
    """Takes an image in: its pixels, upright, in sRGB, and the settings that it tells."""
    service = service_of(request)
    shown = await service.uploads.add(user_of(request), await image_of(request), understand=True)
    recalled = shown.pop("recalled")
    return {**shown, "read": await service.as_request(recalled)}


@api.get("/uploads/{key}", tags=["images"])
async def get_upload(request: Request, key: str) -> FileResponse:
    """An upload, as PNG."""
    return FileResponse(service_of(request).uploads.file(user_of(request), key), media_type="image/png")


@api.post("/jobs", status_code=202)
async def new_job(
    request: Request,
    asked: JobRequest,
    wait: Annotated[bool, Query(description="Answer when it is over; who leaves before cancels it")] = False,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> JSONResponse:
    """Puts a job into the queue."""
    service = service_of(request)
    job = await service.submit(user_of(request), asked, key=idempotency_key)
    if wait:
        try:
            await service.wait(job, request)
        except ClientGone:
            return JSONResponse(service.engine.shown(job), 499)
        return JSONResponse(service.engine.shown(job))
    return JSONResponse(service.engine.shown(job), 202, {"location": f"api/v1/jobs/{job.id}"})


@api.get("/jobs")
async def list_jobs(request: Request) -> dict[str, Any]:
    """This user's jobs: running, waiting in their order, then those that are over."""
    service = service_of(request)
    return {"jobs": [service.engine.shown(job) for job in service.engine.jobs(user_of(request))]}


@api.get("/jobs/{key}")
async def get_job(request: Request, key: str) -> dict[str, Any]:
    """One job."""
    service = service_of(request)
    return service.engine.shown(service.job(user_of(request), key))


@api.delete("/jobs/{key}")
async def cancel_job(request: Request, key: str) -> dict[str, Any]:
    """Cancels a job, at any step; of one that is over nothing changes."""
    service = service_of(request)
    found = service.job(user_of(request), key)
    service.engine.cancel(found)
    return service.engine.shown(found)


@api.get("/jobs/{key}/events", response_class=StreamingResponse)
async def job_events(
    request: Request, key: str, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events of one job: queued, started, step (with previews), then finished, failed or cancelled."""
    service = service_of(request)
    found = service.job(user_of(request), key)
    # A header from a stranger: what is no number begins at the beginning.
    after = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 16 else 0
    return StreamingResponse(_events(service, found, after), media_type="text/event-stream", headers=SSE)


@api.get("/events", response_class=StreamingResponse)
async def all_events(request: Request) -> StreamingResponse:
    """Server-sent events of all of this user's jobs, without previews; each names its job."""
    service = service_of(request)
    return StreamingResponse(_all_events(service, user_of(request)), media_type="text/event-stream", headers=SSE)


async def _events(service: Service, job: Job, after: int) -> AsyncIterator[bytes]:
    told = service.events.told(job.id)
    if job.state.over and not told:  # its history is gone: only its end is left to tell
        shown = service.engine.shown(job)
        data = {name: shown[name] for name in ("images", "error", "again", "warnings")}
        yield Event(1, job.id, job.state.value, data).line()
        return
    listener = service.events.listen(job.id, after)
    service.engine.watch(job)
    try:
        async for line in stream(listener):
            yield line
    finally:
        service.events.leave(listener)


async def _all_events(service: Service, user: str) -> AsyncIterator[bytes]:
    listener = service.events.listen_all(user)
    try:
        async for line in stream(listener, of_all=True):
            yield line
    finally:
        service.events.leave(listener)
