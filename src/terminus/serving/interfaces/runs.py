"""The native interface's training runs: what their folders show, and a sign whenever one goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, StreamingResponse

from terminus.serving.interfaces.native import SSE
from terminus.serving.interfaces.parts import service_of
from terminus.serving.service import Service

api = APIRouter(prefix="/api/v1", tags=["runs"])

_LOOK = 1.0
"""Seconds between two looks at a log."""
_BEAT = 15
_REPORT = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
    )
}
"""A report is a page of its own with styles inside it; it may run nothing and reach nothing."""


@api.get("/runs")
async def list_runs(request: Request) -> dict[str, Any]:
    """Training runs in the folder of `--runs`, those that moved last first."""
    return {"runs": service_of(request).monitor.runs()}


@api.get("/runs/{key}")
async def get_run(request: Request, key: str) -> dict[str, Any]:
    """One run, with its log as `metrics`: columns and rows, thinned evenly."""
    return service_of(request).monitor.run(key)


@api.get("/runs/{key}/events", response_class=StreamingResponse)
async def run_events(request: Request, key: str) -> StreamingResponse:
    """Server-sent events: `change` whenever the run has logged something."""
    service = service_of(request)
    # 404 before the stream begins; afterwards no status can be sent.
    service.monitor.stamp(key)
    return StreamingResponse(_changes(service, key), media_type="text/event-stream", headers=SSE)


@api.get("/runs/{key}/{name}")
async def run_file(request: Request, key: str, name: str) -> FileResponse:
    """A preview, the data report, the evaluation or the card of a run."""
    found = service_of(request).monitor.file(key, name)
    return FileResponse(found.path, media_type=found.media_type, headers=_REPORT)


async def _changes(service: Service, key: str) -> AsyncIterator[bytes]:
    seen, quiet = service.monitor.stamp(key), 0
    yield b"retry: 5000\n\n"
    while not service.engine.draining:
        await asyncio.sleep(_LOOK)
        now, quiet = service.monitor.stamp(key), quiet + 1
        if now != seen:
            seen, quiet = now, 0
            yield b"event: change\ndata: {}\n\n"
        elif quiet % _BEAT == 0:
            yield b": still here\n\n"
