"""Many small files are joined; no row moves, and what runs recorded can be read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lance.dataset import DatasetOptimizer

from terminus.data import store as tables
from terminus.data.record import Rejection
from terminus.data.store import Store, Table, View
from terminus.errors import UserError

COMMITS = 12


def rejection(number: int, detail: str = "") -> Rejection:
    return Rejection("source", str(number), None, "", "", "", "reason", detail)


def contents(view: View) -> list[tuple[str, str]]:
    return [(row["source_id"], row["detail"]) for row in view.scan(["source_id", "detail"]).to_pylist()]


def files(table: Table[Rejection]) -> int:
    view = table.latest()
    assert view is not None
    return len(view.dataset.get_fragments())


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table[Rejection]:
    monkeypatch.setattr(tables, "MANY_SMALL", COMMITS)
    monkeypatch.setattr(tables, "SMALL", 1 << 14)
    return Store(str(tmp_path / "store")).rejected


def test_small_files_are_joined_and_every_version_stays_as_it_was(table: Table[Rejection]):
    table.compact()
    assert table.latest() is None
    for number in range(COMMITS - 1):
        table.append([rejection(3 * number), rejection(3 * number + 1, "b"), rejection(3 * number + 2)])
    table.compact()
    assert files(table) == COMMITS - 1, "few files stay as they are"
    recorded = table.append([rejection(98), rejection(99)])
    table.delete("source_id", ["4", "99"])
    before = [contents(table.at(version)) for version in range(1, recorded + 2)]
    rows = table.at(recorded).take([0, 5, 17], ["source_id"])
    table.compact()
    assert files(table) == 1
    newest = table.latest()
    assert newest is not None
    assert contents(newest) == before[-1]
    assert [contents(table.at(version)) for version in range(1, recorded + 2)] == before
    assert table.at(recorded).take([0, 5, 17], ["source_id"]) == rows
    version = table.version()
    table.compact()
    assert table.version() == version, "there is nothing left to join"
    table.append([rejection(100)])
    assert contents(table.at(version + 1)) == [*before[-1], ("100", "")]


def test_no_row_moves_before_a_large_file(table: Table[Rejection]):
    """Lance puts what it joins behind all that is there; what is read first must stay what it was."""
    for number in range(COMMITS):
        table.append([rejection(number)])
    table.append([rejection(COMMITS, "x" * (1 << 15))])
    for number in range(COMMITS):
        table.append([rejection(COMMITS + 1 + number)])
    table.compact()
    view = table.latest()
    assert view is not None
    assert [name for name, _ in contents(view)] == [str(number) for number in range(2 * COMMITS + 1)]
    assert files(table) == COMMITS + 2


def test_what_goes_wrong_is_one_paragraph_and_a_race_is_nothing(
    table: Table[Rejection], monkeypatch: pytest.MonkeyPatch
):
    for number in range(COMMITS):
        table.append([rejection(number)])
    monkeypatch.setattr(DatasetOptimizer, "compact_files", raising(OSError("LanceError(IO): No space left on device")))
    with pytest.raises(UserError, match="small files of this table cannot be joined"):
        table.compact()
    monkeypatch.setattr(DatasetOptimizer, "compact_files", raising(OSError("Retryable commit conflict for version 9")))
    table.compact()
    assert files(table) == COMMITS


@pytest.mark.parametrize("place", ["az://container/store", "file:///tmp/store", "http://host/store"])
def test_a_store_is_where_everything_of_it_can_be_written(place: str):
    with pytest.raises(UserError, match="there are no stores at"):
        Store(place)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_large_files_are_not_copied(table: Table[Rejection]):
    table.append([rejection(0, "x" * (1 << 15))])
    large = table.at(1).dataset.get_fragments()[0].metadata.files[0].path
    for number in range(COMMITS):
        table.append([rejection(number + 1)])
    table.compact()
    view = table.latest()
    assert view is not None
    assert [one.metadata.files[0].path == large for one in view.dataset.get_fragments()] == [True, False]
    assert [name for name, _ in contents(view)] == [str(number) for number in range(COMMITS + 1)]
