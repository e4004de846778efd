"""The tools of MCP: what each takes and gives back. In its own file, for the SDK reads the annotations here."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any, cast

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import ValidationError
from starlette.requests import Request

from terminus.errors import UserError
from terminus.serving.errors import Refusal, from_validation, without_paths
from terminus.serving.events import Event
from terminus.serving.gallery import LOCAL
from terminus.serving.interfaces.results import add_upload, check_done, decoded, job_files
from terminus.serving.jobs import JobRequest
from terminus.serving.service import Service


def tools(service: Service) -> MCPServer[Any]:
    """The server with its tools."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    server: MCPServer[Any] = MCPServer(
        "terminus",
        version=service.version,
        instructions="Draws and edits images with SDXL models of the Terminus family. Images come back with their ids; "
        "an id can be given wherever an image is asked for.",
    )
    root.handlers[:] = handlers  # the SDK would print every message of every library
    own = Tools(service)
    for tool in (own.generate_image, own.edit_image, own.describe_image, own.list_models):
        server.add_tool(tool, structured_output=False)
    return server


class Tools:
    """What a language model can ask for; the words are for it to read."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def generate_image(
        self, prompt: str, context: Context[Any], negative: str = "", model: str | None = None, seed: int | None = None,
        width: int | None = None, height: int | None = None, steps: int | None = None, count: int = 1,
    ) -> list[Any]:  # fmt: skip
        """Draw images from a prompt. Without a size they have the model's own; without a seed, any."""
        fields: dict[str, Any] = {
            "prompt": prompt, "negative": negative, "model": model, "seed": seed, "width": width, "height": height,
            "steps": steps, "count": count,
        }  # fmt: skip
        return await _told(self._drawn(fields, context))

    async def edit_image(
        self, prompt: str, image: str, context: Context[Any], mask: str | None = None, strength: float | None = None,
        negative: str = "", model: str | None = None, seed: int | None = None, steps: int | None = None,
    ) -> list[Any]:  # fmt: skip
        """Draw an image anew: all of it by `strength` (0..1), or only what is white in `mask`.

        `image` and `mask` are base64, or ids that this server gave.
        """
        fields: dict[str, Any] = {
            "prompt": prompt, "negative": negative, "model": model, "seed": seed, "steps": steps, "strength": strength,
            "task": "image" if mask is None else "inpaint", "image": await _image(self._service, context, image),
        }  # fmt: skip
        if mask is not None:
            fields["mask"] = await _image(self._service, context, mask)
        return await _told(self._drawn(fields, context))

    async def describe_image(self, image: str, context: Context[Any]) -> str:
        """What an image says of itself: prompt, seed, model, settings. `image` is base64, or an id of this server."""
        with contextlib.suppress(Refusal):
            shown = self._service.gallery.get(_user(context), image)
            return json.dumps({name: shown[name] for name in ("prompt", "negative", "seed", "model", "request")})
        read = await _told(self._service.read_settings(decoded(image)))
        return json.dumps({name: read[name] for name in ("source", "request", "text", "notes")})

    async def list_models(self) -> str:
        """The models that can be drawn with, and what they are."""
        service = self._service
        entries = [entry for entry in await service.catalogue.models() if entry.problem is None]
        return json.dumps([
            {"id": entry.id, "native_size": service.native(entry), "task": (entry.finding or {}).get("task"),
             "licence": (entry.finding or {}).get("licence")}
            for entry in entries
        ])  # fmt: skip

    async def _drawn(self, fields: dict[str, Any], context: Context[Any]) -> list[Any]:
        service, user = self._service, _user(context)
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            request = JobRequest.model_validate({"model": service.catalogue.first, **given})
        except ValidationError as error:
            raise ToolError(str(from_validation(cast("list[Mapping[str, Any]]", error.errors()))[0])) from error
        job = await service.submit(user, request)

        async def step(event: Event) -> None:
            if event.name == "step":
                await context.report_progress(event.data["done"], 1.0)

        await service.wait(job, _request(context), step)
        check_done(job)
        shown = service.gallery.several(user, job.images)
        told = [{name: one[name] for name in ("id", "seed", "width", "height")} for one in shown]
        images = [Image(data=data, format="png") for data in await job_files(service, job)]
        return [*images, json.dumps(told), *job.warnings]


async def _told(work: Any) -> Any:
    """The result; what a user did wrong as an error that the SDK passes on in full."""
    try:
        return await work
    except Refusal as refusal:
        raise ToolError(without_paths(str(refusal.error))) from refusal
    except UserError as error:
        raise ToolError(without_paths(str(error))) from error


async def _image(service: Service, context: Any, given: str) -> str:
    """The id of an image that is given as an id or as base64."""
    user = _user(context)
    with contextlib.suppress(Refusal):
        service.image(user, given)
        return given
    return await _told(add_upload(service, user, decoded(given)))


def _request(context: Any) -> Request | None:
    return cast("Request | None", getattr(context.request_context, "request", None))


def _user(context: Any) -> str:
    request = _request(context)
    return LOCAL if request is None else cast(str, request.scope["state"]["user"])
