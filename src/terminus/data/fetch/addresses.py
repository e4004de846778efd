"""Addresses that a download may go to: which URLs are asked for at all, and which addresses are connected to.

A URL in a data set is written by a stranger, and what it names may lie inside our own network. Its spelling says
nothing (`0x7f.1`, `[::ffff:7f00:1]`, a name with a private record), so the address that the resolver gives is judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal
from urllib.parse import quote, urljoin, urlsplit

import idna

Address = IPv4Address | IPv6Address

MAX_URL = 8192
"""Characters."""

# `ipaddress.is_global` follows the registry of the Python that runs, and counts multicast, 6to4, NAT64, site-local
# and IPv4-compatible addresses as global. These are the IANA special-purpose registries (RFC 6890 and its updates).
_NOT_GLOBAL_4 = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # looks public, and is the platform's own service inside every machine on Azure
    )
)
_GLOBAL_6 = IPv6Network("2000::/3")
"""All that has been given out as global unicast (RFC 4291); everything outside is refused."""
_NOT_GLOBAL_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: how a network without IPv4 reaches IPv4; the last 32 bits are the address meant."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""RFC 5214: the upper half of an interface identifier whose lower half is an IPv4 address."""

_UNFIT_PORTS = frozenset(
    (
        *(1719, 1720, 1723, 2049, 3306, 3659, 4045, 4190, 5060, 5061, 5432, 6000, 6379, 6566, *range(6665, 6670)),
        *(6679, 6697, 9200, 10080, 11211, 27017),
    )
)
"""From 1024 on: what browsers refuse (Fetch standard, "port blocking") and the usual databases."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_RESERVED = "!#$%&'()*+,/:;=?@[]~"
"""Keeps its meaning in a path or query; the rest is percent-encoded."""


class UnfitUrl(ValueError):
    """The text is no URL that is fetched; the message says why."""


@dataclass(frozen=True)
class WebAddress:
    """A URL that may be asked for, in the form in which it is asked for."""

    scheme: Literal["http", "https"]
    host: str
    """Lower-case ASCII (punycode), or an IP address without brackets."""
    port: int
    target: str
    """Path and query, percent-encoded."""

    @property
    def authority(self) -> str:
        """The `Host` header: the port only where it is not that of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _port(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def is_global(address: Address) -> bool:
    """Whether the address belongs to the public internet, wherever it hides an IPv4 address too."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_GLOBAL_4)
    if address.ipv4_mapped is not None:
        return is_global(address.ipv4_mapped)
    # The last 32 bits: NAT64 and ISATAP put an IPv4 address there.
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64:
        return is_global(low)
    if address not in _GLOBAL_6 or any(address in network for network in _NOT_GLOBAL_6):
        return False
    return (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP or is_global(low)


def parse_url(url: str, base: WebAddress | None = None) -> WebAddress:
    """The URL taken apart, relative to `base` (for redirects); raises UnfitUrl.

    http and https only; no user or password; port 80, 443 or one from 1024 on that is no other known service.
    The fragment is dropped, international names become punycode.
    """
    url = url.strip()
    if len(url) > MAX_URL:
        raise UnfitUrl(f"longer than {MAX_URL} characters")
    # Python's parser removes line breaks and tabs without a word.
    if _CONTROL.search(url):
        raise UnfitUrl("control character")
    try:
        parts = urlsplit(urljoin(str(base), url) if base else url)
        host, port = parts.hostname or "", parts.port
        path = quote(parts.path or "/", safe=_RESERVED)
        query = f"?{quote(parts.query, safe=_RESERVED)}" if parts.query else ""
    except ValueError as error:  # brackets, ports, lone surrogates
        raise UnfitUrl(str(error).encode("ascii", "backslashreplace").decode()) from None
    if parts.scheme not in ("http", "https"):
        raise UnfitUrl(f"neither http nor https: {parts.scheme[:16]!r}")
    if "@" in parts.netloc:
        raise UnfitUrl("holds a user name")
    port = _port(parts.scheme) if port is None else port
    if not _is_fit_port(port):
        raise UnfitUrl(f"port {port}")
    return WebAddress(parts.scheme, _host(host), port, path + query)


def _is_fit_port(port: int) -> bool:
    return port in (80, 443) or (port >= 1024 and port not in _UNFIT_PORTS)


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _host(host: str) -> str:
    try:
        if ":" in host and "%" not in host:
            return str(IPv6Address(host))
        name = (host if host.isascii() else idna.encode(host, uts46=True).decode()).removesuffix(".")
    except ValueError:  # idna.IDNAError is one
        name = ""
    if not _NAME.fullmatch(name):
        raise UnfitUrl(f"no host name: {ascii(host)[:80]}")
    return name
