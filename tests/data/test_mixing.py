"""Shares are exact in every window, passes are whole, and nothing depends on how many processes there are."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terminus.data.batch import Batch
from terminus.data.loader import Loader
from terminus.data.mixing import Mixed, epochs, order_of
from terminus.data.order import Order
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.errors import UserError

from .counted import Table


def config(mix: dict[str, float | int], names: Sequence[str]) -> DataConfig:
    sources = tuple(FolderSource.model_construct(kind="folder", name=name, path=".") for name in names)
    return DataConfig.model_construct(store="nowhere", sources=sources, mix=mix)


def mixed(table: Table, mix: dict[str, float | int], micro_batch: int, seed: int = 0) -> Mixed:
    order = order_of(
        table, config(mix, sorted({name for bucket in table.sources for name in bucket})), seed, micro_batch
    )
    assert isinstance(order, Mixed)
    return order


def windows(units: Sequence[str], length: int) -> list[Counter[str]]:
    return [Counter(units[start : start + length]) for start in range(len(units) - length + 1)]


@pytest.mark.parametrize("micro_batch", [1, 3, 10, 12, 24])
def test_a_tenth_is_one_sample_of_every_ten_in_a_row(micro_batch: int):
    table = Table(({"anchor": 7, "drawings": 900},))
    order = mixed(table, {"anchor": 0.1}, micro_batch)
    samples = [name for index in range(-(-300 // micro_batch)) for name in table.names(order[index])]
    assert {window["anchor"] for window in windows(samples, 10)} == {1}


def test_with_many_buckets_it_is_one_micro_batch_of_every_ten():
    # The two have no bucket in common: no micro-batch could hold both.
    table = Table(({"drawings": 50}, {"anchor": 3}, {"drawings": 9}, {"anchor": 40}))
    order = mixed(table, {"anchor": 0.1}, 4)
    held = [table.names(order[index]) for index in range(200)]
    assert all(len(set(names)) == 1 and len(names) == 4 for names in held)
    assert {window["anchor"] for window in windows([names[0] for names in held], 10)} == {1}


@settings(max_examples=12, deadline=None)
@given(
    parts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 50), min_size=4, max_size=4),
    micro_batch=st.integers(1, 9),
    buckets=st.integers(1, 2),
    seed=st.integers(0, 5),
)
def test_every_window_as_long_as_the_cycle_has_exactly_the_shares(
    parts: list[int], sizes: list[int], micro_batch: int, buckets: int, seed: int
):
    total = sum(parts) + 7
    parts = [max(1, part * 100 // total) for part in parts]
    shares = {f"source {number}": part / 100 for number, part in enumerate(parts)}
    counts = {name: size for name, size in zip([*shares, "others"], sizes, strict=False)}
    table = Table(({**counts, "rest": 60},) * buckets)
    order = mixed(table, shares, micro_batch, seed)
    length = len(order.cycle)
    assert 100 % length == 0
    units = [name for index in range(2 * length) for name in table.names(order[index])[:: order.unit]]
    expected = {name: Fraction(part, 100) * length for name, part in zip(shares, parts, strict=True)}
    for window in windows(units[: 2 * length], length):
        assert {name: window[name] for name in shares} == expected


def test_each_source_goes_through_its_rows_and_begins_again():
    table = Table(({"anchor": 7, "drawings": 90},))
    order = mixed(table, {"anchor": 0.1}, 5)
    rows = [row for index in range(140) for row in order[index].rows]
    anchors, others = [row for row in rows if row < 7], [row - 7 for row in rows if row >= 7]
    assert len(anchors) == 70
    for pass_ in range(10):
        assert sorted(anchors[7 * pass_ : 7 * pass_ + 7]) == list(range(7))
    assert anchors[:7] != anchors[7:14]
    for pass_ in range(7):
        assert sorted(others[90 * pass_ : 90 * pass_ + 90]) == list(range(90))


@pytest.mark.parametrize("buckets", [1, 2])
def test_what_is_repeated_comes_that_often_in_each_pass(buckets: int):
    table = Table(({"few": 4, "many": 12},) * buckets)
    order = mixed(table, {"few": 3}, 4)
    rows = [(order[i].bucket, row) for i in range(6 * buckets) for row in order[i].rows]
    assert Counter(rows) == {(b, row): 3 if row < 4 else 1 for b in range(buckets) for row in range(16)}


def test_shares_and_repeats_together():
    table = Table(({"anchor": 5, "few": 2, "many": 14},))
    order = mixed(table, {"anchor": 0.25, "few": 3}, 8)
    rows = [row for index in range(10) for row in order[index].rows]
    names = [table.source(0, row) for row in rows]
    assert {window["anchor"] for window in windows(names, 4)} == {1}
    rest = Counter(row for row in rows if row >= 5)
    assert sum(rest.values()) == 60
    assert rest == {row: 9 if row < 7 else 3 for row in range(5, 21)}, "three passes over 2 x 3 + 14"


def test_epochs_are_passes_of_the_largest_and_any_place_can_be_asked_for():
    table = Table(({"anchor": 3, "drawings": 20}, {"drawings": 31}))
    order = mixed(table, {"anchor": 0.2}, 4)
    walked = [order[index] for index in range(80)]
    epochs = [place.epoch for place in walked]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 80 * 4 * 4 // 5 // 51
    assert [order[index] for index in reversed(range(80))] == walked[::-1]
    assert mixed(table, {"anchor": 0.2}, 4, seed=1)[0] != walked[0]


def test_without_a_mix_the_order_is_by_number():
    table = Table(({"a": 3, "b": 4}, {"a": 9}))
    assert order_of(table, config({}, ["a", "b"]), 5, 2) == Order(5, (7, 9), 2)


def test_a_thousand_million_rows_cost_nothing():
    table = Table(({"anchor": 10**6, "drawings": 10**9},))
    begun = time.process_time()
    tracemalloc.start()
    order = mixed(table, {"anchor": 0.001}, 24)
    assert len(order[0].rows) == len(order[3 * 10**8].rows) == 24
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - begun < 1.0
    assert most < 1 << 20


def ids(steps: Sequence[list[Batch]]) -> list[list[tuple[tuple[int, ...], tuple[str, ...]]]]:
    return [[(batch.positions, batch.keys) for batch in step] for step in steps]


@pytest.mark.parametrize("mix", [{}, {"anchor": 0.1}, {"anchor": 0.1, "few": 4}])
def test_the_order_is_the_same_on_1_2_and_4_processes_and_after_each_of_ten_resumes(mix: dict[str, float | int]):
    table = Table(({"drawings": 50, "few": 3}, {"anchor": 5, "drawings": 31}, {"anchor": 2}))
    order = order_of(table, config(mix, ["anchor", "drawings", "few"]), 3, 6)
    alone = ids(list(Loader(table, order, accumulation=4, threads=0).steps(0, 40)))
    assert sorted(number for step in alone for numbers, _ in step for number in numbers) == list(range(40 * 24))
    generator = random.Random(0)
    resumed = [(generator.randrange(40), generator.choice([1, 2, 4])) for _ in range(10)]
    for stop, processes in [(0, 2), (0, 4), *resumed]:
        parts = [
            ids(list(Loader(table, order, 4, threads=1, rank=rank, processes=processes).steps(stop, 40)))
            for rank in range(processes)
        ]
        woven = [
            [parts[micro % processes][step][micro // processes] for micro in range(4)] for step in range(40 - stop)
        ]
        assert woven == alone[stop:]


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ({"absent": 0.1}, "absent has no images"),
        ({"a": 0.5}, None),
        ({"a": 0.5, "b": 0.4}, "add up to 0.9, and no other source"),
        ({"a": 0.5, "b": 0.5}, None),
    ],
)
def test_a_mix_that_cannot_be_kept_is_refused(mix: dict[str, float | int], says: str | None):
    table = Table(({"a": 3, "b": 3},))
    if says is None:
        assert mixed(table, mix, 2).streams
        return
    with pytest.raises(UserError, match=says):
        order_of(table, config(mix, ["a", "b", "absent"]), 0, 2)


def test_a_source_that_would_never_be_seen_is_named():
    table = Table(({"a": 3, "b": 3, "c": 1},))
    with pytest.raises(UserError, match="c would never be seen"):
        order_of(table, config({"a": 0.5, "b": 0.5}, ["a", "b", "c"]), 0, 2)


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ({"c": 0.1}, "mix names c"),
        ({"a": 0.7, "b": 0.4}, "add up to 1.1"),
        ({"a": 0.12345}, "multiple of 0.001"),
        ({"a": 1.5}, "less than 1"),
        ({"a": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense(mix: dict[str, float], says: str):
    sources = tuple({"kind": "folder", "name": name, "path": "x"} for name in "ab")
    with pytest.raises(ValueError, match=says):
        DataConfig.model_validate({"store": "x", "sources": sources, "mix": mix}, strict=False)


@pytest.mark.parametrize("table", [Table(({"anchor": 5, "drawings": 40, "faces": 3},)),
                                   Table(({"anchor": 2, "drawings": 40}, {"faces": 3, "anchor": 3}))])  # fmt: skip
def test_epochs_of_a_source_are_its_images_drawn_by_its_images_there(table: Table):
    data = config({"anchor": 0.2, "faces": 4}, ["anchor", "drawings", "faces"])
    micro_batch, steps = 4, 200
    order = order_of(table, data, 1, micro_batch)
    drawn = Counter(name for index in range(steps) for name in table.names(order[index]))
    there = {"anchor": 5, "drawings": 40, "faces": 3}
    found = epochs(order, table, data, steps * micro_batch)
    assert found == {name: pytest.approx(drawn[name] / count, abs=4.01) for name, count in there.items()}
    assert found["anchor"] == drawn["anchor"] / 5 == 0.2 * steps * micro_batch / 5
    assert found["faces"] == 4 * found["drawings"]
    assert isinstance(order, Mixed)
    assert order.epochs(steps * micro_batch) == found["drawings"]
    assert int(order.epochs(steps * micro_batch)) == order[steps].epoch


def test_epochs_without_a_mix_are_alike():
    table = Table(({"a": 5, "b": 20},))
    data = config({}, ["a", "b"])
    assert epochs(order_of(table, data, 1, 5), table, data, 100) == {"a": 4.0, "b": 4.0}
