"""Tables whose files are gone, cut or damaged: one paragraph that says what to do, whichever file it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from terminus.data.record import Rejection
from terminus.data.store import Store, Table, View
from terminus.data.versions import listing
from terminus.errors import UserError


@pytest.fixture
def table(tmp_path: Path) -> Table[Rejection]:
    found = Store(str(tmp_path / "store")).rejected
    found.append([Rejection("f", f"{number}.png", None, "s", "t", "r", "damaged", "x" * 999) for number in range(50)])
    return found


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "overwritten": lambda path: path.write_bytes(b"?" * path.stat().st_size),
    "read with an error": lambda path: (path.unlink(), path.symlink_to("/proc/self/mem")),
}


def uses(table: Table[Rejection], view: View) -> Iterator[Callable[[], object]]:
    yield lambda: view.scan(["reason"])
    yield lambda: list(view.batches(["reason"]))
    yield lambda: view.take([0, 49], ["reason"])
    yield lambda: view.counted("reason = 'damaged'")
    yield lambda: table.delete("source_id", ["0.png"])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_fragment(table: Table[Rejection], damage: str):
    (fragment,) = (Path(table.uri) / "data").iterdir()
    DAMAGE[damage](fragment)
    view = table.latest()
    assert view is not None
    for use in uses(table, view):
        with pytest.raises(UserError, match=r"rejected.lance: this table cannot be (read|changed) \(") as caught:
            use()
        assert "restore it from a copy, or remove" in str(caught.value)
        assert "terminus prepare" in str(caught.value)
        assert ".rs" not in str(caught.value)
    if damage == "deleted":
        assert f"a file is gone: {fragment.name}" in str(caught.value)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "deleted"])
def test_a_manifest(table: Table[Rejection], damage: str):
    (manifest,) = (Path(table.uri) / "_versions").glob("*.manifest")
    DAMAGE[damage](manifest)
    for use in (table.latest, table.count, table.required):
        with pytest.raises(UserError, match="restore it from a copy"):
            use()
    with pytest.raises(UserError, match=r"version 1 of the table cannot be read.*Restore the store"):
        table.at(1)


def test_a_store_that_is_described(table: Table[Rejection]):
    (fragment,) = (Path(table.uri) / "data").iterdir()
    fragment.write_bytes(b"")
    with pytest.raises(UserError, match="a file ends before it should"):
        listing(Store(str(Path(table.uri).parent)))
