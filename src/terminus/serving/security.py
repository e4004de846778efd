"""The door: who may come in, from which page, with how many bytes, and what every answer says about itself.

Plain ASGI, in front of everything: nothing behind it has to think of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from terminus.errors import UserError
from terminus.sampling.files import read_file
from terminus.serving.errors import body
from terminus.serving.gallery import LOCAL
from terminus.serving.limits import ServeLimits

log = logging.getLogger("terminus")

COOKIE = "terminus"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SAFE = ("GET", "HEAD", "OPTIONS")
_OPEN = ("/health", "/login", "/static/")
"""Paths that need no token: they tell nothing."""
_LARGE = ("/api/v1/uploads", "/api/v1/read", "/sdapi/v1/", "/v1/images/", "/mcp")
"""Paths whose requests carry images."""
_TYPES = ("application/json", "multipart/form-data")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "x-robots-tag": "noindex, nofollow, noai, noimageai",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
}
_SHORTEST = 16
"""Characters of a token."""


@dataclass(frozen=True)
class Tokens:
    """Who may come in: user by token. Empty where nobody needs one."""

    users: Mapping[str, str]

    @staticmethod
    def read(path: Path) -> Tokens:
        """One token a line, or a user's name and their token; UserError for one that could be guessed."""
        users: dict[str, str] = {}
        lines = read_file(path, 1 << 16).decode("utf-8", "replace").splitlines()
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            name, token = (LOCAL, words[0]) if len(words) == 1 else (words[0], words[-1])
            if len(words) > 2 or len(token) < _SHORTEST or not _is_name(name):
                raise UserError(
                    "This line is no token", where=f"{path}:{number}",
                    rule=f"A line is TOKEN, or NAME TOKEN: a token has at least {_SHORTEST} characters without spaces, "
                    "a name is of a-z, 0-9 and -, and begins with a letter",
                    fix=f"For example: anna {secrets.token_urlsafe(24)}",
                )  # fmt: skip
            users[token] = name
        if not users:
            raise UserError("This file holds no token", where=str(path), fix=f"Write: {secrets.token_urlsafe(24)}")
        return Tokens(users)

    def __bool__(self) -> bool:
        return bool(self.users)

    def user(self, offered: str) -> str | None:
        """Whose token it is. Every token is compared, each in constant time."""
        found: str | None = None
        # All are compared even after a match: time must not tell which one was near.
        for token, name in self.users.items():
            if hmac.compare_digest(token.encode(), offered.encode("utf-8", "replace")):
                found = name
        return found

    def cookie(self, token: str) -> str:
        """What the browser keeps in place of a token."""
        return hashlib.sha256(b"terminus cookie\0" + token.encode()).hexdigest()

    def user_of_cookie(self, offered: str) -> str | None:
        """Whose cookie it is."""
        found: str | None = None
        for token, name in self.users.items():
            if hmac.compare_digest(self.cookie(token).encode(), offered.encode("utf-8", "replace")):
                found = name
        return found


class TooLarge(Exception):
    """A request has more bytes than it may."""


class Door:
    """The middleware."""

    def __init__(
        self, app: ASGIApp, tokens: Tokens, limits: ServeLimits, root_path: str = "", hosts: Iterable[str] = ()
    ):
        self._app, self._tokens, self._limits = app, tokens, limits
        self._root, self._hosts = root_path, (*_LOOPBACK, *hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        path = self._place(scope)
        answer = _Answer(send, private=not path.startswith("/static/"))
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        # A browser that opens a page is shown the form for its token; programs get 401.
        refused = self._refusal(scope, path, headers)
        if refused is not None and refused[0] == 401 and _wants_page(scope, headers):
            scope["state"]["status"], path = 401, "/login"
            scope["path"] = self._root + path
        elif refused is not None:
            await answer.refuse(*refused)
            return
        limit = self._limits.upload if path.startswith(_LARGE) else self._limits.body
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            await answer.refuse(413, f"A request here has at most {limit:,} bytes")
            return
        counted = _Counted(receive, limit)
        try:
            await self._app(scope, counted, answer)
        except TooLarge:
            if answer.begun:
                raise
            await answer.refuse(413, f"A request here has at most {limit:,} bytes")

    def _place(self, scope: Scope) -> str:
        """The path below our root; a proxy may send it with the root or without."""
        path: str = scope["path"]
        # Both must lead to one route, or checks by path could be walked around.
        if self._root and (path == self._root or path.startswith(self._root + "/")):
            path = path[len(self._root) :] or "/"
        scope["root_path"], scope["path"] = self._root, self._root + path
        scope["raw_path"] = scope["path"].encode("utf-8", "surrogateescape")
        return path

    def _refusal(self, scope: Scope, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and reason of a request that is not let in."""
        if "\0" in path or "\\" in path:
            return 400, "An address holds neither NUL nor backslashes"
        # DNS rebinding: a stranger's name may point to this machine, and then comes from "the same origin".
        host = _host(headers.get("host", ""))
        if host is None or (not self._tokens and host not in self._hosts):
            return 421, "This server does not answer to that name"
        # Cross-site requests: a page that a user happens to look at must not draw with this server.
        own = headers.get("host", "").lower()
        origin = headers.get("origin")
        if origin is not None and not _same(origin, own):
            return 403, "Other pages may not call this server"
        if headers.get("sec-fetch-site", "none") == "cross-site" and scope["method"] not in _SAFE:
            return 403, "Other pages may not call this server"
        if scope["method"] not in _SAFE and not _body_is_ours(headers):
            return 415, "A request's body is application/json or multipart/form-data"
        return self._stranger(scope, path, headers)

    def _stranger(self, scope: Scope, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        user, by_cookie = self._user(headers)
        scope.setdefault("state", {})["user"] = user or ""
        if user is None and not (path in _OPEN or path.startswith(_OPEN[-1])):
            return 401, "A token is needed"
        unsafe = scope["method"] not in _SAFE
        if user and by_cookie and unsafe and "origin" not in headers and "sec-fetch-site" not in headers:
            return 403, "A browser says which page a request comes from; programs send the token"
        return None

    def _user(self, headers: Mapping[str, str]) -> tuple[str | None, bool]:
        """The user, and whether only a cookie says so."""
        if not self._tokens:
            return LOCAL, False
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._tokens.user(token.strip()), False
        if scheme.lower() == "basic":  # A1111's clients know no other
            return self._tokens.user(_password(token)), False
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        return (None if cookie is None else self._tokens.user_of_cookie(cookie.value)), True


class _Answer:
    """`send` with the headers of every answer."""

    def __init__(self, send: Send, *, private: bool) -> None:
        self._send, self._private = send, private
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            # An answer's own headers win: images may be cached, reports have styles.
            given = {name.lower() for name, _ in message["headers"]}
            more = {**_HEADERS, **({"cache-control": "no-store"} if self._private else {})}
            extra = [(name.encode(), value.encode()) for name, value in more.items() if name.encode() not in given]
            message = {**message, "headers": [*message["headers"], *extra]}
        await self._send(message)

    async def refuse(self, status: int, reason: str) -> None:
        """A whole answer that says no."""
        content = json.dumps(body(UserError(reason))).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="terminus"'))
        # The rest of the body would be taken for the next request on this connection.
        if status == 413:
            headers.append((b"connection", b"close"))
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": content})


class _Counted:
    """`receive` that counts bytes as they arrive, whatever the headers said."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._left = receive, limit

    async def __call__(self) -> Message:
        message = await self._receive()
        # Chunked bodies state no length.
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise TooLarge
        return message


def _wants_page(scope: Scope, headers: Mapping[str, str]) -> bool:
    return scope["method"] == "GET" and "text/html" in headers.get("accept", "")


def _host(header: str) -> str | None:
    """The name in a Host header, without its port; None for what is none."""
    try:
        found = urlsplit(f"//{header}")
        return found.hostname if found.port is None or found.port >= 0 else None
    except ValueError:
        return None


def _same(origin: str, host: str) -> bool:
    """Whether an origin is this server's own; `null` is nobody's."""
    try:
        parsed = urlsplit(origin)
        port = parsed.port
    except ValueError:
        return False
    del port
    return parsed.scheme in ("http", "https") and parsed.netloc.lower() == host and not parsed.path


def _body_is_ours(headers: Mapping[str, str]) -> bool:
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return kind in _TYPES or (not has_body and kind in ("", *_TYPES))


def _password(encoded: str) -> str:
    import base64
    import binascii

    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8", "replace").partition(":")[2]
    except binascii.Error:
        return ""


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name) is not None
