"""Archives and tables that did not change are not read again, and the books balance all the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terminus.data import storage
from terminus.data.settings import DataConfig
from terminus.data.sources.laion import LaionSource
from terminus.data.sources.webdataset import WebdatasetSource
from terminus.data.store import Store, Table

from .loopback import Answer, Loopback
from .sources.test_webdataset import shard
from .test_curate import jpeg, quiet, rows, settings

Opened = Counter[str]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """How often each file was opened."""
    counts: Opened = Counter()
    real: Callable[[str], object] = storage.open_input

    def counting(uri: str) -> object:
        counts[Path(uri).name] += 1
        return real(uri)

    monkeypatch.setattr(storage, "open_input", counting)
    return counts


def shards(folder: Path) -> DataConfig:
    """Three archives of two samples, the first with an image that is none, the second cut short."""
    for number in range(3):
        first = b"no image" if number == 0 else jpeg(2 * number)
        members = [("a.jpg", first), ("a.txt", b"one"), ("b.jpg", jpeg(2 * number + 1)), ("b.txt", b"two")]
        shard(folder / "shards" / f"{number}.tar", *members)
    whole = (folder / "shards" / "1.tar").read_bytes()
    (folder / "shards" / "1.tar").write_bytes(whole[:-10240])
    source = WebdatasetSource(kind="webdataset", name="tar", path=str(folder / "shards"))
    return settings(folder, source)


def test_unchanged_archives_are_not_opened_again(tmp_path: Path, opened: Opened):
    data = shards(tmp_path)
    first = quiet(data)
    assert (first.candidates, first.kept) == (7, 4)
    store = Store(data.store)
    assert [row["part"] for row in rows(store.parts)] == ["0.tar", "2.tar"], "a damage may be gone tomorrow"
    opened.clear()
    again = quiet(data)
    assert (again.candidates, again.kept, again.added, again.dropped) == (7, 4, 0, first.dropped)
    assert again.sources == first.sources
    # `count` looks into the first archive, for the bar.
    assert opened == {"0.tar": 1, "1.tar": 1}
    shard(tmp_path / "shards" / "2.tar", ("a.jpg", jpeg(4)), ("a.txt", b"another"), ("c.jpg", jpeg(9)), ("c.txt", b"x"))
    opened.clear()
    changed = quiet(data)
    assert (changed.added, changed.revised, opened["2.tar"]) == (1, 1, 1)
    opened.clear()
    assert quiet(data).revised == 0
    assert opened["2.tar"] == 0


def test_other_rules_or_lists_read_everything_again(tmp_path: Path, opened: Opened):
    data = shards(tmp_path)
    quiet(data)
    (tmp_path / "list.txt").write_text("0" * 64)
    for text in ("0" * 64, "0" * 64, "1" * 64):
        (tmp_path / "list.txt").write_text(text)
        opened.clear()
        listed = data.filters.model_copy(update={"blocklists": (str(tmp_path / "list.txt"),)})
        quiet(data.model_copy(update={"filters": listed}))
        read = opened["2.tar"]
        (tmp_path / f"read-{text[0]}-{read}").touch()
    assert sorted(path.name for path in tmp_path.glob("read-*")) == ["read-0-0", "read-0-1", "read-1-1"]
    opened.clear()
    quiet(data.model_copy(update={"resolution": 48}))
    assert opened["2.tar"] == 1


def test_what_may_pass_keeps_a_table_open(tmp_path: Path, opened: Opened):
    with Loopback() as server:
        good = server.serve("/good.jpg", Answer(jpeg(1)))
        busy = server.serve("/busy.jpg", Answer(status=503), Answer(jpeg(2)))
        pq.write_table(pa.table({"URL": [good], "TEXT": ["a"]}), tmp_path / "0.parquet")
        pq.write_table(pa.table({"URL": [busy], "TEXT": ["b"]}), tmp_path / "1.parquet")
        source = LaionSource(kind="laion", name="laion", path=str(tmp_path))
        data = settings(tmp_path, source)
        assert quiet(data).dropped == {"server error": 1}
        assert quiet(data).kept == 2
        opened.clear()
        assert quiet(data).kept == 2
        # `estimate` looks at both.
        assert max(opened.values()) <= 2
        assert len(rows(Store(data.store).parts)) == 2


def test_a_part_is_written_down_after_all_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = shards(tmp_path)
    append = Table.append

    def killed(table: Table, rows: list[object]) -> int:
        if rows and table.uri.endswith("rejected.lance"):
            raise KeyboardInterrupt
        return append(table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            quiet(data)
    assert Store(data.store).parts.count() == 0
    assert quiet(data).kept == 4


def test_ids_that_the_recipe_chooses_are_compared_every_time(tmp_path: Path):
    for number, text in enumerate(("first", "second")):
        pq.write_table(
            pa.table({"image": [jpeg(number)], "TEXT": [text], "key": ["same"]}), tmp_path / f"{number}.parquet"
        )
    source = LaionSource(kind="laion", name="laion", path=str(tmp_path), columns={"id": "key"})
    data = settings(tmp_path, source)
    for _ in range(2):
        assert quiet(data).dropped == {"offered twice": 1}
    os.utime(tmp_path / "1.parquet", (1, 1))
    assert quiet(data).dropped == {"offered twice": 1}
    assert [row["captions"] for row in rows(Store(data.store).images)] == [["first"]]
