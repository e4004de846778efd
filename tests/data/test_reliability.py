"""Hostile input that no other test of preparation covers; `docs/reliability.md` lists every case and its test."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import stat
import struct
import sys
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from terminus.bounded_files import read_bounded
from terminus.config.load import load
from terminus.data.examine import ImageVerdict, Refused, examine_image
from terminus.data.fetch.addresses import is_global
from terminus.data.fetch.download import DownloadRequest, Policy, fetch_many
from terminus.data.filters import Filters
from terminus.data.geometry import Transform
from terminus.data.prepare import prepare
from terminus.data.record import Candidate, content_hash
from terminus.data.settings import DataConfig
from terminus.data.sources.coco import CocoSource
from terminus.data.sources.folder import FolderSource
from terminus.data.sources.huggingface import HuggingfaceSource
from terminus.data.sources.laion import LaionSource
from terminus.data.sources.webdataset import WebdatasetSource
from terminus.data.store import Store
from terminus.decode import Decoded, Limits, decode
from terminus.errors import UserError
from terminus.images import Dropped
from terminus.model.text_encoders import load_tokenizer

from .conftest import noise, save
from .loopback import Answer, Loopback, anywhere, loopback
from .sources.test_coco import captions, image, write
from .sources.test_webdataset import shard
from .test_curate import jpeg, settings
from .test_tar import archive, special

LIMITS = Limits(file_bytes=10_000_000, pixels=1_000_000)
TRANSFORM = Transform(64)
SECRET = "/etc/passwd"
"""What hostile input names in order to have it read."""
connected: list[object] = []
opened: list[str] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        connected.append(arguments[1])
    elif event == "open" and str(arguments[0]) == SECRET:
        opened.append(SECRET)


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def watch() -> None:
    connected.clear()
    opened.clear()


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as running:
        yield running


def outcomes(data: DataConfig, allow: Callable[..., bool] = anywhere) -> dict[str, str]:
    """Of every candidate, by its id: the reason why it was dropped, or "kept"."""
    report = prepare(data, None, Console(file=StringIO()), allow)
    store = Store(data.store)
    found = {"kept": store.images.latest(), "": store.rejected.latest()}
    metadata = {
        str(row["source_id"]): kept or str(row["reason"])
        for kept, view in found.items()
        if view
        for row in view.scan(["source_id"] if kept else ["source_id", "reason"]).to_pylist()
    }
    assert len(metadata) == report.candidates == report.kept + sum(report.dropped.values())
    return metadata


def reasons(offered: Iterator[Candidate]) -> list[str | None]:
    return [one.problem.reason if one.problem else None for one in offered]


# B1: tables


def laion(path: Path, content: pa.Table, **options: object) -> LaionSource:
    pq.write_table(content, path, **options)
    return LaionSource(kind="laion", name="laion", path=str(path))


URLS = pa.array(["http://x.test/0.jpg", "http://x.test/1.jpg"])
TEXTS = pa.array(["a", "b"])
WRONG = "value of the wrong type"
TABLES = {
    "no rows": (URLS[:0], TEXTS[:0], []),
    "a null URL": (pa.array(["http://x.test/0.jpg", None]), TEXTS, [None, "row names no image"]),
    "an empty URL": (pa.array(["", " "]), TEXTS, ["row names no image"] * 2),
    "null for all": (pa.nulls(2), TEXTS, ["row names no image"] * 2),
    "a struct as URL": (pa.array([{"a": [1]}] * 2), TEXTS, [WRONG] * 2),
    "numbers as caption": (URLS, pa.array([1, 2]), [None, None]),
    "nested captions": (URLS, pa.array([[["a"]], [["b"]]]), [WRONG] * 2),
    "a map as caption": (URLS, pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int8())), [WRONG] * 2),
    "bytes as caption": (URLS, pa.array([b"\xff", b"a"]), [WRONG] * 2),
    "dictionary-encoded": (URLS.dictionary_encode(), TEXTS.dictionary_encode(), [None, None]),
    "a caption of 64 k letters": (URLS, pa.array(["x" * 65536, "x" * 65537]), [None, "caption cannot be read"]),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_of_odd_columns(tmp_path: Path, case: str):
    urls, texts, expected = TABLES[case]
    source = laion(tmp_path / "x.parquet", pa.table({"URL": urls, "TEXT": texts}))
    assert reasons(source.candidates(0)) == expected
    assert source.count() == len(expected)


@pytest.mark.parametrize("claim", ["bytes", "rows"])
def test_a_row_group_that_claims_too_much_is_not_believed(tmp_path: Path, claim: str):
    path = tmp_path / "x.parquet"
    source = laion(path, pa.table({"URL": ["u"] * 70, "TEXT": ["t"] * 70}))
    group, data = pq.ParquetFile(path).metadata.row_group(0), path.read_bytes()
    rows = _zigzag(70)
    size = b"\x16" + _zigzag(group.total_byte_size)
    larger = (b"\x16" + _zigzag(10 << 30) + b"\x16" + rows) if claim == "bytes" else size + b"\x16" + _zigzag(10**10)
    start = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    assert data[start:-8].count(size + b"\x16" + rows) == 1
    footer = data[start:-8].replace(size + b"\x16" + rows, larger)
    path.write_bytes(data[:start] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    found = reasons(source.candidates(0))
    assert tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before < 16 << 20
    tracemalloc.stop()
    assert found == [None] * 70 + ["table cannot be read"] * (claim == "rows")


def _zigzag(number: int) -> bytes:
    """As Thrift's compact protocol writes an i64."""
    number, found = number << 1, b""
    while number > 127:
        number, found = number >> 7, found + bytes([number & 127 | 128])
    return found + bytes([number])


WORDS = {
    "nul\0 in it": "nul in it",
    "\x1b[31mred\x1b]0;title\x07": "[31mred]0;title",
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "{{7*7}} ${7*7} {% raw %}": "{{7*7}} ${7*7} {% raw %}",
    "=cmd|' /C calc'!A0": "=cmd|' /C calc'!A0",
    "\u202eright to left\u200b": "\u202eright to left\u200b",
    " \n\t\r\n": None,
    "lone \ud800": WRONG,
}


def test_captions_are_text_and_nothing_else(tmp_path: Path):
    lines = [json.dumps({"URL": "http://x.test/", "TEXT": text}) for text in WORDS]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    offered = list(LaionSource(kind="laion", name="l", path=str(tmp_path)).candidates(0))
    found = [one.problem.reason if one.problem else one.captions[0].text if one.captions else None for one in offered]
    assert found == list(WORDS.values())


# B2: COCO


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:{port}/x.jpg", "//127.0.0.1/x", "C:\\x.jpg"])
def test_a_coco_url_opens_no_file_and_no_private_address(tmp_path: Path, server: Loopback, url: str):
    path = write(tmp_path, [image(1, coco_url=url.format(port=server.port))], captions((1, "a")))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (one,) = CocoSource(kind="coco", name="coco", path=str(path)).candidates(0)
    opened.clear()
    (found,) = fetch_many([DownloadRequest(one.url or "", None, 1000)], Policy(retries=0))
    assert isinstance(found, Dropped)
    assert found.reason == ("address not allowed" if url.startswith("http") else "not a web address")
    assert (connected, server.connections) == ([], 0)
    assert not opened


# B3: folders


def test_a_folder_of_odd_names(tmp_path: Path):
    folder = tmp_path / "images"
    names = {
        "-rf.png": "-rf.png", "a'b\"c`d$(e).png": "a'b\"c`d$(e).png", "line\nbreak.png": "line\\nbreak.png",
        "x" * 251 + ".png": "x" * 251 + ".png", "CAT.png": "CAT.png", "cat.png": "cat.png",
        "\u202egnp.exe.png": "\\u202egnp.exe.png",
    }  # fmt: skip
    for index, name in enumerate(names):
        save(folder / name, Image.fromarray(noise(index, 80, 80)))
    data = settings(tmp_path, FolderSource(kind="folder", name="f", path=folder))
    assert outcomes(data) == dict.fromkeys(names.values(), "kept")


@pytest.mark.parametrize("change", ["a FIFO", "gone", "larger", "a link", "shorter"])
def test_a_file_that_changes_after_it_was_listed(tmp_path: Path, change: str):
    path = save(tmp_path / "root" / "a.jpg", Image.fromarray(noise(0, 80, 80)))
    (one,) = FolderSource(kind="folder", name="f", path=tmp_path / "root").candidates(0)
    whole = path.read_bytes()
    path.unlink()
    if change == "a FIFO":
        os.mkfifo(path)
    elif change == "a link":
        path.symlink_to("/etc/passwd")
    elif change != "gone":
        path.write_bytes(whole * 2 if change == "larger" else whole[: len(whole) // 2])
    assert one.path is not None
    found = examine_image(
        ImageVerdict((one.path, tmp_path / "root"), (0, 0, 0)), Filters(max_file_bytes=len(whole)), TRANSFORM
    )
    assert isinstance(found, Refused)
    assert found.dropped.reason == {
        "a FIFO": "not a regular file", "gone": "cannot be read", "larger": "file too large",
        "a link": "link out of the folder", "shorter": "truncated",
    }[change]  # fmt: skip


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/proc/self/mem"], ids=["endless", "full", "EIO"])
def test_devices_and_errors_of_the_disk(path: str):
    found = read_bounded(Path(path), Path(path).resolve().parent, 100)
    assert isinstance(found, Dropped)
    assert found.reason == ("not a regular file" if path.startswith("/dev") else "cannot be read")


def test_a_file_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "secret.jpg")
        path.write_bytes(b"x")
        path.chmod(0)
        Path(folder).chmod(stat.S_IRWXU | stat.S_IXOTH)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            found = read_bounded(path, Path(folder), 100)
        finally:
            os.seteuid(user)
    assert found == Dropped("cannot be read", "Permission denied")


# B4: archives


def zipped(*members: tuple[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in members:
            writer.writestr(name, content)
    return file.getvalue()


def sparse() -> bytes:
    """As GNU tar writes a file of 1 TB that holds nothing."""
    records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n35 GNU.sparse.realsize=1099511627776\n"
    file = BytesIO(archive(("b.jpg", b"x")))
    block = bytearray(file.getvalue()[:512])
    block[124:136], block[156:157], block[148:156] = b"%011o\0" % len(records), b"x", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + records.ljust(512, b"\0") + file.getvalue()


LINKS = (special(b"2", "a.jpg", "b.jpg"), special(b"1", "b.jpg", "c.jpg"), special(b"2", "c.jpg", "../../etc/passwd"))
ARCHIVES = {
    "a chain of links": (archive(*LINKS), ["not a regular file"] * 3),
    "a link, then a file through it": (archive(special(b"2", "a.jpg", "/tmp"), ("a.jpg/x.jpg", b"x")),
                                       ["not a regular file", None]),
    "a sparse file of 1 TB": (sparse(), ["damaged archive"]),
    "zip slip": (zipped(("../../x.jpg", b"x")), ["truncated archive"]),
    "a zip bomb": (zipped(("0.jpg", bytes(64 << 20))), ["damaged archive"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_attack(tmp_path: Path, case: str):
    content, expected = ARCHIVES[case]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(content)
    offered = list(WebdatasetSource(kind="webdataset", name="w", path=str(tmp_path / "shards")).candidates(0))
    assert reasons(iter(offered)) == expected
    assert not any(one.data for one in offered if one.problem)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.tar", "shards"], "nothing is unpacked"


# B5: images


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encoded(form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(noise(0, 64, 64)).save(file, form, **options)
    return file.getvalue()


def png_with(*chunks: bytes) -> bytes:
    whole = encoded()
    return whole[:33] + b"".join(chunks) + whole[33:]


XXE = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x:xmpmeta>&e;</x:xmpmeta>'
BOMB = zlib.compress(bytes(80 << 20), 9)
HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(200)
FRAMES = [Image.new("P", (64, 64), n % 256) for n in range(299)]
NO_IMAGE = "not a JPEG, PNG or WebP image"
IMAGES: dict[str, tuple[bytes, str | None]] = {
    "an iCCP bomb": (png_with(chunk(b"iCCP", b"p\0\0" + BOMB)), "damaged"),
    "a zTXt bomb in a whole image": (png_with(chunk(b"zTXt", b"k\0\0" + BOMB)), "damaged"),
    "an iTXt bomb": (png_with(chunk(b"iTXt", b"k\0\x01\0\0\0" + BOMB)), "damaged"),
    "PSD": (b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 8, 8, 8, 3) + bytes(500), NO_IMAGE),
    "FITS": (b"SIMPLE  =                    T".ljust(2880), NO_IMAGE),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_IMAGE),
    "HEIC": (HEIC, NO_IMAGE),
    "a GIF of 300 frames": (encoded("GIF", save_all=True, append_images=FRAMES), NO_IMAGE),
    "SVG with an entity": (XXE + b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_IMAGE),
    "XMP with an entity in a JPEG": (encoded("JPEG", xmp=XXE), None),
    "XMP with an entity in a PNG": (png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XXE)), None),
    "XMP with an entity in a WebP": (encoded("WEBP", xmp=XXE), None),
    "a JPEG that is a ZIP too": (encoded("JPEG") + zipped(("evil.py", b"raise SystemExit")), None),
    "no bytes": (b"", NO_IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGES)
def test_images_that_attack(case: str):
    data, expected = IMAGES[case]
    opened.clear()
    tracemalloc.start()
    found = decode(data, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 80 << 20
    tracemalloc.stop()
    assert (found.reason if isinstance(found, Dropped) else None) == expected
    assert not opened
    assert connected == []


def test_the_content_and_not_the_name_says_what_an_image_is(tmp_path: Path):
    save(tmp_path / "set" / "a.jpg", Image.fromarray(noise(0, 80, 80)), format="PNG")
    save(tmp_path / "set" / "b.png", Image.fromarray(noise(1, 80, 80)), format="JPEG")
    save(tmp_path / "set" / "c.jpg", Image.fromarray(noise(2, 80, 80)), format="GIF")
    data = settings(tmp_path, FolderSource(kind="folder", name="f", path=tmp_path / "set"))
    assert outcomes(data) == {"a.jpg": "kept", "b.png": "kept", "c.jpg": NO_IMAGE}


def test_a_jpeg_with_a_hole_needs_its_checksum_to_be_known():
    whole = jpeg(1, 200, 200)
    broken = whole[:3000] + bytes(500) + whole[3500:]
    assert isinstance(decode(broken, LIMITS), Decoded), "no decoder sees it"
    found = examine_image(ImageVerdict(broken, (0, 0, 0), f"sha256:{content_hash(whole)}"), Filters(), TRANSFORM)
    assert isinstance(found, Refused)
    assert found.dropped.reason == "checksum differs"


def test_where_a_photograph_was_taken_is_in_no_column_and_no_page(tmp_path: Path):
    exif = Image.Exif()
    exif[0x010F] = "TheMaker"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.0), 29: "2025:01:02"})
    save(tmp_path / "set" / "a.jpg", Image.fromarray(noise(0, 80, 80)), exif=exif)
    data = settings(tmp_path, FolderSource(kind="folder", name="f", path=tmp_path / "set"))
    assert outcomes(data) == {"a.jpg": "kept"}
    view = Store(data.store).images.required()
    (row,) = view.scan([name for name in Store(data.store).images.schema.names if name != "data"]).to_pylist()
    pages = [path.read_bytes() for path in Path(data.store).glob("report.*")]
    assert pages
    assert not any(word in text for word in (b"2025:01:02", b"TheMaker") for text in (*pages, repr(row).encode()))


# B7: the hub


@pytest.mark.parametrize("code", ["GatedRepo", "RepoNotFound"])
def test_a_gated_repository_is_one_paragraph(
    tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch, code: str
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url(""))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    answer = Answer(status=401, headers=(("X-Error-Code", code), ("X-Error-Message", "you must log in")))
    listing = f"/api/datasets/owner/name/tree/{'0' * 40}?recursive=true&expand=false"
    server.serve(f"/api/datasets/owner/name/revision/{'0' * 40}", answer)
    server.serve(listing, answer)
    source = HuggingfaceSource(kind="huggingface", name="h", repo="owner/name", revision="0" * 40)
    with pytest.raises(UserError, match=r"owner/name@0{40}: this data set cannot be fetched.*gated one needs HF_TOKEN"):
        source.count()
    assert server.hits[listing] == 1, "who may not read is not asked again"


# C: downloads


BLOCKED = """
    127.0.0.1 127.1 2130706433 0x7f000001 0177.0.0.1 localhost localhost. 127.0.0.1. 0.0.0.0 [::1] [::ffff:127.0.0.1]
    169.254.169.254 100.64.0.1 198.18.0.1 10.0.0.1 172.16.0.1 192.168.0.1 224.0.0.1 255.255.255.255 [fd00::1] [fe80::1]
    [ff02::1] [2002:7f00:1::] [2001:0:7f00:1::] [2606:4700::5efe:7f00:1] [64:ff9b::7f00:1]
"""
UNFIT = (
    "http://169.254.169%2e254/", "http://%6cocalhost/", "http://[fe80::1%eth0]/", "http://[fe80::1%25eth0]/",
    "http://user@127.0.0.1@example/", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/_x",
    "data:image/png;base64,AAAA", "javascript:alert(1)", "http://h/a\r\nHost: b", "http://127.0.0.1:22/",
    "http://127.0.0.1:6379/",
)  # fmt: skip


def test_no_row_of_a_table_reaches_a_private_address(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch):
    """The whole preparation under the real policy, with a proxy in the environment that would take anything."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, server.url(""))
    save(tmp_path / "good" / "a.png", Image.fromarray(noise(1, 80, 80)))
    expected = {f"http://{host}:{server.port}/x.jpg": "address not allowed" for host in BLOCKED.split()}
    expected |= dict.fromkeys(UNFIT, "not a web address")
    source = laion(tmp_path / "x.parquet", pa.table({"URL": list(expected), "TEXT": ["an image"] * len(expected)}))
    good = FolderSource(kind="folder", name="folder", path=tmp_path / "good")
    found = outcomes(settings(tmp_path, source, sources=(source, good)), is_global)
    assert found.pop("a.png") == "kept"
    assert dict(zip(expected, (found[f"x.parquet#{n}"] for n in range(len(expected))), strict=True)) == expected
    assert (connected, server.connections) == ([], 0)
    assert not opened


@pytest.mark.parametrize("hops", [30])
def test_thirty_redirects_are_too_many(server: Loopback, hops: int):
    for hop in range(hops):
        server.serve(f"/{hop}", Answer(status=302, headers=(("Location", f"/{hop + 1}"),)))
    (found,) = fetch_many([DownloadRequest(server.url("/0"), None, 1000)], Policy(retries=0), anywhere)
    assert isinstance(found, Dropped)
    assert (found.reason, sum(server.hits.values())) == ("too many redirects", 6)
    assert connected, "the watch sees sockets"
    Path(SECRET).read_bytes()
    assert opened, "and files"


def test_what_answers_claim_of_their_content_does_not_count(tmp_path: Path, server: Loopback):
    kinds = {
        "text.jpg": (jpeg(1), "text/html", "kept"), "none.jpg": (jpeg(2), "", "kept"),
        "page.jpg": (b"<html>sorry</html>", "image/jpeg", NO_IMAGE), "void.jpg": (b"", "image/jpeg", NO_IMAGE),
        "svg.jpg": (XXE + b"<svg/>", "image/jpeg", NO_IMAGE),
    }  # fmt: skip
    urls = [
        server.serve(f"/{name}", Answer(kinds[name][0], headers=(("Content-Type", kinds[name][1]),))) for name in kinds
    ]
    urls.append(urls[0])
    source = laion(tmp_path / "x.parquet", pa.table({"URL": urls, "TEXT": ["an image"] * len(urls)}))
    found = outcomes(settings(tmp_path, source))
    assert list(found[f"x.parquet#{n}"] for n in range(6)) == [*(row[2] for row in kinds.values()), "exact duplicate"]


# Nothing that data names is run


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """A pickle that leaves a mark, and a module `evil` on the path that leaves it too; there must be none."""
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (marker,)

    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nx = T = system = print\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield pickle.dumps(Trap())
    assert not marker.exists()
    for spring in (lambda: importlib.import_module("evil"), lambda: pickle.loads(pickle.dumps(Trap()))):
        spring()
        assert marker.exists(), "the trap works"
        marker.unlink()
    del sys.modules["evil"]


def test_no_code_in_an_archive_runs(tmp_path: Path, trap: bytes):
    endings = ("pkl", "pickle", "pyd", "pt", "pth", "npy", "npz", "cls", "ten", "tb", "mp", "msg", "py", "so", "yaml")
    members = [(f"a.{ending}", trap) for ending in endings]
    members += [("a.jpg", jpeg(1)), ("a.txt", b"a picture"), ("b.jpg", trap), ("b.txt", b"x"), ("c.json", trap)]
    members += [("c.jpg", jpeg(2)), ("evil.py", b"import evil"), ("setup.py", b"import evil")]
    shard(tmp_path / "shards" / "0.tar", *members)
    (tmp_path / "shards" / "dataset.py").write_text("import evil")
    data = settings(tmp_path, WebdatasetSource(kind="webdataset", name="w", path=str(tmp_path / "shards")))
    assert outcomes(data) == {
        "0.tar/a": "kept", "0.tar/b": NO_IMAGE, "0.tar/c": "caption cannot be read",
        "0.tar/evil": "sample without an image", "0.tar/setup": "sample without an image",
    }  # fmt: skip


EXTENSIONS = ("arrow.py_extension_type", "ray.data.arrow_tensor", "ray.data.arrow_pickled_object", "evil.x")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_no_code_in_a_table_runs(tmp_path: Path, trap: bytes, form: Literal["parquet", "arrow"], extension: str):
    facts = {b"ARROW:extension:name": extension.encode(), b"ARROW:extension:metadata": trap}
    head = pa.schema([pa.field("image", pa.binary(), metadata=facts), pa.field("text", pa.string(), metadata=facts)])
    head = head.with_metadata({b"pandas": trap, b"huggingface": b'{"info": {"features": {"_type": "evil.x"}}}'})
    content = pa.table({"image": [jpeg(1), trap], "text": ["one", "two"]}).cast(head)
    path = tmp_path / "set" / f"train.{form}"
    path.parent.mkdir()
    if form == "parquet":
        pq.write_table(content, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, head) as writer:
            writer.write_table(content)
    offered = HuggingfaceSource(kind="huggingface", name="h", path=str(path.parent)).candidates(0)
    assert [(one.data, one.captions[0].text) for one in offered] == [(jpeg(1), "one"), (trap, "two")]
    assert isinstance(decode(trap, LIMITS), Dropped)


def test_no_code_in_a_tokenizer_runs(tmp_path: Path, trap: bytes):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    evil = {
        "tokenizer_class": "evil.T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "_target_": "evil.x",
        "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "trust_remote_code": True,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(evil))
    for name, content in (
        ("evil.py", b"import evil"),
        ("tokenizer.pkl", trap),
        ("vocab.json", trap),
        ("merges.txt", b""),
    ):
        (folder / name).write_bytes(content)
    with pytest.raises(UserError):
        load_tokenizer(folder)


@pytest.mark.parametrize("line", [
    "_target_: evil.x", "store: !!python/object/apply:evil.x []", "store: !!python/module:evil",
    "sources: [{kind: evil.x, path: x}]", "sources: [{kind: huggingface, name: h, path: x, trust_remote_code: true}]",
])  # fmt: skip
def test_no_code_in_a_recipe_runs(tmp_path: Path, trap: bytes, line: str):
    (tmp_path / "r.yaml").write_text(f"{line}\n")
    with pytest.raises(UserError):
        load(tmp_path / "r.yaml", DataConfig)


def test_every_test_of_the_page_exists():
    """Of both halves; ★ is the file of this name beside the tests of the half."""
    tests = Path(__file__).parents[1]
    page = (tests.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    data, server = page.split("\n## The server\n")
    for half, folder in ((data, "data"), (server, "serving")):
        named = re.findall(r"★`(\w+)`|`(\w+)::(test_\w+)`", half)
        assert named
        assert len(named) == half.count("`test_") + half.count("::test_")
        for own, module, name in named:
            files = [tests / folder / "test_reliability.py"] if own else list(tests.rglob(f"test_{module}.py"))
            found = [path for path in files if f"\ndef {own or name}(" in path.read_text(encoding="utf-8")]
            assert len(found) == 1, own or name
