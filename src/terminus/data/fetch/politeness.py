"""Politeness to hosts: how many requests at a time, how long it is left alone, and when one is repeated."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

FIRST_PAUSE = 0.5
"""Seconds before the first repetition, on average."""
LONGEST_PAUSE = 86400.0
"""Seconds; what a server may ask for is cut there."""


class NotNow(Exception):
    """The host wants to be left alone for longer than anybody here waits."""


class _Host:
    """The state of a host, kept while there are requests to it."""

    def __init__(self, slots: int) -> None:
        self.slots = asyncio.Semaphore(slots)
        self.visitors = 0
        self.ready_at = 0.0
        """Time of the event loop before which the host does not want to be asked."""


class RequestLimits:
    """All requests of a process: how many there may be at a time, in all and per host. Lives on one event loop."""

    def __init__(self, concurrency: int, per_host: int, max_wait: float) -> None:
        self.per_host, self.max_wait = per_host, max_wait
        self._slots = asyncio.Semaphore(concurrency)
        self._hosts: dict[str, _Host] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncGenerator[None]:
        """Waits until the host may be asked, or raises NotNow.

        Who waits for one host takes no place from the requests to others.
        """
        host = self._hosts.setdefault(name, _Host(self.per_host))
        host.visitors += 1
        try:
            async with host.slots:
                # While this one sleeps, another answer may put the time off once more.
                while (pause := host.ready_at - asyncio.get_running_loop().time()) > 0:
                    if pause > self.max_wait:
                        raise NotNow(f"{name} asks for {pause:.0f} s without requests")
                    await asyncio.sleep(pause)
                async with self._slots:
                    yield
        finally:
            host.visitors -= 1
            self._forget(name)

    def leave_alone(self, name: str, seconds: float) -> None:
        """No request to this host for so long."""
        loop = asyncio.get_running_loop()
        host = self._hosts.setdefault(name, _Host(self.per_host))
        host.ready_at = max(host.ready_at, loop.time() + seconds)
        # Forgotten when its time is over, if nobody has come.
        loop.call_later(seconds + 1, self._forget, name)

    def _forget(self, name: str) -> None:
        # A data set may name millions of hosts.
        host = self._hosts.get(name)
        if host and not host.visitors and host.ready_at <= asyncio.get_running_loop().time():
            del self._hosts[name]


def pause_before(url: str, attempt: int) -> float:
    """Seconds to wait after failed attempt 0, 1, ...: doubling, times 0.5 to 1.5 as URL and attempt decide."""
    chance = int.from_bytes(hashlib.sha256(f"{attempt} {url}".encode(errors="replace")).digest()[:8]) / 2**64
    return FIRST_PAUSE * 2**attempt * (0.5 + chance)


def retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks for, as a number or a date (RFC 9110, 10.2.3); 0 for nonsense."""
    text = value.strip()
    if re.fullmatch(r"\d+", text, re.ASCII):
        return min(float(text[:300]), LONGEST_PAUSE)
    try:
        date = email.utils.parsedate_to_datetime(text)
        wait = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_PAUSE)
