"""Which steps are left out, when the run goes back and how far, and that judging depends on what was saved alone."""

from __future__ import annotations

import json
import random

import pytest

from terminus.training import guards
from terminus.training.guards import Guards, Health, after, good_before, must_go_back, reason_to_skip

NAN, INF = float("nan"), float("inf")
ON = Guards(spike_sigmas=6.0)


def series(settings: Guards, values: list[tuple[float, float]], health: Health | None = None) -> Health:
    health = health or Health()
    for loss, norm in values:
        health = after(health, loss, norm, reason_to_skip(loss, norm, health, settings), settings)
    return health


def calm(count: int) -> list[tuple[float, float]]:
    draw = random.Random(0)
    return [(draw.gauss(0.5, 0.01), draw.gauss(1.0, 0.1)) for _ in range(count)]


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (0.5, NAN), (0.5, -INF)])
def test_what_is_not_finite_is_left_out_always(loss: float, norm: float):
    assert reason_to_skip(loss, norm, Health(), Guards()) == "not finite"


def test_spikes_are_left_out_only_where_asked_for_and_once_the_window_is_full():
    full = series(ON, calm(guards.WINDOW))
    assert reason_to_skip(0.6, 1.0, full, ON) == reason_to_skip(0.5, 3.0, full, ON) == "spike"
    assert reason_to_skip(0.52, 1.3, full, ON) is None
    assert reason_to_skip(0.0, 0.0, full, ON) is None, "low is never a spike"
    assert reason_to_skip(9.0, 99.0, series(ON, calm(guards.WINDOW - 1)), ON) is None
    assert reason_to_skip(9.0, 99.0, series(Guards(), calm(guards.WINDOW)), Guards()) is None
    assert series(Guards(), calm(9)).recent == ()


def test_the_window_rolls_takes_spikes_and_leaves_out_what_is_no_number():
    full = series(ON, calm(guards.WINDOW))
    assert series(ON, [(NAN, 1.0)], full).recent == full.recent
    spiked = series(ON, [(9.0, 1.0)], full)
    assert spiked.recent == (*full.recent[1:], (9.0, 1.0))
    assert spiked.failed == 1
    # A new level is accepted after a few steps, or it would be a spike for ever.
    assert series(ON, [(0.7, 1.0)] * 5, full).failed == 0


def test_judging_continues_from_what_was_written():
    values = [*calm(200), (0.9, 1.0), (NAN, 1.0), *calm(20)]
    half = series(ON, values[:150])
    read = json.loads(json.dumps([list(pair) for pair in half.recent]))
    again = Health(half.failed, tuple((loss, norm) for loss, norm in read))
    assert series(ON, values[150:], again) == series(ON, values)


def test_many_in_a_row_and_no_fewer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guards, "PATIENCE", 3)
    assert not must_go_back(series(Guards(), [(NAN, 1.0), (NAN, 1.0), (0.5, 1.0), (NAN, 1.0), (NAN, 1.0)]))
    assert must_go_back(series(Guards(), [(NAN, 1.0)] * 3))


def test_how_far_back():
    assert good_before(100, Health(failed=10)) == 90
    # A good step after a return: the weights that it left are good.
    assert good_before(100, Health(failed=10, returns=((50, 80),))) == 90
    # None: the checkpoint that it went back to was bad already.
    assert good_before(90, Health(failed=10, returns=((50, 80),))) == 49


def test_what_was_undone_is_counted_once():
    assert Health(returns=((50, 80),)).undone == 30
    assert Health(returns=((50, 80), (20, 90), (100, 110))).undone == 80
