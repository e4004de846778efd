"""Downloads from a real server on loopback: what is refused, what is honoured, what is bounded, what is repeated."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import pickle
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from terminus.data.fetch import addresses, download, politeness
from terminus.data.fetch.addresses import Address, UnfitUrl, is_global, parse_url
from terminus.data.fetch.download import Downloaded, DownloadRequest, Policy, fetch_many
from terminus.data.fetch.optouts import reservation
from terminus.data.fetch.politeness import pause_before, retry_after
from terminus.images import Dropped
from tests.data.conftest import noise
from tests.data.loopback import Answer, Loopback, anywhere, loopback, redirect

ROOT = Path(__file__).parents[3]
MAX = 1 << 20
ONCE = Policy(retries=0, timeout=5.0)
BRIEF = Policy(retries=1, timeout=0.4)
connected: list[tuple[object, ...]] = []
"""Where any socket of this process was about to be connected to."""


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        connected.append(arguments)


sys.addaudithook(_watch)


def jpeg(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed, 64, 64)).save(file, "JPEG")
    return file.getvalue()


IMAGE = jpeg()


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(politeness, "FIRST_PAUSE", 0.02)
    connected.clear()


def fetch(
    url: str, policy: Policy = ONCE, allow: Callable[[Address], bool] = anywhere, *, checksum: str | None = None
) -> Downloaded | Dropped:
    (found,) = fetch_many([DownloadRequest(url, checksum, MAX)], policy, allow)
    return found


def reason(found: Downloaded | Dropped) -> str:
    assert isinstance(found, Dropped), found
    assert found.reason in get_args(download.Reason)
    return found.reason


# Addresses


NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.255.0.1 168.63.129.16 169.254.169.254
    172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1
    224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 :: ::1 ::7f00:1 ::808:808 ::ffff:127.0.0.1
    ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:0:7f00:1::
    2001:db8::1 2002:7f00:1:: 2002:808:808:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1
    ff0e::1 2606:4700::5efe:7f00:1 2606:4700::200:5efe:a00:1 4000::1
"""


@pytest.mark.parametrize(
    "address",
    NOT_PUBLIC.split(),
)
def test_address_is_not_public(address: str):
    assert not is_global(ip_address(address))


PUBLIC = """
    1.1.1.1 8.8.8.8 11.0.0.1 100.63.255.255 100.128.0.1 126.255.255.255 172.15.0.1 172.32.0.1 192.0.1.1
    223.255.255.255 2606:4700::1 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::808:808 2606:4700::5efe:808:808
"""


@pytest.mark.parametrize(
    "address",
    PUBLIC.split(),
)
def test_address_is_public(address: str):
    assert is_global(ip_address(address))


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        ("  https://example.com/a b?q=1 2#top\n", "https://example.com/a%20b?q=1%202"),
        ("https://example.com:443/%41?%zz", "https://example.com/%41?%zz"),
        ("http://example.com:8080/ü", "http://example.com:8080/%C3%BC"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://faß.example./x", "http://xn--fa-hia.example/x"),
        ("http://my_bucket.example.com/x", "http://my_bucket.example.com/x"),
        ("http://１２７。0。0。1/", "http://127.0.0.1/"),
        ("http://[::FFFF:1.2.3.4]:81234/".replace("81234", "8123"), "http://[::ffff:102:304]:8123/"),
        ("http://h/?a=http://b/@c", "http://h/?a=http://b/@c"),
    ],
)
def test_url_is_understood(url: str, canonical: str):
    assert str(parse_url(url)) == canonical
    assert str(parse_url(canonical)) == canonical


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "/etc/passwd", "//example.com/x", "file:///etc/passwd", "ftp://example.com/x", "gopher://h/_x"),
        *("data:image/png;base64,AAAA", "javascript:alert(1)", "http://", "http:///x", "http://:80/"),
        *("http:example.com", "http://[fe80::1%25eth0]/"),
        *("http://user@example.com/", "http://user:pw@example.com/", "http://user@127.0.0.1@example.com/"),
        *("http://example.com\\@127.0.0.1/", "http://169.254.169%2e254/", "http://%6cocalhost/"),
        *("http://exa\nmple.com/", "http://example.com/a\r\nHost: b", "http://example.com/\x00", "http://a b/"),
        *("http://h:0/", "http://h:22/", "http://h:25/", "http://h:6379/", "http://h:99999/", "http://h:-1/", "http://h:x/"),
        *("http://[::1/", "http://[1.2.3.4]/", "http://a..b/", f"http://{'a' * 64}.com/", "http://h/" + "x" * 9000),
        *("http://h/\ud800", "http://\ud800/", "http://xn--\u0378.example/", "http://-h/"),
    ],
)  # fmt: skip
def test_url_is_refused_without_a_look_up(url: str):
    assert reason(fetch(url)) == "not a web address"
    assert connected == []


@given(st.text() | st.text().map("http://{}".format) | st.text().map("http://h/{}".format))
def test_any_text_is_a_url_or_unfit(text: str):
    try:
        found = parse_url(text)
    except UnfitUrl as error:
        said = str(error)
    else:
        said = str(found)
        assert parse_url(said) == found
    assert said.isascii()
    assert said.isprintable()


BLOCKED = """
    127.0.0.1 127.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 0.0.0.0 0 localhost localhost.
    LOCALHOST [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:7f00:1] [64:ff9b::7f00:1]
    [2002:7f00:1::] [fe80::1] [fd00:ec2::254] 169.254.169.254 100.64.0.1 198.18.0.1 10.0.0.1 172.16.0.1
    192.168.0.1 １２７.0.0.1 ①②⑦.⓪.⓪.①
"""


@pytest.mark.parametrize(
    "host",
    BLOCKED.split(),
)
def test_no_socket_is_opened_to_a_blocked_address(server: Loopback, host: str):
    server.serve("/x.jpg", Answer(IMAGE))
    assert reason(fetch(f"http://{host}:{server.port}/x.jpg", allow=is_global)) == "address not allowed"
    assert connected == []
    assert not server.requests


def test_the_watch_sees_sockets(server: Loopback):
    assert isinstance(fetch(server.serve("/x.jpg", Answer(IMAGE))), Downloaded)
    assert [place for _, place in connected] == [("127.0.0.1", server.port)]


def four_only(address: Address) -> bool:
    return address == ip_address("127.0.0.1")


def test_every_redirect_is_judged_anew(server: Loopback):
    server.serve("/secret", Answer(IMAGE))
    start = server.serve("/start", redirect(server.url("/secret", "[::1]")))
    assert reason(fetch(start, allow=four_only)) == "address not allowed"
    assert server.hits == {"/start": 1}
    assert len(connected) == 1


def test_what_an_address_stands_for_is_judged_before_a_byte_is_sent(server: Loopback):
    def zero_only(address: Address) -> bool:
        return address == ip_address("0.0.0.0")

    server.serve("/x.jpg", Answer(IMAGE))
    found = fetch(f"http://0.0.0.0:{server.port}/x.jpg", allow=zero_only)
    assert found == Dropped("address not allowed", "0.0.0.0 is 127.0.0.1")
    assert server.requests == []


def records(monkeypatch: pytest.MonkeyPatch, *answers: tuple[str, ...]) -> list[str]:
    """Name servers that answer so for names under .example, one answer per look-up, the last for ever."""
    real, asked, left = socket.getaddrinfo, [], list(answers)

    def look_up(host: str, port: int, *rest: int, **named: int) -> list[tuple[object, ...]]:
        if not host.endswith(".example"):
            return real(host, port, *rest, **named)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_one_private_record_among_public_ones_is_enough(server: Loopback, monkeypatch: pytest.MonkeyPatch):
    records(monkeypatch, ("8.8.8.8", "127.0.0.1"))
    assert reason(fetch(f"http://mixed.example:{server.port}/", allow=is_global)) == "address not allowed"
    assert connected == []


def test_a_name_that_changes_its_address_is_looked_up_once(server: Loopback, monkeypatch: pytest.MonkeyPatch):
    asked = records(monkeypatch, ("127.0.0.1",), ("127.0.0.2",))
    server.serve("/x.jpg", Answer(IMAGE))
    found = fetch(f"http://rebind.example:{server.port}/x.jpg", allow=four_only)
    assert isinstance(found, Downloaded)
    assert asked == ["rebind.example"]
    assert "Host: rebind.example:" in server.requests[0]
    assert reason(fetch(f"http://rebind.example:{server.port}/x.jpg", allow=four_only)) == "address not allowed"


def test_a_dead_address_gives_way_to_the_next(server: Loopback, monkeypatch: pytest.MonkeyPatch):
    records(monkeypatch, ("127.0.0.9", "127.0.0.1"))
    server.serve("/x.jpg", Answer(IMAGE))
    assert isinstance(fetch(f"http://two.example:{server.port}/x.jpg"), Downloaded)
    assert [place[0] for _, place in connected] == ["127.0.0.9", "127.0.0.1"]


@pytest.mark.parametrize(
    ("code", "expected", "times"),
    [(socket.EAI_NONAME, "host not found", 1), (socket.EAI_AGAIN, "connection failed", 3)],
)
def test_only_a_temporary_failure_of_names_is_repeated(
    monkeypatch: pytest.MonkeyPatch, code: int, expected: str, times: int
):
    asked: list[object] = []

    def look_up(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(code, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert reason(fetch("http://nowhere.example/", Policy(retries=2))) == expected
    assert len(asked) == times


def test_a_proxy_of_the_environment_is_not_used(server: Loopback, monkeypatch: pytest.MonkeyPatch):
    with loopback() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url(""))
        assert isinstance(fetch(server.serve("/x.jpg", Answer(IMAGE))), Downloaded)
        assert proxy.requests == []


# What is asked for, and what comes back


def test_files_arrive_whole_and_in_order(server: Loopback):
    images = [jpeg(seed) for seed in range(40)]
    requests = [
        DownloadRequest(server.serve(f"/{i}.jpg", Answer(data, wait=random.Random(i).random() / 20)), None, MAX)
        for i, data in enumerate(images)
    ]
    requests.insert(7, DownloadRequest(server.url("/missing"), None, MAX))
    found = fetch_many(requests, ONCE, anywhere)
    assert found.pop(7) == Dropped("not found", "HTTP 404")
    assert [one.data for one in found if isinstance(one, Downloaded)] == images
    assert found[3].url == server.url("/3.jpg")
    assert fetch_many([], ONCE) == []


def test_the_request_says_who_asks_and_nothing_else(server: Loopback):
    cookie = Answer(IMAGE, headers=(("Set-Cookie", "a=b"),))
    url = server.serve("/x.jpg", cookie)
    policy = Policy(user_agent="my-set/2 (me@example.org)", per_host=1)
    fetch_many([DownloadRequest(url + "#part", None, MAX)] * 2, policy, anywhere)
    expected = [
        "GET /x.jpg HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "User-Agent: my-set/2 (me@example.org)",
        "Accept: image/*, */*;q=0.5",
        "Accept-Encoding: identity",
    ]
    assert [head.strip().split("\r\n") for head in server.requests] == [expected] * 2
    assert server.connections == 1


def test_ipv6_and_a_name_arrive(server: Loopback):
    server.serve("/x.jpg", Answer(IMAGE))
    for host in ("[::1]", "localhost"):
        found = fetch(server.url("/x.jpg", host))
        assert isinstance(found, Downloaded)
        assert found.url == server.url("/x.jpg", host)
    assert f"Host: [::1]:{server.port}" in server.requests[0]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((204, "unexpected answer"), (206, "unexpected answer"), (304, "unexpected answer")),
        (302, "unexpected answer"),
        *((400, "not found"), (404, "not found"), (410, "not found"), (401, "forbidden"), (403, "forbidden")),
        *((451, "forbidden"), (500, "server error"), (599, "server error"), (425, "server error")),
        *((408, "timed out"), (429, "rate limited")),
    ],
)  # fmt: skip
def test_status(server: Loopback, status: int, expected: str):
    found = fetch(server.serve("/x", Answer(status=status)))
    assert reason(found) == expected
    assert status == 302 or str(status) in found.detail


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_to_their_end(server: Loopback, status: int):
    server.serve("/d/end.jpg", Answer(IMAGE))
    server.serve("/middle", redirect("d/end.jpg", status))
    found = fetch(server.serve("/start", redirect(f"//localhost:{server.port}/middle", status)))
    assert found == Downloaded(IMAGE, server.url("/d/end.jpg", "localhost"))


def test_there_are_not_too_many_redirects(server: Loopback):
    server.serve("/0", Answer(IMAGE))
    for step in range(1, 8):
        server.serve(f"/{step}", redirect(f"/{step - 1}"))
    assert isinstance(fetch(server.url(f"/{download.MAX_REDIRECTS}")), Downloaded)
    server.hits.clear()
    assert reason(fetch(server.url(f"/{download.MAX_REDIRECTS + 1}"))) == "too many redirects"
    assert server.hits["/0"] == 0
    assert reason(fetch(server.serve("/loop", redirect("/loop")))) == "too many redirects"
    assert server.hits["/loop"] == download.MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://h/x", "http://u:p@h/", "http://h:22/", "http://[", "data:,x"]
)
def test_a_redirect_may_not_leave_the_web(server: Loopback, to: str):
    assert reason(fetch(server.serve("/x", redirect(to)), Policy(retries=2))) == "not a web address"
    assert server.hits["/x"] == 1


# Bounds


def test_what_says_it_is_too_large_is_not_read(server: Loopback):
    for length in (MAX + 1, 10**10, 10**19):
        found = fetch(server.serve("/x", Answer(b"x", length=length)))
        assert found == Dropped("file too large", f"more than {MAX} bytes")


def test_bytes_are_counted_whatever_was_said(server: Loopback):
    big = os.urandom(MAX + 1)
    chunked = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n"
    cases = [Answer(big, length=-1), Answer(b"x" * 65536, endless=True), Answer(raw=chunked + chunked[46:] * 20)]
    for index, answer in enumerate(cases):
        assert reason(fetch(server.serve(f"/{index}", answer))) == "file too large"
    assert isinstance(fetch(server.serve("/fits", Answer(big[:-1]))), Downloaded)


def test_a_body_longer_than_its_length_is_cut_there(server: Loopback):
    found = fetch(server.serve("/x", Answer(IMAGE + b"surplus", length=len(IMAGE))))
    assert isinstance(found, Downloaded)
    assert found.data == IMAGE


def test_compressed_answers_are_not_unpacked(server: Loopback):
    bomb = gzip.compress(bytes(100 << 20), 1)
    assert len(bomb) < MAX
    found = fetch(server.serve("/x", Answer(bomb, headers=(("Content-Encoding", "gzip"),))))
    assert reason(found) == "unexpected answer"
    assert isinstance(fetch(server.serve("/y", Answer(bomb, headers=(("Content-Encoding", "identity"),)))), Downloaded)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(IMAGE, wait=30),
        Answer(IMAGE, drip=0.05),
        Answer(b"x", drip=0.05, endless=True),
        Answer(raw=b"HTTP/1.1 100 Continue\r\n\r\n", wait=0.3),
    ],
    ids=["no head", "one byte at a time", "without end", "nothing after the interim answer"],
)
def test_the_deadline_holds(server: Loopback, answer: Answer):
    url = server.serve("/x", answer)
    began = time.monotonic()
    found = fetch(url, BRIEF)
    assert time.monotonic() - began < 2.5
    if answer.raw is None:
        assert found == Dropped("timed out", "not complete after 0.4 s")
        assert server.hits["/x"] == 1, "the slow are not asked again"
    else:
        assert reason(found) == "connection failed"


def test_the_deadline_covers_redirects(server: Loopback):
    for step in range(5):
        server.serve(f"/{step}", Answer(status=302, headers=(("Location", f"/{step + 1}"),), wait=0.15))
    server.serve("/5", Answer(IMAGE, wait=0.15))
    assert reason(fetch(server.url("/0"), BRIEF)) == "timed out"
    assert server.hits["/4"] == 0


GARBAGE = [
    *(b"", b"\r\n\r\n", b"hello", b"HTTP/9.9.9 200 OK\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
    *(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
      b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
    *(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50000),
    *(b"HTTP/1.1 200 OK\r\nbad header\x00: x\r\n\r\n",
      b"\x16\x03\x01\x02\x00\x01", b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n"),
    *(random.Random(seed).randbytes(200) + b"\r\n\r\n" for seed in range(8)),
]  # fmt: skip


def test_garbage_is_a_reason_and_no_error(server: Loopback):
    requests = [DownloadRequest(server.serve(f"/{i}", Answer(raw=raw)), None, MAX) for i, raw in enumerate(GARBAGE)]
    for found in fetch_many(requests, Policy(retries=1, timeout=20), anywhere):
        assert reason(found) in ("connection failed", "unexpected answer")


# Repetitions and politeness


def test_what_may_pass_is_asked_for_again(server: Loopback):
    policy = Policy(retries=2)
    troubles = [*(Answer(status=status) for status in (408, 425, 429, 500, 503)), Answer(reset=True, length=9),
                Answer(raw=b""), Answer(IMAGE[:-10], length=len(IMAGE))]  # fmt: skip
    for index, trouble in enumerate(troubles):
        assert isinstance(fetch(server.serve(f"/{index}", trouble, trouble, Answer(IMAGE)), policy), Downloaded)
        assert server.hits[f"/{index}"] == 3
        assert reason(fetch(server.serve(f"/{index}", trouble), policy)) in download.MAY_PASS
        assert server.hits[f"/{index}"] == 6


def test_what_will_not_pass_is_asked_for_once(server: Loopback):
    reserved = Answer(IMAGE, headers=(("X-Robots-Tag", "noai"),))
    finals = [Answer(status=404), Answer(status=403), reserved, Answer(b"x", length=MAX * 2), redirect("file:///")]
    for index, final in enumerate(finals):
        fetch(server.serve(f"/{index}", final, Answer(IMAGE)), Policy(retries=3))
        assert server.hits[f"/{index}"] == 1


def test_a_port_where_nobody_listens(server: Loopback):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        assert reason(fetch(url, Policy(retries=1))) == "connection failed"
    assert len(connected) == 2


def test_retry_after_is_obeyed_by_all_requests_to_the_host(server: Loopback):
    busy = Answer(status=503, headers=(("Retry-After", "1"),))
    first, second = server.serve("/a", busy, Answer(IMAGE)), server.serve("/b", Answer(IMAGE))
    found = fetch_many(
        [DownloadRequest(first, None, MAX), DownloadRequest(second, None, MAX)], Policy(per_host=1), anywhere
    )
    assert all(isinstance(one, Downloaded) for one in found)
    asked = server.times["/a"]
    assert min(asked[1], *server.times["/b"]) - asked[0] >= 0.99


def test_who_asks_for_too_long_a_pause_is_not_asked_again(server: Loopback):
    url = server.serve("/a", Answer(status=429, headers=(("Retry-After", "3600"),)), Answer(IMAGE))
    policy = Policy(max_wait=7.5)
    assert fetch(url, policy) == Dropped("rate limited", "HTTP 429, asks for 3600 s without requests")
    assert reason(fetch(url, policy)) == "rate limited"
    assert server.hits["/a"] == 1
    assert isinstance(fetch(server.url("/a", "localhost"), policy), Downloaded), "another host is asked"


def test_pauses_double_and_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(politeness, "FIRST_PAUSE", 0.5)
    for attempt in range(6):
        pauses = [pause_before(f"http://h/{index}", attempt) for index in range(200)]
        assert pauses == [pause_before(f"http://h/{index}", attempt) for index in range(200)]
        assert 0.25 * 2**attempt <= min(pauses) < 0.3 * 2**attempt
        assert 0.7 * 2**attempt < max(pauses) < 0.75 * 2**attempt
    assert pause_before("http://h/\ud800", 0) > 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), (" 0 ", 0.0), ("9" * 5000, 86400.0), ("-3", 0.0), ("1.5", 0.0), ("soon", 0.0), ("", 0.0), ("٣", 0.0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 99 Oct 2015 07:28:00 GMT", 0.0),
     ("Fri, 31 Dec 9999 23:59:59 GMT", 86400.0)],
)  # fmt: skip
def test_retry_after(value: str, seconds: float):
    assert retry_after(value) == seconds


def test_retry_after_a_date():
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) <= 60


def test_limits_per_host_hold_across_threads(server: Loopback):
    requests = [DownloadRequest(server.serve(f"/{i}", Answer(IMAGE, wait=0.02)), None, MAX) for i in range(40)]
    policy, results = Policy(per_host=3), []
    threads = [
        threading.Thread(target=lambda part=index: results.extend(fetch_many(requests[part::4], policy, anywhere)))
        for index in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(isinstance(found, Downloaded) for found in results)
    assert server.busiest == 3


def test_all_requests_together_have_a_limit(server: Loopback):
    server.serve("/x", Answer(IMAGE, wait=0.02))
    hosts = ["127.0.0.1", "localhost", "[::1]", "127.0.0.1", "localhost", "[::1]"] * 3
    policy = Policy(concurrency=2, per_host=2)
    found = fetch_many([DownloadRequest(server.url("/x", host), None, MAX) for host in hosts], policy, anywhere)
    assert all(isinstance(one, Downloaded) for one in found)
    assert server.busiest == 2


def test_a_slow_host_does_not_hold_up_the_others(server: Loopback):
    slow = [DownloadRequest(server.serve("/slow", Answer(IMAGE, wait=0.2)), None, MAX)] * 4
    quick = DownloadRequest(server.serve("/quick", Answer(IMAGE)).replace("127.0.0.1", "localhost"), None, MAX)
    fetch_many([*slow, quick], Policy(concurrency=2, per_host=1), anywhere)
    assert server.times["/quick"][0] < server.times["/slow"][1]


def test_nothing_is_remembered_of_a_host_that_was_left(server: Loopback):
    policy = Policy(per_host=5)
    fetch(server.serve("/x", Answer(IMAGE)), policy)
    assert download._traffic[policy]._hosts == {}


# Opt-outs


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([("X-Robots-Tag", "noai")], "X-Robots-Tag: noai"),
        ([("x-robots-tag", "all"), ("X-ROBOTS-TAG", "NoImageAI")], "X-Robots-Tag: noimageai"),
        ([("X-Robots-Tag", "max-snippet: 20, noai, nofollow")], "X-Robots-Tag: noai"),
        ([("X-Robots-Tag", "GPTBot: noai")], "X-Robots-Tag: noai"),
        ([("X-Robots-Tag", "terminus:noai")], "X-Robots-Tag: noai"),
        ([("X-Robots-Tag", ";;noai noimageai:,")], "X-Robots-Tag: noai"),
        ([("X-Robots-Tag", "nofollow, noindex")], "X-Robots-Tag: noindex"),
        ([("X-Robots-Tag", "none")], "X-Robots-Tag: none"),
        ([("X-Robots-Tag", "Terminus: noimageindex")], "X-Robots-Tag: noimageindex"),
        ([("X-Robots-Tag", "*: noindex")], "X-Robots-Tag: noindex"),
        ([("X-Robots-Tag", "googlebot: nofollow, terminus: noindex")], "X-Robots-Tag: noindex"),
        ([("X-Robots-Tag", "unavailable_after: Tue, 01 Jan 2030 10:00:00 GMT, noindex")], "X-Robots-Tag: noindex"),
        ([("X-Robots-Tag", "googlebot: noindex, nofollow")], None),
        ([("X-Robots-Tag", "googlebot: nofollow, noindex")], None),
        ([("X-Robots-Tag", "all, index, max-image-preview: none, noair, unnoai")], None),
        ([("X-Robots-Tag", "")], None),
        ([("tdm-reservation", "1")], "tdm-reservation: 1"),
        ([("TDM-Reservation", ' "1" '), ("tdm-policy", "https://h/p")], "tdm-reservation: 1"),
        ([("tdm-reservation", "0")], None),
        ([("tdm-reservation", "10")], None),
        ([("tdm-policy", "1")], None),
        ([("Content-Usage", "train-ai=n")], "Content-Usage: train-ai=n"),
        ([("Content-Usage", "search=y;a=b, TRAIN-AI = N ;x")], "Content-Usage: train-ai=n"),
        ([("Content-Usage", "search=y"), ("content-usage", "train-ai=n")], "Content-Usage: train-ai=n"),
        ([("Content-Usage", "bots=n")], "Content-Usage: bots=n"),
        ([("Content-Usage", "genai=n")], "Content-Usage: genai=n"),
        ([("Content-Usage", "bots=n, train-ai=y")], None),
        ([("Content-Usage", "train-ai=n, train-ai=y")], None),
        ([("Content-Usage", "train-ai=y, search=n")], None),
        ([("Content-Usage", "train-ai, ai-use=n, x=train-ai=n,,;=")], None),
        ([("Content-Usage", "train-ai=y"), ("tdm-reservation", "1")], "tdm-reservation: 1"),
        ([("Content-Signal", "search=yes, ai-train=no")], "Content-Signal: ai-train=no"),
        ([("Content-Signal", "ai-train=yes")], None),
        ([], None),
    ],
)  # fmt: skip
def test_reservations(headers: list[tuple[str, str]], said: str | None):
    assert reservation(headers, "Terminus") == said


@given(st.lists(st.tuples(st.sampled_from(["X-Robots-Tag", "Content-Usage", "tdm-reservation"]), st.text())))
def test_no_header_is_an_error(headers: list[tuple[str, str]]):
    assert reservation(headers, "terminus") is None or headers


def test_the_reserved_is_not_kept_and_its_body_not_read(server: Loopback):
    endless = Answer(b"x", endless=True, headers=(("X-Robots-Tag", "index"), ("X-Robots-Tag", "noai")))
    assert fetch(server.serve("/x", endless)) == Dropped("opted out", "X-Robots-Tag: noai")
    server.serve("/end", Answer(IMAGE))
    found = fetch(server.serve("/y", redirect("/end", **{"tdm-reservation": "1"})))
    assert found == Dropped("opted out", "tdm-reservation: 1")
    assert server.hits["/end"] == 0
    allowed = Answer(IMAGE, headers=(("Content-Usage", "train-ai=y"), ("tdm-reservation", "0")))
    assert isinstance(fetch(server.serve("/z", allowed)), Downloaded)


def test_a_search_directive_may_address_us_by_our_name(server: Loopback):
    url = server.serve("/x", Answer(IMAGE, headers=(("X-Robots-Tag", "my-set: noindex"),)))
    assert isinstance(fetch(url), Downloaded)
    assert reason(fetch(url, Policy(user_agent="My-Set/2 (+https://example.org)"))) == "opted out"


# Checksums


def test_checksums(server: Loopback):
    url = server.serve("/x.jpg", Answer(IMAGE))
    for algorithm in ("sha256", "md5"):
        digest = hashlib.new(algorithm, IMAGE).hexdigest()
        for checksum in (f"{algorithm}:{digest}", f"{algorithm.upper()}:{digest.upper()}"):
            assert isinstance(fetch(url, checksum=checksum), Downloaded)
        wrong = hashlib.new(algorithm, IMAGE[1:]).hexdigest()
        found = fetch(url, Policy(retries=2), checksum=f"{algorithm}:{wrong}")
        assert found == Dropped("checksum differs", f"{algorithm} of the file is {digest}")
    asked = len(server.requests)
    for checksum in ("", "sha256:", "sha256:xyz", "sha1:" + "0" * 40, "md5:" + "0" * 64, "0" * 64):
        assert reason(fetch(url, checksum=checksum)) == "checksum unreadable"
    assert len(server.requests) == asked


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, signed by itself, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return file


@pytest.fixture
def secure(certificate: Path) -> Iterator[Loopback]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with loopback(context) as running:
        yield running


def test_a_certificate_that_nobody_vouches_for(secure: Loopback):
    secure.serve("/x.jpg", Answer(IMAGE))
    assert reason(fetch(secure.url("/x.jpg", "localhost"), Policy(retries=2))) == "TLS failed"
    assert len(connected) == 1, "not asked again"
    assert secure.requests == []


def test_plain_text_where_tls_is_expected(server: Loopback):
    url = server.serve("/x.jpg", Answer(IMAGE)).replace("http:", "https:")
    assert reason(fetch(url, BRIEF)) in ("TLS failed", "connection failed", "timed out")
    assert server.requests == []


def test_tls_by_name_and_no_way_back_to_plain_http(
    secure: Loopback, server: Loopback, certificate: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    download._certificates.cache_clear()
    try:
        secure.serve("/x.jpg", Answer(IMAGE))
        assert isinstance(fetch(secure.url("/x.jpg", "localhost")), Downloaded)
        assert reason(fetch(secure.url("/x.jpg", "127.0.0.1"))) == "TLS failed", "the certificate is for localhost"
        plain = server.serve("/x.jpg", Answer(IMAGE))
        secure.serve("/down", redirect(plain))
        found = fetch(secure.url("/down", "localhost"))
        assert found == Dropped("address not allowed", f"a redirect from https to http://127.0.0.1:{server.port}")
        upwards = server.serve("/up", redirect(secure.url("/x.jpg", "localhost")))
        assert isinstance(fetch(upwards), Downloaded)
    finally:
        download._certificates.cache_clear()


# Where it is called from


def test_it_may_be_called_beside_a_running_event_loop(server: Loopback):
    async def within() -> Downloaded | Dropped:
        return fetch(server.serve("/x.jpg", Answer(IMAGE)))

    assert isinstance(asyncio.run(within()), Downloaded)


def test_an_interrupt_ends_everything_at_once(server: Loopback):
    requests = [DownloadRequest(server.serve("/x", Answer(IMAGE, wait=30)), None, MAX)] * 20
    policy = Policy(per_host=6, timeout=60)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch_many(requests, policy, anywhere)
    assert time.monotonic() - began < 2
    server.serve("/x", Answer(IMAGE))
    assert isinstance(fetch(server.url("/x"), policy), Downloaded)
    assert len(server.requests) == 7
    assert download._traffic[policy]._hosts == {}


def test_what_it_takes_and_gives_travels_between_processes(server: Loopback):
    url = server.serve("/x.jpg", Answer(IMAGE))
    arguments = ([DownloadRequest(url, None, MAX)], Policy(), anywhere)
    found = fetch_many(*pickle.loads(pickle.dumps(arguments)))
    assert pickle.loads(pickle.dumps(found)) == [Downloaded(IMAGE, url)]
    assert pickle.loads(pickle.dumps(is_global)) is is_global


def test_a_forked_child_starts_anew(server: Loopback):
    url = server.serve("/x.jpg", Answer(IMAGE))
    assert isinstance(fetch(url), Downloaded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries that other tests imported advise against it
        child = os.fork()
    if child == 0:
        os._exit(0 if isinstance(fetch(url), Downloaded) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_process_ends_without_a_word(server: Loopback):
    url = server.serve("/x.jpg", Answer(IMAGE))
    code = (
        "import sys; from terminus.data.fetch.download import *; from tests.data.loopback import anywhere;"
        "print(len(fetch_many([DownloadRequest(sys.argv[1], None, 1 << 20)], Policy(), anywhere)[0].data))"
    )
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", code, url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    # asyncio's debug mode names callbacks that took long: that is about the machine
    said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.stdout, said, done.returncode) == (f"{len(IMAGE)}\n", [], 0)


def test_every_reason_is_explained():
    page = (ROOT / "docs" / "download.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([^|]*)` \|", page, re.MULTILINE)
    named = [name for row in table for name in row.split("`, `")]
    reasons = [name for name in named if name in get_args(download.Reason)]
    assert sorted(reasons) == sorted(get_args(download.Reason))
    assert set(get_args(download.Reason)) >= download.MAY_PASS
    assert addresses.MAX_URL > 2083
