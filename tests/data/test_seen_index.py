from __future__ import annotations

import sqlite3
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from terminus.data.blocklist import Blocklist
from terminus.data.duplicates import scratch
from terminus.data.filters import measure_image
from terminus.data.prepare import prepare
from terminus.data.record import Candidate, Rejection
from terminus.data.seen_index import KEPT, SeenIndex, room_for_scratch
from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.errors import UserError


def test_what_earlier_runs_decided_is_recalled(images: Path, config: Callable[..., DataConfig]):
    (images / "bad.png").write_text("no image")
    (images / "bad.txt").write_text("a caption")
    data = config(images)
    prepare(data, None, Console(file=StringIO()))
    known = SeenIndex(near=True)
    known.recall(Store(data.store), data.transform.spec, Blocklist([]))
    verdicts = {
        candidate.source_id: known.verdict(candidate, candidate.state(data.background_color))
        for candidate in data.sources[0].candidates(0)
    }
    assert verdicts.pop("bad.png") == "not a JPEG, PNG or WebP image"
    assert set(verdicts.values()) == {KEPT}
    assert len(verdicts) == 8
    assert known.verdict(Candidate("folder", "0.jpg"), "another state") is None
    [row] = Store(data.store).images.required().scan(["key", "source_id"], "source_id = '3.jpg'").to_pylist()
    twin = known.same(row["key"])
    assert twin is not None
    assert twin.name == "folder/3.jpg"
    with Image.open(images / "3.jpg") as image:
        assert known.alike(measure_image(image.convert("RGB"))) == twin
    empty = SeenIndex(near=False)
    empty.recall(Store(data.store), "another transform", Blocklist([]))
    assert empty.same(row["key"]) is None


def test_the_last_verdict_counts(tmp_path: Path):
    """Within one commit too, and not the one that comes last in the alphabet."""
    store, one = Store(str(tmp_path / "store")), Candidate("web", "1")
    rows = [Rejection("web", "1", None, "state", "spec", "", reason, "") for reason in ("timed out", "not found")]
    store.rejected.append(rows)
    known = SeenIndex(near=False)
    known.recall(store, "spec", Blocklist([]))
    assert known.verdict(one, "state") == "not found"


def test_a_name_is_met_once_a_run():
    known = SeenIndex(near=False)
    assert known.meet(Candidate("a", "b/c"))
    assert known.meet(Candidate("a/b", "c")), "other names, although they are written alike"
    assert not known.meet(Candidate("a", "b/c"))


def test_a_full_temporary_folder_is_one_paragraph():
    database = scratch()
    database.execute("PRAGMA max_page_count = 10")
    database.execute("CREATE TABLE t (x)")
    with pytest.raises(UserError, match="TMPDIR"), room_for_scratch():
        database.executemany("INSERT INTO t VALUES (?)", ((bytes(5000),) for _ in range(1000)))


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    database = scratch()
    database.execute("PRAGMA cache_size = 10")
    database.execute("CREATE TABLE t (x)")
    database.executemany("INSERT INTO t VALUES (?)", ((bytes(5000),) for _ in range(1000)))
    assert database.execute("PRAGMA page_count").fetchone()[0] > 1000
    assert list(tmp_path.iterdir()) == []
    assert isinstance(database, sqlite3.Connection)
