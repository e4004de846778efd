"""MCP: language models draw, edit and look at images as tools, over HTTP at `/mcp` or over standard input and output.

The SDK is imported at the first request: a page should not wait for it, and without it (the extra `mcp`) everything
else works.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from terminus.errors import UserError
from terminus.serving.errors import body
from terminus.serving.service import Service


class Mcp:
    """The ASGI application of `/mcp`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._handler: ASGIApp | None = None
        self._begin = asyncio.Lock()
        self._end = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if importlib.util.find_spec("mcp") is None:
            error = UserError("MCP is not installed here", fix="pip install 'terminus-xl[mcp]'")
            await JSONResponse(body(error), 501)(scope, receive, send)
            return
        async with self._begin:
            if self._handler is None:
                await self._start()
        assert self._handler is not None
        await self._handler(scope, receive, send)

    async def _start(self) -> None:
        server = await asyncio.to_thread(_tools, self._service)
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
        from mcp.server.transport_security import TransportSecuritySettings

        server.streamable_http_app()  # makes the server's own session manager, whose settings are not ours
        manager = StreamableHTTPSessionManager(
            server._lowlevel_server,  # pyright: ignore[reportPrivateUsage] - the SDK gives no other way to settings
            json_response=True,
            stateless=True,
            max_request_body_size=self._service.options.limits.upload,
            # The door has looked at Host and Origin.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        begun = asyncio.Event()

        async def live() -> None:
            async with manager.run():
                begun.set()
                await self._end.wait()

        self._running = asyncio.create_task(live())
        await begun.wait()
        self._handler = manager.handle_request

    async def stop(self) -> None:
        """Ends the sessions."""
        self._end.set()
        if self._running is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._running, 2)


async def serve_stdio(service: Service) -> None:
    """Speaks MCP over standard input and output until that ends."""
    server = _tools(service)
    service.start()
    try:
        await server.run_stdio_async()
    finally:
        await service.stop()


def _tools(service: Service) -> Any:
    from terminus.serving.interfaces.mcp_tools import tools

    return tools(service)
