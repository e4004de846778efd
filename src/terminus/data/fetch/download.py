"""Files from the web, with bounds on everything: bytes, seconds, redirects, repetitions, and requests per host.

One event loop in one thread serves the whole process, because a deadline over look-up, connection, headers and body
can only be kept by who can interrupt all of them, and because politeness towards a host is the business of the
process and not of one call. httpcore2 speaks the protocol: it follows no redirect, keeps no cookie, sends no
credentials, unpacks nothing and reads no proxy from the environment. The latter is on purpose: behind a proxy, it is
the proxy that chooses the address, and our check would judge the wrong one.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

import httpcore2
from pydantic import Field

from terminus.config.base import Config
from terminus.data.fetch import addresses, optouts
from terminus.data.fetch.addresses import Address, UnfitUrl, WebAddress, is_global
from terminus.data.fetch.connections import CheckedConnections, HostNotFound, NotAllowed
from terminus.data.fetch.politeness import NotNow, RequestLimits, pause_before, retry_after
from terminus.images import Dropped

Reason = Literal[
    "not a web address",
    "address not allowed",
    "host not found",
    "connection failed",
    "TLS failed",
    "timed out",
    "too many redirects",
    "not found",
    "forbidden",
    "rate limited",
    "server error",
    "unexpected answer",
    "opted out",
    "file too large",
    "checksum differs",
    "checksum unreadable",
]
"""Every reason for which a download is dropped; `docs/download.md` explains them."""

MAY_PASS: frozenset[str] = frozenset({"connection failed", "timed out", "rate limited", "server error"})
"""Reasons that may be gone tomorrow: a later preparation should ask again."""

DEFERRED: Literal["deferred"] = "deferred"
"""Instead of a `Reason`, where the byte budget of the caller was used up: ask again."""

MAX_REDIRECTS = 5
_RESOLVERS = 32
"""Threads that wait for name servers."""
_CHECKSUM = re.compile(r"(?:sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})", re.IGNORECASE)


class Policy(Config):
    """The settings of downloads. Which addresses may be connected to is no setting: only public ones."""

    timeout: float = Field(default=20.0, gt=0, le=3600)
    """Seconds for one attempt, from the look-up of the name to the last byte, redirects included."""
    retries: int = Field(default=2, ge=0, le=10)
    """How often a download is repeated after an error that may pass (no connection, 408, 425, 429, 5xx)."""
    max_wait: float = Field(default=30.0, ge=0, le=3600)
    """Longest pause in seconds before a repetition; a server that asks for a longer one is left alone."""
    concurrency: int = Field(default=64, ge=1, le=1024)
    """Requests at a time in one process; each holds up to filters.max_file_bytes in memory."""
    per_host: int = Field(default=4, ge=1, le=64)
    """Requests at a time to one host in one process."""
    user_agent: str = Field(default="terminus/0.1", pattern=r"^[!-~]([ -~]*[!-~])?$")
    """How the downloader names itself; add a URL or an address where you can be reached."""


@dataclass(frozen=True)
class DownloadRequest:
    """A file to download."""

    url: str
    checksum: str | None
    """"sha256:<hex>" or "md5:<hex>" of the file's bytes, where the source knows it."""
    max_bytes: int


@dataclass(frozen=True)
class Downloaded:
    """A file that arrived whole, and that nobody reserved."""

    data: bytes
    url: str
    """Where it was in the end, after redirects."""


@dataclass(frozen=True)
class Budget:
    """Bytes that the files of several calls may have together, in one process."""

    name: str
    """Calls with the same name share it."""
    bytes: int


def fetch_many(
    requests: Sequence[DownloadRequest],
    policy: Policy,
    allow: Callable[[Address], bool] = is_global,
    budget: Budget | None = None,
) -> list[Downloaded | Dropped]:
    """The files, or why not (`Reason`, or `DEFERRED`), in the order of the requests; blocks until all are decided.

    May be called from several threads at once, which then share `policy.concurrency` and `policy.per_host`. Nothing
    that a server does raises. No socket is opened to an address that `allow` refuses.
    """
    work = asyncio.run_coroutine_threadsafe(_fetch_all(requests, policy, allow, budget), _event_loop())
    try:
        while not work.done():
            # With a limit, because a thread that waits without one may sleep through an interrupt.
            wait((work,), timeout=0.5)
        return work.result()
    except BaseException:
        work.cancel()
        raise


class _Failure(Exception):
    """An attempt came to nothing."""

    def __init__(
        self, reason: Reason | Literal["deferred"], detail: str = "", *, passing: bool = False, wait: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.dropped = Dropped(reason, detail)
        self.passing = passing
        """Whether another attempt may fare better."""
        self.wait = wait
        """Seconds for which the server wants to be left alone."""


class _Purse:
    """The rest of a budget of bytes; only the event loop takes from it."""

    def __init__(self, size: int | None) -> None:
        self.left = size
        self.spent = False
        """Once a file did not fit: what comes later is not begun."""

    def take(self, count: int) -> None:
        """Before so many more bytes are held. `_Failure` where there is no room for them."""
        if self.left is None:
            return
        if self.spent or count > self.left:
            self.spent = True
            raise _Failure(DEFERRED)
        self.left -= count

    def give_back(self, count: int) -> None:
        """Bytes that are held no longer."""
        if self.left is not None:
            self.left += count


class _Downloader:
    """The requests of one call: their connections are never used under another `allow`."""

    def __init__(
        self, policy: Policy, traffic: RequestLimits, pool: httpcore2.AsyncConnectionPool, purse: _Purse
    ) -> None:
        self.policy, self.traffic, self.pool, self.purse = policy, traffic, pool, purse
        self.agent = re.split(r"[/ ]", policy.user_agent)[0]
        self.headers = [
            (b"User-Agent", policy.user_agent.encode()),
            (b"Accept", b"image/*, */*;q=0.5"),
            (b"Accept-Encoding", b"identity"),
        ]

    async def fetch(self, request: DownloadRequest) -> Downloaded | Dropped:
        """The file, after as many attempts as the policy grants."""
        if request.checksum is not None and not _CHECKSUM.fullmatch(request.checksum):
            return Dropped("checksum unreadable", "neither sha256:<64 hex> nor md5:<32 hex>")
        attempt = 0
        while True:
            try:
                found = await self._attempt(request)
                return _verified(found, request.checksum) if request.checksum else found
            except UnfitUrl as error:
                return Dropped("not a web address", str(error))
            except NotNow as error:
                return Dropped("rate limited", str(error))
            except _Failure as failure:
                # Ours or the server's, whichever is longer; beyond our patience it is the end.
                pause = max(min(pause_before(request.url, attempt), self.policy.max_wait), failure.wait)
                if not failure.passing or attempt == self.policy.retries or pause > self.policy.max_wait:
                    return failure.dropped
            await asyncio.sleep(pause)
            attempt += 1

    async def _attempt(self, request: DownloadRequest) -> Downloaded:
        address = addresses.parse_url(request.url)
        # One deadline for a file with all redirects to it; waiting for a turn does not count.
        seconds = self.policy.timeout
        clock = asyncio.get_running_loop().time
        for _ in range(MAX_REDIRECTS + 1):
            async with self.traffic.turn(address.host):
                # Where the budget is spent, nothing is begun.
                self.purse.take(0)
                began = clock()
                found = await self._within(seconds, address, request.max_bytes)
                seconds -= clock() - began
            if isinstance(found, Downloaded):
                return found
            address = found
        raise _Failure("too many redirects", f"more than {MAX_REDIRECTS}")

    async def _within(self, seconds: float, address: WebAddress, max_bytes: int) -> Downloaded | WebAddress:
        try:
            # Each error by a reason of ours; `passing` ones are tried again.
            async with asyncio.timeout(seconds):
                return await self._exchange(address, max_bytes)
        except TimeoutError:
            raise _Failure("timed out", f"not complete after {self.policy.timeout:g} s") from None
        except NotAllowed as error:
            raise _Failure("address not allowed", str(error)) from None
        except HostNotFound as error:
            raise _Failure("host not found", str(error)) from None
        except httpcore2.ConnectTimeout:
            raise _Failure("timed out", f"no connection to {address.authority}", passing=True) from None
        except httpcore2.LocalProtocolError as error:
            raise _Failure("not a web address", str(error)) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError) as error:
            if refused := _certificate_error(error):
                raise _Failure("TLS failed", f"{address.authority}: {refused.verify_message}") from None
            detail = str(error) or type(error).__name__
            raise _Failure("connection failed", f"{address.authority}: {detail}", passing=True) from None

    async def _exchange(self, address: WebAddress, max_bytes: int) -> Downloaded | WebAddress:
        """One request and its answer: the file, or where it is instead."""
        url = httpcore2.URL(scheme=address.scheme, host=address.host, port=address.port, target=address.target)
        host = (b"Host", address.authority.encode())
        async with self.pool.stream("GET", url, headers=[host, *self.headers]) as response:
            headers = [(_text(name).lower(), _text(value)) for name, value in response.headers]
            # In this order: an error, a reservation (its body is not read), a redirect, and only then a file.
            if response.status >= 400:
                raise self._refusal(address, response.status, dict(headers).get("retry-after", ""))
            if said := optouts.reservation(headers, self.agent):
                raise _Failure("opted out", said)
            if response.status in (301, 302, 303, 307, 308):
                return _redirected(address, dict(headers).get("location", ""))
            if response.status != 200:
                raise _Failure("unexpected answer", f"HTTP {response.status}")
            if (encoding := dict(headers).get("content-encoding", "identity").strip()) not in ("", "identity"):
                raise _Failure("unexpected answer", f"compressed ({encoding[:40]!a}), which was not asked for")
            body = await _body(response.aiter_stream(), dict(headers), max_bytes, self.purse)
            return Downloaded(body, str(address))

    def _refusal(self, address: WebAddress, status: int, wish: str) -> _Failure:
        detail = f"HTTP {status}"
        if status in (408, 425, 429) or status >= 500:
            pause = retry_after(wish)
            if pause:
                self.traffic.leave_alone(address.host, pause)
                detail += f", asks for {pause:.0f} s without requests"
            passing: dict[int, Reason] = {429: "rate limited", 408: "timed out"}
            return _Failure(passing.get(status, "server error"), detail, passing=True, wait=pause)
        return _Failure("forbidden" if status in (401, 402, 403, 407, 451) else "not found", detail)


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The certificate error that a failed connection goes back to, if it is one; anything else in TLS may be the
    network's fault."""
    while error and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _redirected(address: WebAddress, location: str) -> WebAddress:
    if not location:
        raise _Failure("unexpected answer", "a redirect to nowhere")
    try:
        to = addresses.parse_url(location, base=address)
    except UnfitUrl as error:
        raise _Failure("not a web address", f"a redirect: {error}") from None
    if address.scheme == "https" and to.scheme == "http":
        raise _Failure("address not allowed", f"a redirect from https to {to.scheme}://{to.authority}")
    return to


async def _body(chunks: AsyncGenerator[bytes], headers: dict[str, str], max_bytes: int, purse: _Purse) -> bytes:
    """The whole body; not one byte is read of what says that it is too large."""
    large = _Failure("file too large", f"more than {max_bytes} bytes")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise large
    body = bytearray()
    try:
        async for chunk in chunks:
            # Room is taken before the bytes are held.
            purse.take(len(chunk))
            body += chunk
            if len(body) > max_bytes:
                raise large
    except BaseException:
        purse.give_back(len(body))
        raise
    return bytes(body)


def _verified(found: Downloaded, checksum: str) -> Downloaded | Dropped:
    algorithm, _, expected = checksum.lower().partition(":")
    digest = hashlib.new(algorithm, found.data, usedforsecurity=False).hexdigest()
    return found if digest == expected else Dropped("checksum differs", f"{algorithm} of the file is {digest}")


def _text(header: bytes) -> str:
    try:
        return header.decode()
    except UnicodeDecodeError:
        return header.decode("latin-1")


async def _fetch_all(
    requests: Sequence[DownloadRequest], policy: Policy, allow: Callable[[Address], bool], budget: Budget | None
) -> list[Downloaded | Dropped]:
    # Shared by all calls under this policy, since hosts see one process.
    traffic = _traffic.setdefault(policy, RequestLimits(policy.concurrency, policy.per_host, policy.max_wait))
    pool = httpcore2.AsyncConnectionPool(
        _certificates(),
        max_connections=policy.concurrency,
        keepalive_expiry=10.0,
        network_backend=CheckedConnections(allow),
    )
    async with pool, asyncio.TaskGroup() as group:
        downloader = _Downloader(policy, traffic, pool, _purse(budget))
        tasks = [group.create_task(downloader.fetch(request)) for request in requests]
    return [task.result() for task in tasks]


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: the authorities that the system trusts, or those of SSL_CERT_FILE."""
    return httpcore2.default_ssl_context()


_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_traffic: dict[Policy, RequestLimits] = {}
_purses: dict[Budget, _Purse] = {}
_PURSES = 16
"""Budgets that are remembered, the newest."""


def _purse(budget: Budget | None) -> _Purse:
    if budget is None:
        return _Purse(None)
    if budget not in _purses and len(_purses) >= _PURSES:
        del _purses[next(iter(_purses))]
    return _purses.setdefault(budget, _Purse(budget.bytes))


def _event_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, started when first needed."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _loop.set_default_executor(ThreadPoolExecutor(_RESOLVERS, "resolver"))
            threading.Thread(target=_loop.run_forever, name="downloads", daemon=True).start()
        return _loop


def _start_anew() -> None:
    """A forked child has none of its parent's threads."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None
    _traffic.clear()
    _purses.clear()


os.register_at_fork(after_in_child=_start_anew)
