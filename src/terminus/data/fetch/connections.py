"""Connections to allowed addresses only, below everything that speaks HTTP.

A name is resolved once; all its addresses are judged, and the connection goes to one of those judged. So a name
server that changes its answer in between gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import cast

import httpcore2

from terminus.data.fetch.addresses import Address

SECONDS = 5.0
"""For a connection to one address of a host, so that a dead IPv6 route leaves time for IPv4."""
_ADDRESSES = 4
"""How many addresses of a host are tried."""


class NotAllowed(Exception):
    """The address of the host may not be connected to."""


class HostNotFound(Exception):
    """Name servers say that there is no such host."""


class CheckedConnections(httpcore2.AsyncNetworkBackend):
    """The network back-end with which a connection pool opens its connections."""

    def __init__(self, allow: Callable[[Address], bool]) -> None:
        self.allow = allow
        self.sockets = cast(httpcore2.AsyncNetworkBackend, httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address that answers; raises NotAllowed before any, if one is not allowed.

        Raises HostNotFound, ConnectError and ConnectTimeout too. The last three arguments are the interface's and
        not used.
        """
        # All addresses are judged before a socket is opened.
        found = await _resolve(host, port)
        for address in found:
            self._check(host, address)
        problem: Exception = httpcore2.ConnectError("no address")
        # The first one that answers.
        for address in found[:_ADDRESSES]:
            try:
                stream = await self.sockets.connect_tcp(str(address), port, timeout=SECONDS)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
                continue
            peer = stream.get_extra_info("server_addr")
            # Gone before it could be asked which address it has.
            if peer is None:
                await stream.aclose()
                problem = httpcore2.ConnectError("closed at once")
                continue
            try:
                # Some addresses stand for others (0.0.0.0 for this machine); judged before a byte is sent.
                self._check(host, ip_address(peer[0]))
            except NotAllowed:
                await stream.aclose()
                raise
            return _Connection(stream)
        raise problem

    def _check(self, host: str, address: Address) -> None:
        if not self.allow(address):
            raise NotAllowed(str(address) if host == str(address) else f"{host} is {address}")


class _Connection(httpcore2.AsyncNetworkStream):
    """Closed where a deadline interrupts its TLS handshake; the library closes its own after errors only."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self.stream = stream
        self.read, self.write, self.aclose = stream.read, stream.write, stream.aclose
        self.get_extra_info = stream.get_extra_info

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """The encrypted stream."""
        try:
            return await self.stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            await self.stream.aclose()
            raise


async def _resolve(host: str, port: int) -> list[Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        kind = httpcore2.ConnectError if error.errno == socket.EAI_AGAIN else HostNotFound
        raise kind(f"{host}: {error.strerror}") from None
    except (UnicodeError, OSError) as error:
        raise HostNotFound(f"{host}: {error}") from None
    return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))
