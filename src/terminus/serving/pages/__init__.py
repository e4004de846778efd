"""The pages: one template each, and their styles and modules, all served from here and from nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

from fastapi import Body, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import TemplateNotFound
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from terminus.errors import UserError
from terminus.serving.errors import Refusal, not_found
from terminus.serving.jobs import Closed
from terminus.serving.security import COOKIE
from terminus.serving.service import Service

_HERE = Path(__file__).parent
PAGES = {
    "/": "draw",
    "/canvas": "canvas",
    "/grid": "grid",
    "/compare": "compare",
    "/gallery": "gallery",
    "/models": "models",
    "/runs": "runs",
    "/login": "login",
}
"""Template by address."""


class TokenGiven(Closed):
    """What the login page sends."""

    token: Annotated[str, Body(max_length=1000)]


def mount(app: FastAPI) -> None:
    """Adds the pages, their files and the login to an application."""
    templates = Jinja2Templates(_HERE / "templates")  # its environment escapes everything
    (_HERE / "static").mkdir(exist_ok=True)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")

    def page(name: str):
        async def show(request: Request) -> Response:
            return _render(templates, request, name)

        return show

    for address, name in PAGES.items():
        app.add_api_route(address, page(name), include_in_schema=False, response_class=HTMLResponse)
    app.add_api_route("/login", login, methods=["POST"], include_in_schema=False)
    app.add_api_route("/logout", logout, methods=["POST"], include_in_schema=False)


def _render(templates: Jinja2Templates, request: Request, name: str) -> Response:
    service = cast(Service, request.app.state.service)
    known = {
        "root": request.scope.get("root_path", ""),
        "page": name,
        "version": service.version,
        "tokens": bool(service.options.tokens),
    }
    try:
        status = cast(int, request.scope["state"].get("status", 200))
        return templates.TemplateResponse(request, f"{name}.html", known, status)
    except TemplateNotFound as error:
        raise not_found("page") from error


async def login(request: Request, given: TokenGiven) -> Response:
    """Gives the browser a cookie for a token; the token itself is not in it."""
    tokens = cast(Service, request.app.state.service).options.tokens
    if tokens.user(given.token) is None:
        raise Refusal(401, UserError("This token is not known"))
    answer = JSONResponse({"ok": True})
    root = request.scope.get("root_path", "") or "/"
    secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
    answer.set_cookie(
        COOKIE, tokens.cookie(given.token), max_age=30 * 24 * 3600, path=root, secure=secure, httponly=True,
        samesite="strict",
    )  # fmt: skip
    return answer


async def logout(request: Request) -> Response:
    """Takes the cookie away."""
    answer = JSONResponse({"ok": True})
    answer.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")
    return answer
