"""What strangers send: the cases D1 to D8 of docs/reliability.md, each against a real server.

Whatever comes, the server answers with its own kind of error, tells nothing of the machine, and draws the next image.
"""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import httpx2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.serving.conftest import Server

JSON = {"content-type": "application/json"}
SCRIPT = '"><img src=x onerror=alert(1)>'


def png(size: tuple[int, int] = (64, 64), mode: str = "RGB", color: object = 0, **texts: str) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.fixture(autouse=True)
def draws_the_next_image(server: Server) -> Iterator[None]:
    """After every case the same process answers as before."""
    pid = server.process.pid
    yield
    assert server.process.pid == pid
    assert server.process.poll() is None
    assert server.client.get("/health").status_code == 200


def check_error(server: Server, answer: httpx2.Response, *statuses: int) -> dict:
    """An error of ours, with nothing of the machine in it."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    error = answer.json()["error"]
    assert error["message"]
    for hidden in (str(server.folder), "/root", "site-packages", "Traceback", "terminus/serving"):
        assert hidden not in answer.text
    return error


def test_d1_bodies_that_are_no_request(server: Server):
    deep = b"[" * 100_000 + b"]" * 100_000
    for body in (b"", b"{", b"[]", b'"x"', b"null", deep, b'{"model": NaN}', b"\xff\xfe", b'{"model": "nano", "a": 1}'):
        answer = server.client.post("/api/v1/jobs", content=body, headers=JSON)
        check_error(server, answer, 400, 422)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [10**9, -1, 0, "abc", True, 1.5, None.__class__.__name__, [], 10**30]),
        ("width", [0, -8, 7, 8193, 10**9, "64", 64.5]),
        ("count", [0, 10**6, "1", -1]),
        ("seed", [2**64, -1, 1.5, "1", True]),
        ("guidance", [-5, 1e6, "4", [], True]),
        ("rescale", [-0.1, 1.1]),
        ("strength", [0, 1.0001, -0.1]),
        ("solver", ["nothing", 1, "", "a" * 10_000]),
        ("spacing", ["caras", SCRIPT]),
        ("model", ["nothing", "../nano", "/etc/passwd", "", 1, None, "a" * 10_000]),
        ("prompt", [1, None, [], "a" * 1_000_000, "a" * 20_001]),
        ("interval", [[0.8, 0.2], [0], "0:1", [0, 2]]),
        ("adapters", [[{"id": "../x"}], [{"id": "nothing"}], "x", [{"id": "nano", "weight": 99}], [1] * 100]),
        ("image", ["../../etc/passwd", "nothing"]),
        ("task", ["inpaint", "draw"]),
        ("unknown", [1]),
        ("hires", [{"factor": 99}, {"factor": 1.5, "other": 1}, 2]),
    ],
)  # fmt: skip
def test_d1_values_out_of_range(server: Server, field: str, values: list):
    for value in values:
        request = {"model": "nano", "prompt": "a dog", "steps": 2, **({"height": 64} if field == "width" else {})}
        answer = server.client.post(
            "/api/v1/jobs", content=json.dumps({**request, field: value}).encode(), headers=JSON
        )
        if answer.status_code == 202:  # what only the model can judge: 7 pixels
            job = server.until(answer.json()["id"], "failed")
            assert job["error"]["rule"]
        else:
            check_error(server, answer, 404, 413, 422)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_d1_numbers_that_are_none(server: Server, text: str):
    body = f'{{"model": "nano", "prompt": "a", "guidance": {text}}}'
    check_error(server, server.client.post("/api/v1/jobs", content=body.encode(), headers=JSON), 400, 422)


def test_d1_limits_are_on_products(server: Server):
    each = {"model": "nano", "prompt": "a", "width": 2048, "height": 2048, "steps": 200, "count": 64}
    error = check_error(server, server.post("/api/v1/jobs", each), 422)
    assert "pixels times images times steps" in error["rule"]


def test_d1_prompts_are_text(server: Server):
    for prompt in ("", "\0", "🦄 " * 20, SCRIPT, "{{ 7 * 7 }} {% raw %}", "((((" * 2000, "\u202e\u200b"):
        job = server.draw(prompt=prompt, steps=1, seed=1)
        assert job["state"] == "finished", job["error"]
        assert job["images"][0]["prompt"] == prompt
    body = b'{"model": "nano", "prompt": "\\ud800", "steps": 1}'
    check_error(server, server.client.post("/api/v1/jobs", content=body, headers=JSON), 400, 422)
    long = server.draw(prompt="word " * 3999, steps=1)
    assert long["state"] == "failed"
    assert "chunks" in long["error"]["message"]


def test_d2_uploads_that_are_no_image(server: Server):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    for data in (b"", b"x", svg, b"<html>", bomb, png()[:60], b"GIF89a" + b"\0" * 100):
        answer = server.client.post("/api/v1/uploads", files={"file": ("x.png", data, "image/png")})
        check_error(server, answer, 422)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("name", ["../../x.png", "x.png\0.sh", "a" * 4096 + ".png", "con", '"><script>', "..\\x"])
def test_d2_names_of_files_do_not_matter(server: Server, name: str):
    answer = server.client.post("/api/v1/uploads", files={"file": (name, png(), "text/html")})
    assert answer.status_code == 201
    shown = server.client.get(f"/{answer.json()['url']}")
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert sorted(path.name for path in server.folder.parent.iterdir()) == ["images", "images.log"]


def test_d2_forms_that_are_none(server: Server):
    post = server.client.post
    check_error(server, post("/api/v1/uploads", files={"other": ("x", png())}), 422)
    check_error(server, post("/api/v1/uploads", files=[("file", ("x", png())), ("file", ("y", png()))]), 422)
    check_error(server, post("/api/v1/uploads", files={f"f{number}": ("x", b"x") for number in range(1000)}), 422)
    form = {"content-type": "multipart/form-data; boundary=x"}
    without_end = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nabc'
    check_error(server, post("/api/v1/uploads", content=without_end, headers=form), 400, 422)
    check_error(server, post("/api/v1/uploads", content=b"a=" + b"x" * 1000, headers={
        "content-type": "application/x-www-form-urlencoded"}), 415)  # fmt: skip


def test_d2_bytes_are_counted_as_they_arrive(server: Server):
    """Without a length, in chunks without end: the server closes before it has taken much more than its limit."""

    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * (1 << 20)

    for path, limit in (("/api/v1/jobs", 1 << 20), ("/api/v1/uploads", 48 << 20)):
        kind = "application/json" if path.endswith("jobs") else "multipart/form-data; boundary=x"
        try:
            answer = server.client.post(path, content=endless(), headers={"content-type": kind})
        except (httpx2.WriteError, httpx2.ReadError, httpx2.RemoteProtocolError):
            continue  # it was closed while we wrote
        assert answer.status_code in (413, 422, 400), (path, limit)
    said = {"content-type": "application/json", "content-length": str(100 << 20)}
    assert raw(server, "POST /api/v1/jobs", said, b"").startswith(b"HTTP/1.1 413")


def raw(server: Server, line: str, headers: dict[str, str], body: bytes) -> bytes:
    """The answer to bytes that no client would send."""
    host, port = server.address.removeprefix("http://").split(":")
    named = {"host": f"{host}:{port}", "connection": "close", **headers}
    text = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value is not None)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{line} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + body)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return answer


def test_d2_masks(server: Server):
    image = server.upload(png((64, 64)))["id"]
    small, black = server.upload(png((32, 64), "L", 255))["id"], server.upload(png((64, 64), "L", 0))["id"]
    white, tiny = server.upload(png((64, 64), "L", 255))["id"], server.upload(png((1, 1)))["id"]
    request = {"model": "nano", "prompt": "a", "steps": 2, "task": "inpaint", "image": image}
    error = check_error(server, server.post("/api/v1/jobs", {**request, "mask": small}), 422)
    assert "32x64" in error["message"]
    assert server.draw(**{**request, "mask": black})["state"] == "failed"
    assert server.draw(**{**request, "mask": white})["state"] == "finished"
    assert server.draw(prompt="a", task="image", image=tiny, steps=2)["state"] in ("finished", "failed")
    transparent = server.upload(png((64, 64), "RGBA", (255, 0, 0, 0)))
    assert np.asarray(Image.open(io.BytesIO(server.client.get(f"/{transparent['url']}").content))).min() == 255
    answer = server.post("/api/v1/jobs", {"model": "nano", "task": "upscale", "factor": 8, "image": server.upload(
        png((8000, 8000)))["id"]})  # fmt: skip
    check_error(server, answer, 422)


def test_d3_ranges_and_slow_readers(server: Server):
    job = server.draw(prompt="a", steps=1)
    url = f"/{job['images'][0]['url']}"
    many = ",".join(f"{start}-{start + 1}" for start in range(0, 20_000, 2))
    began = time.monotonic()
    answer = server.client.get(url, headers={"range": f"bytes={many}"})
    assert answer.status_code in (200, 206, 400, 416, 431)
    assert time.monotonic() - began < 5
    host, port = server.address.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(50)]
    for connection in slow:
        connection.sendall(b"GET / HTTP/1.1\r\nHost:")
    assert server.client.get("/health").status_code == 200
    for connection in slow:
        connection.close()


PATHS = [
    "../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc/passwd", "..%5c..%5cetc", "%252e%252e%252fetc", "/etc/passwd",
    "..%2f.serve%2fstate.sqlite", "con", "nul.png", "%00", "x%00.png", "a" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_d4_no_path_leads_anywhere(server: Server, path: str):
    for start in ("/static/", "/api/v1/images/", "/api/v1/uploads/", "/api/v1/runs/", "/api/v1/models/", "/"):
        for method in ("GET", "DELETE"):
            answer = raw(server, f"{method} {start}{path}", {}, b"")
            status = int(answer.split()[1])
            assert status in (307, 400, 404, 405, 414, 422), (start, path, answer[:200])
            assert b"root:" not in answer
            assert b"SQLite" not in answer


def test_d4_links_in_the_folder_are_not_followed(serve: Callable[..., Server], tmp_path):
    """An image that is a link to another file is not taken into the gallery."""
    day = tmp_path / "images" / "2026-01-01"
    day.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(png())
    (day / "link.png").symlink_to(tmp_path / "secret.png")
    (day / "real.png").write_bytes(png())
    server = serve().ready()
    deadline = time.monotonic() + 30
    while not (found := server.client.get("/api/v1/images").json()["images"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:99999"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "file://"}, 403),
        ({"origin": ""}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "["}, 421),
        ({"host": ""}, 421),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_d5_requests_from_other_pages(server: Server, headers: dict[str, str], status: int):
    body = b'{"model": "nano", "prompt": "a", "steps": 1}'
    sent = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    answer = raw(server, "POST /api/v1/jobs", sent, body)
    assert int(answer.split()[1]) == status, answer[:200]
    assert b"access-control" not in answer.lower()


def test_d5_preflights_and_web_sockets_lead_nowhere(server: Server):
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert int(raw(server, "OPTIONS /api/v1/jobs", preflight, b"").split()[1]) == 403
    upgrade = {"connection": "upgrade, close", "upgrade": "websocket", "sec-websocket-version": "13",
               "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    assert int(raw(server, "GET /api/v1/events2", upgrade, b"").split()[1]) == 404


def test_d5_headers_of_every_answer(server: Server):
    for path in ("/", "/health", "/api/v1/status", "/nothing", "/openapi.json", "/static/nothing.js"):
        headers = server.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that needs a token."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens").write_text("# who may draw\nanna anna-token-0123456789\n")
    server = Server(folder / "images", "--token-file", str(folder / "tokens"), token="anna-token-0123456789")
    yield server.ready()
    assert server.stop() == 0


def test_d6_nothing_without_the_token(guarded: Server):
    assert "127.0.0.1" in guarded.address
    with httpx2.Client(base_url=guarded.address, trust_env=False) as stranger:
        assert stranger.get("/health").json() == {"status": "ready"}
        for path in ("/api/v1/status", "/metrics", "/openapi.json", "/api/v1/images", "/v1/models", "/sdapi/v1/options",
                     "/mcp", "/gallery", "/docs"):  # fmt: skip
            answer = stranger.get(path)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["message"] == "A token is needed"
        for offered in ("Bearer x", "Bearer anna-token-012345678", "Basic eDp5", "Bearer", "anna-token-0123456789"):
            assert stranger.get("/api/v1/status", headers={"authorization": offered}).status_code == 401
        assert stranger.get("/api/v1/status?token=anna-token-0123456789").status_code == 401
        page = stranger.get("/", headers={"accept": "text/html"})
        assert page.status_code == 401
        assert stranger.post("/login", json={"token": "x"}).status_code == 401
        answer = stranger.post("/login", json={"token": "anna-token-0123456789"})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "anna" not in cookie
        assert stranger.get("/api/v1/status").json()["user"] == "anna"
        # A browser's cookie alone changes nothing unless the browser says that the request is our page's.
        assert stranger.post("/api/v1/boards", json={"name": "x"}).status_code == 403
        assert (
            stranger.post("/api/v1/boards", json={"name": "x"}, headers={"origin": guarded.address}).status_code == 201
        )
    assert guarded.client.get("/metrics").text.startswith("# HELP")
    assert "anna-token" not in guarded.log.read_text()


def test_d6_no_open_door_by_accident(serve: Callable[..., Server], tmp_path):
    with pytest.raises(AssertionError, match="without --token-file"):
        serve("--host", "0.0.0.0")
    weak = tmp_path / "weak"
    weak.write_text("secret\n")
    with pytest.raises(AssertionError, match="This line is no token"):
        serve("--token-file", str(weak))


def test_d7_text_is_only_ever_text(server: Server):
    job = server.draw(prompt=SCRIPT, negative="[a](javascript:alert(1))", steps=1)
    image = job["images"][0]
    assert image["prompt"] == SCRIPT
    answer = server.client.get("/api/v1/images", params={"query": "onerror"})
    assert answer.headers["content-type"] == "application/json"
    assert image["id"] in {one["id"] for one in answer.json()["images"]}
    for page in ("/", "/gallery"):
        assert SCRIPT not in server.client.get(page).text
    read = server.client.post(
        "/api/v1/read",
        files={"file": ("x", png(parameters=f"{SCRIPT}\nSteps: 3, Sampler: {SCRIPT}, CFG scale: 4, Seed: 1"))},
    )
    assert read.headers["content-type"] == "application/json"
    assert read.json()["request"]["prompt"] == SCRIPT


def test_d8_nothing_of_the_machine(server: Server):
    job = server.draw(prompt="a", steps=1)
    key = job["images"][0]["id"]
    told = [server.client.get(path).text for path in (
        "/health", "/api/v1/status", "/api/v1/options", "/api/v1/models", "/api/v1/models/nano", "/api/v1/adapters",
        "/openapi.json", "/metrics", "/api/v1/runs", f"/api/v1/images/{key}", "/sdapi/v1/sd-models",
        "/sdapi/v1/options", "/sdapi/v1/memory", "/sdapi/v1/cmd-flags", "/v1/models",
    )]  # fmt: skip
    told.append(server.png(key).decode("latin-1"))
    for hidden in (str(server.folder), "/root", "site-packages", socket.gethostname(), "/src/terminus"):
        assert not [text[:100] for text in told if hidden in text], hidden
    assert SCRIPT not in server.log.read_text()


def test_d3_two_hundred_at_once(server: Server):
    """All are answered; those beyond the limit with a time to ask again."""
    blocker = server.submit(prompt="a bird", steps=200, count=8)
    answers: list[httpx2.Response] = []

    def ask() -> None:
        with httpx2.Client(base_url=server.address, timeout=60, trust_env=False) as client:
            answers.append(client.post("/api/v1/jobs", json={"model": "nano", "prompt": "a", "steps": 1}))

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {202, 429, 503}
    assert len(statuses) == 200
    assert 0 < statuses.count(202) <= 200
    refused = [answer for answer in answers if answer.status_code != 202]
    assert refused
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    server.client.delete(f"/api/v1/jobs/{blocker['id']}")
    for answer in answers:
        if answer.status_code == 202:
            assert len(server.until(answer.json()["id"], "finished")["images"]) == 1
