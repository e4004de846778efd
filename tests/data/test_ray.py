"""The same preparation on this machine and on a real Ray cluster: a head without CPUs, two nodes with one each."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from terminus.data.cluster import RayEngine
from terminus.data.filters import Filters
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.data.sources.laion import LaionSource
from terminus.data.sources.webdataset import WebdatasetSource
from terminus.data.store import Store

from .conftest import noise, save
from .loopback import Answer, Loopback, loopback
from .sources.test_webdataset import shard

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PREPARE = """
import os, sys
from io import StringIO
from rich.console import Console
from terminus.data import curate, worker
from terminus.data.encode import encode_latents
from terminus.data.waiting import waiting
from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.errors import UserError
from tests.data.conftest import random_vae
from tests.data.loopback import anywhere

data = DataConfig.model_validate_json(sys.argv[1])
if budget := int(os.environ.get("BUDGET", 0)):
    worker.DOWNLOADED_BYTES = curate.DOWNLOADED_BYTES = budget
try:
    prepare(data, None, Console(file=StringIO()), anywhere)
except UserError as error:
    sys.exit(f"USER ERROR {error}")
store, vae = Store(data.store), random_vae(0)
encode_latents(store, waiting(store, data.transform.spec, vae.id), vae, lambda _: None)
"""


class Cluster:
    """As `docs/cluster.md` starts it, on one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        root = str(Path(__file__).parents[2])
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
            "RAY_memory_monitor_refresh_ms": "0",  # it would end our workers for what others on this machine hold
        }
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            second.bind(("", 0))
            port, client = first.getsockname()[1], second.getsockname()[1]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.log = folder / "log"
        head = ["--head", f"--port={port}", f"--ray-client-server-port={client}", f"--temp-dir={folder}"]
        self._start(*head, "--num-cpus=0", "--include-dashboard=false")
        # The head says where it listens.
        metadata = self.log.read_text().split("--address='", 1)[1]
        self.address = metadata.split("'", 1)[0]
        self.add()
        self.add()

    def add(self) -> subprocess.Popen[bytes]:
        """One more node with one CPU."""
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        ray = Path(sysconfig.get_path("scripts"), "ray")
        common = ["--block", "--disable-usage-stats", "--object-store-memory=150000000"]
        common += ["--min-worker-port=0", "--max-worker-port=0"]
        with self.log.open("wb") as log:
            node = subprocess.Popen(
                [ray, "start", *options, *common], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(node)
        for _ in range(900):
            if "runtime started" in self.log.read_text():
                return node
            assert node.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """With all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def prepare(self, data: DataConfig, **environment: str) -> subprocess.Popen[str]:
        """In a process of its own, since an engine is chosen once for a process."""
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PREPARE, data.model_dump_json()],
            env=self.environment | environment, text=True, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, for Ray's sockets lie in it
    made = Cluster.__new__(Cluster)
    made.processes = []
    try:
        made.__init__(folder)
        yield made
    finally:
        for node in reversed(made.processes):
            made.kill(node)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as running:
        yield running


def encoded(seed: int) -> bytes:
    file = BytesIO()
    Image.fromarray(noise(seed, 90, 120)).save(file, "jpeg")
    return file.getvalue()


def links(server: Loopback, path: Path, count: int, wait: float = 0.0) -> LaionSource:
    """A table of links, some of them to what is no image."""
    urls: list[str] = []
    for number in range(count):
        whole = encoded(1000 + number)
        answer = Answer(whole, wait=wait)
        if number % 7 == 3:
            answer = Answer(whole[: len(whole) // 2], wait=wait)
        if number % 7 == 5:
            answer = Answer(status=404, wait=wait)
        if number % 7 == 6:
            answer = Answer(whole, headers=(("X-Robots-Tag", "noai"),), wait=wait)
        urls.append(server.serve(f"/{number}.jpg", answer))
    pq.write_table(pa.table({"URL": urls, "TEXT": [f"link {number}" for number in range(count)]}), path)
    return LaionSource(kind="laion", name="links", path=str(path))


def folder(path: Path, count: int) -> FolderSource:
    for number in range(count):
        save(path / f"{number:03}.jpg", Image.fromarray(noise(number, 80 + number % 40, 120)), f"pattern {number}")
    whole = (path / "000.jpg").read_bytes()
    (path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (path / "half.txt").write_text("half")
    (path / "copy.jpg").write_bytes(whole)
    (path / "copy.txt").write_text("a copy")
    (path / "text.png").write_text("this is no image")
    (path / "text.txt").write_text("text")
    os.mkfifo(path / "pipe.png")
    (path / "pipe.txt").write_text("a pipe")
    save(path / "small.png", Image.fromarray(noise(900, 50, 60)))
    return FolderSource(kind="folder", name="folder", path=path)


def contents(data: DataConfig) -> dict[str, list[pa.Table]]:
    """What each commit of each table added, with all columns."""
    store, found = Store(data.store), {}
    for name, table in (("images", store.images), ("latents", store.latents), ("rejected", store.rejected)):
        views = [table.at(version) for version in range(1, table.version() + 1)]
        found[name] = [view.scan(table.schema.names) for view in views]
    return found


def why(found: dict[str, list[pa.Table]]) -> list[tuple[str, str, str]]:
    """What was dropped, and the reasons."""
    last = found["rejected"][-1]
    columns = (last.column(name).to_pylist() for name in ("source_id", "reason", "detail"))
    return list(zip(*columns, strict=True))


def latest(data: DataConfig) -> dict[str, pa.Table]:
    """All rows of all tables. How a budget spreads them over commits depends on what arrived first."""
    store = Store(data.store)
    found = {table.uri.rpartition("/")[2].removesuffix(".lance"): table for table in (
        store.images, store.latents, store.rejected, store.parts,
    )}  # fmt: skip
    return {name: table.required().scan(table.schema.names) for name, table in found.items()}


def both(
    tmp_path: Path, address: str, *sources: FolderSource | LaionSource | WebdatasetSource
) -> tuple[DataConfig, DataConfig]:
    data = DataConfig(store=str(tmp_path / "native"), sources=sources, resolution=64)
    engine = RayEngine(kind="ray", address=address)
    return data, data.model_copy(update={"store": str(tmp_path / "ray"), "engine": engine})


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, metadata = process.communicate(timeout=600)
    return process.returncode, metadata


def test_both_engines_write_the_same_bytes_in_the_same_commits(tmp_path: Path, cluster: Cluster, server: Loopback):
    sources = folder(tmp_path / "images", 150), links(server, tmp_path / "links.parquet", 70)
    native, distributed = both(tmp_path, cluster.address, *sources)
    for data in (native, distributed):
        assert end(cluster.prepare(data)) == (0, "")
    expected = contents(native)
    assert contents(distributed) == expected
    assert expected["images"][-1].num_rows == expected["latents"][-1].num_rows == 150 + 40
    reasons = set(expected["rejected"][-1].column("reason").to_pylist())
    assert reasons >= {"truncated", "exact duplicate", "not found", "opted out", "not a regular file"}


def archive(folder: Path, number: int) -> Path:
    """Three samples, one of them no image."""
    members = [("good.jpg", encoded(2 * number)), ("more.jpg", encoded(2 * number + 1)), ("bad.jpg", b"no image")]
    texts = [(f"{name.split('.')[0]}.txt", f"{number} {name}".encode()) for name, _ in members]
    return shard(folder / f"{number}.tar", *(one for pair in zip(members, texts, strict=True) for one in pair))


def tables(folder: Path, server: Loopback, count: int, padding: int) -> LaionSource:
    """Two tables of links to files of so many bytes and more."""
    folder.mkdir()
    for part in range(2):
        numbers = range(part * count // 2, (part + 1) * count // 2)
        urls = [server.serve(f"/large-{n}.jpg", Answer(encoded(3000 + n) + bytes(padding))) for n in numbers]
        pq.write_table(pa.table({"URL": urls, "TEXT": [str(n) for n in numbers]}), folder / f"{part}.parquet")
    return LaionSource(kind="laion", name="large", path=str(folder))


def test_parts_and_budgets_are_the_same_on_both(tmp_path: Path, cluster: Cluster, server: Loopback):
    """Archives and tables, read part by part, with more bytes to download than a group may hold; then one more part."""
    for number in range(2):
        archive(tmp_path / "tars", number)
    tars = WebdatasetSource(kind="webdataset", name="tars", path=str(tmp_path / "tars"))
    links, large = 12, 20_000
    sources = tars, tables(tmp_path / "links", server, links, large)
    limits = {"filters": Filters(max_file_bytes=2 * large)}
    native, distributed = (data.model_copy(update=limits) for data in both(tmp_path, cluster.address, *sources))
    ends: list[dict[str, pa.Table]] = []
    for data in (native, distributed):
        server.hits.clear()
        assert end(cluster.prepare(data, BUDGET=str(4 * large))) == (0, "")
        assert server.hits.total() > links, "what did not fit was asked for again"
        ends.append(latest(data))
    assert ends[0] == ends[1]
    assert {name: table.num_rows for name, table in ends[0].items()} == {
        "images": 4 + links, "latents": 4 + links, "rejected": 2, "parts": 4,
    }  # fmt: skip
    archive(tmp_path / "tars", 2)
    for data in (native, distributed):
        server.hits.clear()
        assert end(cluster.prepare(data, BUDGET=str(4 * large))) == (0, "")
        assert server.hits.total() == 0, "parts that were judged are left alone"
    assert latest(native) == latest(distributed)
    assert latest(distributed)["parts"].num_rows == 5


def test_a_node_that_dies_costs_no_row(tmp_path: Path, cluster: Cluster, server: Loopback):
    sources = folder(tmp_path / "images", 20), links(server, tmp_path / "links.parquet", 210, wait=0.3)
    native, distributed = both(tmp_path, cluster.address, *sources)
    assert end(cluster.prepare(native)) == (0, "")
    server.hits.clear()
    dying = cluster.add()
    running = cluster.prepare(distributed)
    while server.hits.total() < 80:
        assert running.poll() is None, end(running)
        time.sleep(0.05)
    cluster.kill(dying)
    code, metadata = end(running)
    assert code == 0, metadata
    found, expected = contents(distributed), contents(native)
    # First what a person can read: a busy machine may have answered late.
    assert why(found) == why(expected)
    assert found == expected


def test_what_is_wrong_with_a_cluster_is_one_paragraph(tmp_path: Path, cluster: Cluster):
    source = folder(tmp_path / "images", 2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{probe.getsockname()[1]}"
        began = time.monotonic()
        code, metadata = end(cluster.prepare(both(tmp_path, nowhere, source)[1]))
    assert (code, metadata.count("USER ERROR"), "refused" in metadata) == (1, 1, True)
    assert time.monotonic() - began < 30, "Ray's own patience is two minutes"
    (tmp_path / "wrong").write_text("0" * 64)
    _, ours = both(tmp_path, cluster.address, source)
    code, metadata = end(cluster.prepare(ours, RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong")))
    assert code == 1
    assert "USER ERROR" in metadata
    assert not Path(ours.store).exists()
