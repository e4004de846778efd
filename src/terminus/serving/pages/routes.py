"""The routes of the pages and of their static files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from terminus.serving.pages.login import mount_login
from terminus.serving.pages.rendering import PAGES, render_page
from terminus.serving.pages.static_files import send_static_file


def mount(app: FastAPI) -> None:
    """Adds the pages, their static files and the login to an application."""
    addresses = {name: "/" if name == "draw" else f"/{name}" for name in (*PAGES, "login")}
    app.router.routes.extend(Route(address, _page(name)) for name, address in addresses.items())
    app.router.routes.append(Route("/static/{build}/{name:path}", send_static_file))
    mount_login(app)


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        # A page that is asked for without a token becomes the login, and says 401.
        return render_page(f"{name}.html", request.scope["state"].get("status", 200), page=name)

    return show
