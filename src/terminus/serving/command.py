"""`terminus serve`: checks its options, prints the address, and serves until it is told to stop."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import socket
from types import FrameType

import uvicorn

from terminus.errors import UserError
from terminus.serving.application import application
from terminus.serving.service import ServeOptions, Service

log = logging.getLogger("terminus")


def serve(options: ServeOptions, *, stdio: bool = False) -> None:
    """Serves until Ctrl-C or SIGTERM; what is drawn then is finished, what waits is kept for the next start.

    `stdio` speaks MCP on standard input and output instead, until that ends.
    """
    if stdio:
        if importlib.util.find_spec("mcp") is None:
            raise UserError("MCP is not installed", fix="pip install 'terminus-xl[mcp]'")
        from terminus.serving.interfaces.mcp import serve_stdio

        asyncio.run(serve_stdio(Service(options)))
        return
    if options.setup.signer is not None:  # a key that cannot sign is said now, not with the first image
        from terminus.sampling.provenance import Identity

        Identity.load(*options.setup.signer)
    listener = _listen(options.host, options.port)
    service = Service(options)
    config = uvicorn.Config(
        application(service),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 << 10,
        limit_concurrency=None,
        timeout_graceful_shutdown=5,
        ws="none",
        lifespan="on",
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        _Server(config, service, _address(options, listener)).run(sockets=[listener])
    finally:
        # A second signal leaves out the application's own end; Python would wait for workers until they have drawn.
        service.engine.stop()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"This address cannot be used ({getattr(error, 'strerror', None) or error})", where=f"{host}:{port}",
            fix="Choose another --port, or stop what uses it",
        ) from error  # fmt: skip
    return listener


def _address(options: ServeOptions, listener: socket.socket) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.getsockname()[1]}{options.root_path}/"


class _Server(uvicorn.Server):
    """uvicorn, with an end that waits for the images that are being drawn."""

    def __init__(self, config: uvicorn.Config, service: Service, address: str) -> None:
        super().__init__(config)
        self._service, self._address = service, address
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer, and says where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            print(self._address, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once."""
        if self._loop is None or self._draining is not None or self._service.engine.draining:
            self._service.events.close()
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._drain, sig)

    def _drain(self, sig: int) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._end(sig))

    async def _end(self, sig: int) -> None:
        running = sum(len(worker.batch) for worker in self._service.engine.workers)
        waiting = len(self._service.engine.queue)
        if running or waiting:
            log.warning("stopping: %d jobs are finished first; %d wait for the next start", running, waiting)
        await self._service.engine.drain(self._service.options.drain_seconds)
        self.should_exit = True  # not uvicorn's own way, which would raise the signal again at its end
