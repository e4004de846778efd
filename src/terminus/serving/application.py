"""The application: the interfaces mounted, errors as JSON, the door in front."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from terminus.errors import UserError
from terminus.serving import errors, pages
from terminus.serving.errors import Refusal
from terminus.serving.interfaces import (
    a1111,
    a1111_controls,
    comparisons,
    grids,
    images,
    metrics,
    models,
    native,
    openai,
    runs,
)
from terminus.serving.interfaces.mcp import Mcp
from terminus.serving.security import Door
from terminus.serving.service import ClientGone, Service

_ROUTERS = (
    native.router, native.api, images.api, models.api, grids.api, comparisons.api, runs.api, openai.api, a1111.api,
    a1111_controls.api, metrics.router,
)  # fmt: skip
log = logging.getLogger("terminus")


def application(service: Service) -> ASGIApp:
    """The ASGI application of one service."""

    mcp = Mcp(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        service.start()
        yield
        # Sessions first: they wait for jobs, which need the engine until the end.
        await mcp.stop()
        await service.stop()

    app = FastAPI(
        title="Terminus",
        version=metadata.version("terminus-xl"),
        description="Draws images with SDXL models. Native, OpenAI-style and A1111-style interfaces on one queue.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router)
    app.router.routes.append(Route("/mcp", mcp, include_in_schema=False))
    # Last, for it answers every address that no interface has taken.
    pages.mount(app)
    _handlers(app)
    options = service.options
    return Door(app, options.tokens, options.limits, options.root_path, _own_names(options.host))


def _own_names(host: str) -> tuple[str, ...]:
    """Names by which a server on this address is called, besides those of this machine for itself."""
    return () if host in ("0.0.0.0", "::") else (host,)


def _handlers(app: FastAPI) -> None:
    """Every error has the same shape, and none tells anything of the machine."""

    async def user_error(request: Request, error: Exception) -> Response:
        return error_response(request, 422, cast(UserError, error))

    async def refusal(request: Request, error: Exception) -> Response:
        said = cast(Refusal, error)
        return error_response(request, said.status, said.error, said.field, dict(said.headers))

    async def invalid(request: Request, error: Exception) -> Response:
        said, field = errors.from_validation(list(cast(RequestValidationError, error).errors()))
        return error_response(request, 422, said, field)

    async def http(request: Request, error: Exception) -> Response:
        said = cast(HTTPException, error)
        return error_response(request, said.status_code, UserError(str(said.detail)), None, dict(said.headers or {}))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    async def defect(request: Request, error: Exception) -> Response:
        number = secrets.token_hex(4)
        log.error("request %s: %s %s failed: %s: %s", number, request.method, request.url.path,
                  type(error).__name__, error, exc_info=error)  # fmt: skip
        said = UserError("The server failed at this", rule=f"Its log says why, under {number}")
        return error_response(request, 500, said)

    for kind, handler in (
        (UserError, user_error), (Refusal, refusal), (RequestValidationError, invalid), (HTTPException, http),
        (ClientGone, gone), (Exception, defect),
    ):  # fmt: skip
        app.add_exception_handler(kind, handler)


def error_response(
    request: Request, status: int, error: UserError, field: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """An error in the shape of the interface that was asked."""
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    content: dict[str, Any] = errors.body(error, field)
    if path.startswith("/v1/"):
        # OpenAI answers a bad request with 400, and its clients raise by the status.
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error", 500: "server_error"}
        kind = kinds.get(status, "invalid_request_error")
        content = {"error": {"message": errors.without_paths(str(error)), "type": kind, "param": field, "code": None}}
        status = 400 if status == 422 else status
    elif path.startswith("/sdapi/"):
        content = {"error": type(error).__name__, "detail": errors.without_paths(str(error)), "body": "", "errors": ""}
    return JSONResponse(content, status, headers)
