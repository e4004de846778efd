"""OpenAI's interface to images: generations, edits and variations, also as a stream whose partial images are previews.

Beside OpenAI's own fields a request may have ours (`seed`, `steps`, `guidance`, ...), which its client sends as
`extra_body`. What cannot be done is refused: an image without the asked transparency teaches nobody.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from starlette.datastructures import UploadFile

from terminus.errors import UserError
from terminus.sampling.limits import SEEDS
from terminus.sampling.shapes import Aspect, parse_size
from terminus.serving.errors import Refusal, from_validation
from terminus.serving.events import Event
from terminus.serving.interfaces.native import SSE
from terminus.serving.interfaces.parts import form_of, service_of, user_of
from terminus.serving.interfaces.results import add_upload, check_done, encoded, failure, job_files
from terminus.serving.jobs import Closed, Job, JobRequest, JobState, Number, Text
from terminus.serving.limits import LIMITS
from terminus.serving.service import Service

api = APIRouter(prefix="/v1", tags=["OpenAI"])

_STEPS = {"low": 12, "medium": 28, "standard": 28, "high": 50, "hd": 50, "xhigh": 75, "max": 100}
"""Solver steps by `quality`; "auto" is the default."""
_OWN = (
    "negative", "seed", "steps", "guidance", "rescale", "interval", "solver", "spacing", "variation", "strength",
    "expand",
)  # fmt: skip
"""Our fields that are passed on as they are."""
_JSON = ("n", "output_compression", "stream", "partial_images", "seed", "steps", "guidance", "rescale", "interval",
         "variation", "strength", "expand")  # fmt: skip
"""Fields of a form that are no text."""
_USAGE = {
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip
"""Nothing is counted, for nothing is charged."""


class ImagesRequest(Closed):
    """The body of a generation, and the fields of an edit's form."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text = ""
    model: StrictStr | None = None
    n: Annotated[StrictInt, Field(ge=1, le=LIMITS.count)] | None = None
    size: StrictStr | None = None
    """ "WIDTHxHEIGHT", a shape such as "16:9", or "auto": the model's own."""
    quality: StrictStr | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[StrictInt, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: StrictBool | None = None
    partial_images: Annotated[StrictInt, Field(ge=0, le=8)] | None = None
    moderation: StrictStr | None = None
    style: StrictStr | None = None
    user: StrictStr | None = None
    input_fidelity: StrictStr | None = None

    negative: Text = ""
    seed: Annotated[StrictInt, Field(ge=0, lt=SEEDS)] | None = None
    steps: Annotated[StrictInt, Field(ge=1, le=LIMITS.steps)] | None = None
    guidance: Number | None = None
    rescale: Number | None = None
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    solver: StrictStr | None = None
    spacing: StrictStr | None = None
    variation: Number = 0.0
    strength: Number | None = None
    expand: StrictBool = False


@api.get("/models")
async def list_openai_models(request: Request) -> dict[str, Any]:
    """The models that can be drawn with."""
    service = service_of(request)
    found = await service.catalogue.models()
    return {"object": "list", "data": [_model(service, entry.id) for entry in found if entry.problem is None]}


@api.get("/models/{key}")
async def get_openai_model(request: Request, key: str) -> dict[str, Any]:
    """One model."""
    service = service_of(request)
    return _model(service, service.catalogue.entry(key).id)


@api.post("/images/generations")
async def generations(request: Request, asked: ImagesRequest) -> Response:
    """Images from a prompt."""
    return await _answer(request, asked, "image_generation", {})


@api.post("/images/edits", openapi_extra={"requestBody": {"content": {"multipart/form-data": {}}}})
async def edits(request: Request) -> Response:
    """An image drawn anew: where a mask is transparent, or without one all of it by `strength`."""
    asked, images = await _form(request)
    service, user = service_of(request), user_of(request)
    given = images.get("image", []) + images.get("image[]", [])
    if len(given) != 1:
        raise UserError(f"{len(given)} images", where="image", rule="Exactly one image is edited at a time")
    fields: dict[str, Any] = {"task": "image", "image": await add_upload(service, user, given[0])}
    if masks := images.get("mask"):
        fields |= {"task": "inpaint", "mask": await add_upload(service, user, masks[0], "transparent")}
    return await _answer(request, asked, "image_edit", fields)


@api.post("/images/variations", openapi_extra={"requestBody": {"content": {"multipart/form-data": {}}}})
async def variations(request: Request) -> Response:
    """Images like another one."""
    asked, images = await _form(request)
    given = images.get("image", [])
    if len(given) != 1:
        raise UserError(f"{len(given)} images", where="image", rule="Exactly one image is varied at a time")
    image = await add_upload(service_of(request), user_of(request), given[0])
    return await _answer(request, asked, "image_edit", {"task": "image", "image": image})


async def _form(request: Request) -> tuple[ImagesRequest, dict[str, list[bytes]]]:
    """The fields and the images of a form; numbers and lists stand in it as JSON."""
    images: dict[str, list[bytes]] = {}
    fields: dict[str, Any] = {}
    for name, value in (await form_of(request)).multi_items():
        if isinstance(value, UploadFile):
            images.setdefault(name, []).append(await value.read())
        else:
            fields[name] = _plain(name, value)
    try:
        return ImagesRequest.model_validate(fields), images
    except ValidationError as error:
        said, field = from_validation(cast("list[Mapping[str, Any]]", error.errors()))
        raise Refusal(422, said, field) from error


def _plain(name: str, text: str) -> Any:
    if name not in _JSON:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


async def _answer(request: Request, asked: ImagesRequest, kind: str, fields: dict[str, Any]) -> Response:
    service, user = service_of(request), user_of(request)
    job = await service.submit(user, _job_request(service, asked, fields))
    if asked.stream:
        lines = _stream(service, job, asked, kind)
        return StreamingResponse(lines, media_type="text/event-stream", headers=SSE)
    await service.wait(job, request)
    check_done(job)
    images = await job_files(service, job, asked.output_format or "png", asked.output_compression)
    shown = service.gallery.several(user, job.images)
    data: list[dict[str, Any]] = []
    for one, image in zip(shown, images, strict=True):
        where = {"url": f"{request.base_url}{one['url']}"} if asked.response_format == "url" else {}
        data.append({**(where or {"b64_json": encoded(image)}), "seed": one["seed"], "id": one["id"]})
    size = f"{shown[0]['width']}x{shown[0]['height']}" if shown else "auto"
    said = {"warnings": job.warnings} if job.warnings else {}
    return JSONResponse(
        {"created": int(job.created), "data": data, "usage": _USAGE, **_described(asked), "size": size, **said}
    )


def _job_request(service: Service, asked: ImagesRequest, fields: dict[str, Any]) -> JobRequest:
    if asked.background == "transparent":
        raise UserError("A transparent background", where="background", rule="These models draw every pixel")
    name = asked.model or service.catalogue.first
    if name is None or name not in service.catalogue.ids():
        known = ", ".join(service.catalogue.ids())
        raise Refusal(404, UserError(f"There is no model `{name}`", rule=f"Known: {known}"), "model")
    # Our own fields come before OpenAI's words for the same.
    own = {field: getattr(asked, field) for field in _OWN}
    own |= {"model": name, "prompt": asked.prompt, "count": asked.n or 1}
    if own["steps"] is None and asked.quality not in (None, "auto"):
        if asked.quality not in _STEPS:
            raise UserError(f"quality {asked.quality!r}", where="quality", rule=f"Known: auto, {', '.join(_STEPS)}")
        own["steps"] = _STEPS[asked.quality]
    if asked.size not in (None, "auto"):
        own |= _size(service, name, asked.size)
    return JobRequest.model_validate({**own, **fields})


def _size(service: Service, name: str, text: str) -> dict[str, int]:
    size = parse_size(text)
    if isinstance(size, Aspect):
        native = service.native(service.catalogue.entry(name))
        ratio = (size.width / size.height) ** 0.5
        step = max(8, native // 16)
        return {"width": round(native * ratio / step) * step, "height": round(native / ratio / step) * step}
    return {"width": size.width, "height": size.height}


def _described(asked: ImagesRequest) -> dict[str, Any]:
    quality = asked.quality if asked.quality in ("low", "medium", "high", "xhigh", "max") else "medium"
    return {"output_format": asked.output_format or "png", "quality": quality, "background": "opaque"}


async def _stream(service: Service, job: Job, asked: ImagesRequest, kind: str) -> AsyncIterator[bytes]:
    """Partial images at equal distances on the way, then the whole ones. Who leaves cancels the job."""
    listener = service.events.listen(job.id)
    service.engine.watch(job)
    described = {**_described(asked), "created_at": int(job.created)}
    # A stream goes on while the job is drawn; a break in it cancels the job below.
    partial = _Partial(asked.partial_images or 0)
    try:
        while not job.state.over:
            event = await listener.next(5.0)
            if event is None:
                yield b": still here\n\n"
                continue
            if preview := partial.due(event):
                size = f"{job.request.width}x{job.request.height}" if job.request.width else "auto"
                yield _line(f"{kind}.partial_image", {
                    **described, "b64_json": encoded(preview), "partial_image_index": partial.sent - 1, "size": size,
                    "output_format": "webp",
                })  # fmt: skip
        if job.state is not JobState.FINISHED:
            said = failure(job) if job.state is JobState.FAILED else None
            message = str(said) if said else "The job was cancelled"
            yield _line("error", {"error": {"message": message, "type": "server_error", "param": None, "code": None}})
            return
        images = await job_files(service, job, asked.output_format or "png", asked.output_compression)
        for one, image in zip(service.gallery.several(job.user, job.images), images, strict=True):
            size = f"{one['width']}x{one['height']}"
            yield _line(f"{kind}.completed", {
                **described, "b64_json": encoded(image), "size": size, "usage": _USAGE, "seed": one["seed"],
            })  # fmt: skip
    finally:
        service.events.leave(listener)
        service.engine.cancel(job)


class _Partial:
    """Which of the previews are sent: as many as are asked for, spread evenly over the way."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.sent = 0

    def due(self, event: Event) -> bytes | None:
        """The preview to send now, if any."""
        if not event.previews or self.sent >= self._wanted or event.data["first"] != 0:
            return None
        # The last step's preview would come just before the image itself.
        if event.data["step"] >= event.data["steps"]:
            return None
        if event.data["step"] / event.data["steps"] < (self.sent + 1) / (self._wanted + 1) * 0.9:
            return None
        self.sent += 1
        return event.previews[0]


def _line(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def _model(service: Service, key: str) -> dict[str, Any]:
    return {"id": key, "object": "model", "created": int(service.started), "owned_by": "terminus"}
