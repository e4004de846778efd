"""A web server on loopback that behaves as badly as it is told to, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Self


def anywhere(address: IPv4Address | IPv6Address) -> bool:
    """The address policy of tests: a plain function, so that it travels to workers."""
    return True


@dataclass(frozen=True)
class Answer:
    """What is sent back, once."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    """What `Content-Length` claims; None for the truth, -1 for no such header."""
    wait: float = 0.0
    """Seconds before the first byte."""
    drip: float = 0.0
    """Seconds before each byte of the body."""
    endless: bool = False
    """The body is repeated until the other side leaves."""
    reset: bool = False
    """The connection is reset after what was sent."""
    raw: bytes | None = None
    """Sent instead of all of the above; then the connection is closed."""

    def head(self) -> bytes:
        """Status line and headers."""
        lines = [f"HTTP/1.1 {self.status} X"]
        if self.length != -1 and not self.endless:
            lines.append(f"Content-Length: {len(self.body) if self.length is None else self.length}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    @property
    def closes(self) -> bool:
        """Whether the connection is of no use afterwards."""
        return self.raw is not None or self.endless or self.reset or self.length not in (None, len(self.body))


def redirect(to: str, status: int = 302, **headers: str) -> Answer:
    return Answer(status=status, headers=(("Location", to), *headers.items()))


class Loopback:
    """Answers paths; remembers what it was asked, and how much of it at a time."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.answers: dict[str, list[Answer]] = {}
        self.hits: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)
        """Of each path, when it was asked for (monotonic seconds)."""
        self.requests: list[str] = []
        """Each request as it came, head only."""
        self.busiest = 0
        """The most requests that were under way at a time."""
        self.connections = 0
        self.port = 0
        self._busy = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def serve(self, path: str, *answers: Answer, host: str = "127.0.0.1") -> str:
        """The URL under which these come one after another, the last of them for ever."""
        self.answers[path] = list(answers)
        return self.url(path, host)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        first = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls, backlog=512)
        self.port = first.sockets[0].getsockname()[1]
        self._servers = [first, await asyncio.start_server(self._accept, "::1", self.port, ssl=self.tls)]

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        await asyncio.sleep(0.01)  # what is just being accepted becomes one of the tasks
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # transports close in the loop's next turn, and it has to have one

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if self.tls else writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = head.split(" ", 2)[1]
        self.requests.append(head)
        self.hits[path] += 1
        self.times[path].append(time.monotonic())
        answers = self.answers.get(path, [Answer(status=404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            await self._send(answer, writer)
        finally:
            self._busy -= 1
        return not answer.closes

    async def _send(self, answer: Answer, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(answer.wait)
        if answer.raw is not None:
            writer.write(answer.raw)
            await writer.drain()
            return
        writer.write(answer.head() if answer.drip or answer.endless else answer.head() + answer.body)
        await writer.drain()
        while answer.endless:
            writer.write(answer.body)
            await writer.drain()
            await asyncio.sleep(answer.drip)
        for byte in answer.body if answer.drip else b"":
            await asyncio.sleep(answer.drip)
            writer.write(bytes([byte]))
            await writer.drain()
        if answer.reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(1, 13, linger)  # SOL_SOCKET, SO_LINGER


@contextmanager
def loopback(tls: ssl.SSLContext | None = None) -> Iterator[Loopback]:
    """A running server."""
    with Loopback(tls) as server:
        yield server
