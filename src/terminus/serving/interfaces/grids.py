"""The native interface's grids: one request, and the settings that change along two or three axes."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError

from terminus.errors import UserError
from terminus.serving.errors import Refusal, from_validation, not_found
from terminus.serving.grid_sheet import grid_sheet
from terminus.serving.interfaces.parts import service_of, user_of
from terminus.serving.jobs import Closed, Job, JobRequest
from terminus.serving.service import Service

api = APIRouter(prefix="/api/v1", tags=["grids"])

_FIXED = ("count", "task", "image", "mask", "hires")
"""Fields along which no grid goes: a cell is one image."""
_SEEDS = 2**32


class Axis(Closed):
    """A field of the request and the values that it takes in turn."""

    field: Annotated[str, Field(max_length=40)]
    values: Annotated[list[Any], Field(min_length=1, max_length=100)]


class GridRequest(Closed):
    """What stays, and what changes: columns, rows, sheets."""

    request: JobRequest
    axes: Annotated[list[Axis], Field(min_length=1, max_length=3)]


@api.post("/grids", status_code=202)
async def new_grid(request: Request, asked: GridRequest) -> dict[str, Any]:
    """Puts a job into the queue for every cell; all of them or none."""
    service, user = service_of(request), user_of(request)
    # All cells are checked before the first is queued: half a grid is of no use.
    cells = _requests(asked, service.options.limits.cells)
    key = secrets.token_urlsafe(12)
    jobs: list[Job] = []
    try:
        for cell in cells:
            jobs.append(await service.submit(user, cell, group=key))
    except (UserError, Refusal):
        for job in jobs:
            service.engine.cancel(job)
        raise
    content = {"axes": [axis.model_dump() for axis in asked.axes], "jobs": [job.id for job in jobs]}
    service.state.put("groups", id=key, user=user, kind="grid", created=time.time(), content=json.dumps(content))
    return {"id": key, "jobs": content["jobs"]}


@api.get("/grids/{key}.png")
async def get_grid_sheet(request: Request, key: str) -> Response:
    """All images of a finished grid on one sheet, each with the values that it was drawn with."""
    service, user = service_of(request), user_of(request)
    grid = _grid(service, user, key)
    cells = _cells(service, user, grid)
    if any(cell["image"] is None for cell in cells):
        raise Refusal(409, UserError("This grid is not finished", fix="Ask again when all its images are drawn"))
    files = [service.gallery.file(user, cell["image"]["id"]) for cell in cells]
    png = await service.reader.ask(grid_sheet, files, grid["axes"])
    return Response(png, media_type="image/png")


@api.get("/grids/{key}")
async def get_grid(request: Request, key: str) -> dict[str, Any]:
    """A grid's cells, columns first, then rows, then sheets, with the images that are there."""
    service, user = service_of(request), user_of(request)
    found = _grid(service, user, key)
    cells = _cells(service, user, found)
    over = all(cell["state"] in ("finished", "failed", "cancelled") for cell in cells)
    return {"id": key, "state": "finished" if over else "running", "axes": found["axes"], "cells": cells}


def _requests(asked: GridRequest, most: int) -> list[JobRequest]:
    fields = [axis.field for axis in asked.axes]
    for field in fields:
        if field not in JobRequest.model_fields or field in _FIXED:
            raise UserError(f"A grid cannot go along {field!r}", where="axes", rule="An axis is a setting of a job")
    if len(set(fields)) < len(fields):
        raise UserError("Two axes change the same setting", where="axes", rule="Each axis has a setting of its own")
    base = asked.request.model_dump() | {"count": 1}
    if base["seed"] is None:  # one for all, or the cells would differ by it too
        base["seed"] = secrets.randbelow(_SEEDS)
    chosen = _values(asked.axes)
    if len(chosen) > most:
        raise UserError(f"A grid of {len(chosen)} images", rule=f"A grid has at most {most}", fix="Leave values out")
    try:
        return [JobRequest.model_validate({**base, **dict(zip(fields, values, strict=True))}) for values in chosen]
    except ValidationError as error:
        said, field = from_validation(list(error.errors()))
        raise Refusal(422, said, field) from error


def _values(axes: list[Axis]) -> list[tuple[Any, ...]]:
    """The values of every cell, in the order of the axes; the first axis changes fastest."""
    backwards = itertools.product(*(axis.values for axis in reversed(axes)))
    return [tuple(reversed(values)) for values in backwards]


def _grid(service: Service, user: str, key: str) -> dict[str, Any]:
    row = service.state.row("SELECT content FROM groups WHERE id = ? AND user = ? AND kind = 'grid'", (key, user))
    if row is None:
        raise not_found("grid")
    return json.loads(row["content"])


def _cells(service: Service, user: str, grid: dict[str, Any]) -> list[dict[str, Any]]:
    values = _values([Axis.model_validate(axis) for axis in grid["axes"]])
    cells: list[dict[str, Any]] = []
    for own, key in zip(values, grid["jobs"], strict=True):
        job = service.engine.find(user, key)
        shown = None if job is None else service.engine.shown(job)
        images = [] if shown is None else shown["images"]
        state = "cancelled" if shown is None else shown["state"]
        cells.append({"values": list(own), "job": key, "state": state, "image": images[0] if images else None})
    return cells
