"""Signing in: a browser gives a token once and gets a cookie, in which the token itself does not stand."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from terminus.errors import UserError
from terminus.serving.errors import Refusal
from terminus.serving.jobs import Closed
from terminus.serving.security import COOKIE
from terminus.serving.service import Service

_SECONDS = 30 * 24 * 3600


class TokenGiven(Closed):
    """What the login page sends."""

    token: Annotated[str, Body(max_length=1000)]


def mount_login(app: FastAPI) -> None:
    """Adds signing in and out to an application; as JSON, which no other site's form can send."""
    app.add_api_route("/login", login, methods=["POST"], include_in_schema=False)
    app.add_api_route("/logout", logout, methods=["POST"], include_in_schema=False)


async def login(request: Request, given: TokenGiven) -> Response:
    """Gives the browser a cookie for a token."""
    tokens = cast(Service, request.app.state.service).options.tokens
    if tokens.user(given.token) is None:
        raise Refusal(401, UserError("This token is not known"))
    answer = JSONResponse({"ok": True})
    secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
    answer.set_cookie(
        COOKIE, tokens.cookie(given.token), max_age=_SECONDS, path=_path(request), secure=secure, httponly=True,
        samesite="strict",
    )  # fmt: skip
    return answer


async def logout(request: Request) -> Response:
    """Takes the cookie away."""
    answer = JSONResponse({"ok": True})
    answer.delete_cookie(COOKIE, path=_path(request))
    return answer


def _path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"
