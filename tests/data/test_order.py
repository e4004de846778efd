"""The order of rows: a permutation, in constant memory, whole passes, mixed buckets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terminus.data.order import Order, permuted, positions


@given(size=st.integers(1, 700), key=st.text(max_size=8))
def test_a_permutation_hits_every_index_once(size: int, key: str):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_other_keys_give_other_orders_and_huge_sizes_cost_nothing():
    orders = {tuple(permuted(i, 1000, key) for i in range(20)) for key in "abc"}
    assert len(orders) == 3
    rows = {permuted(i, 10**9, "a") for i in range(1000)}
    assert len(rows) == 1000
    assert max(rows) > 10**8


def test_outside_the_range_is_refused():
    with pytest.raises(ValueError, match="range"):
        permuted(5, 5, "a")


@pytest.mark.parametrize(("sizes", "micro"), [((10,), 3), ((7, 20, 2), 4), ((1,), 5), ((3, 3), 1)])
def test_no_image_is_skipped_or_repeated_within_a_pass(sizes: tuple[int, ...], micro: int):
    order = Order(seed=3, sizes=sizes, micro_batch=micro)
    # After `micro` epochs every bucket's stream is at the end of a pass, whatever its size.
    last = sum(size * micro // micro for size in sizes)
    seen = Counter((order[i].bucket, row) for i in range(last) for row in order[i].rows)
    assert seen == Counter({(b, row): micro for b, size in enumerate(sizes) for row in range(size)})


def test_epochs_count_up_and_random_access_equals_walking():
    order = Order(seed=1, sizes=(50, 13), micro_batch=8)
    walked = [order[i] for i in range(40)]
    assert [place.epoch for place in walked] == sorted(place.epoch for place in walked)
    assert [order[i] for i in reversed(range(40))] == walked[::-1]
    assert Order(seed=2, sizes=(50, 13), micro_batch=8)[0] != walked[0]


def test_buckets_mix_by_their_size():
    order = Order(seed=0, sizes=(900, 100), micro_batch=10)
    counts = Counter(order[i].bucket for i in range(1000))
    assert counts == {0: 900, 1: 100}
    # Not one bucket after the other: the small one is spread over the epoch.
    places = [i for i in range(100) if order[i].bucket == 1]
    assert min(places) < 40 < 60 < max(places)


def test_positions_do_not_depend_on_how_a_global_batch_is_cut():
    whole = list(positions(step=3, micro=0, global_batch=12, micro_batch=12))
    cut = [p for micro in range(3) for p in positions(3, micro, 12, 4)]
    assert whole == cut == list(range(36, 48))


def test_nothing_to_order_is_refused():
    with pytest.raises(ValueError, match="needs rows"):
        Order(seed=0, sizes=(), micro_batch=1)
