"""Random bits that are a function, and rounding that is right on average."""

from __future__ import annotations

import pytest
import torch

from terminus.training.optim.stochastic_rounding import Dice, stochastic

COUNT = 1 << 18


def bits(
    *, seed: int = 0, step: int = 1, name: str = "a", start: int = 0, purpose: str = "weights", count: int = COUNT
):
    return Dice(seed, step, name, start).bits(purpose, torch.empty(count))


def test_bits_are_a_function_of_seed_step_name_purpose_and_element():
    first = bits()
    assert torch.equal(first, bits())
    assert torch.equal(first[1000:], bits(start=1000, count=COUNT - 1000))
    for other in (bits(seed=1), bits(step=2), bits(name="b"), bits(purpose="moments")):
        assert (first == other).float().mean() < 1e-3


def test_the_shape_of_a_tensor_does_not_matter():
    flat = Dice(3, 4, "w").bits("weights", torch.empty(60))
    folded = torch.empty(4, 3, 5, 1).to(memory_format=torch.channels_last)
    assert torch.equal(Dice(3, 4, "w").bits("weights", folded).flatten(), flat)


def test_bits_are_fair_and_independent():
    """Every bit is a fair coin, and no coin knows of its neighbour, of the next step, or of another parameter."""
    coins = (bits()[:, None] >> torch.arange(32)) & 1
    limit = 5 * 0.5 / COUNT**0.5  # five standard deviations of a mean of fair coins
    assert (coins.double().mean(0) - 0.5).abs().max() < limit
    signs = 1.0 - 2.0 * coins.double()
    others = [signs.roll(1, 0), signs.roll(1, 1)]
    others += [
        1.0 - 2.0 * ((bits(**kind)[:, None] >> torch.arange(32)) & 1).double() for kind in ({"step": 2}, {"name": "b"})
    ]
    for other in others:
        assert (signs * other).mean(0).abs().max() < 2 * limit


def test_sixteen_bits_are_uniform():
    counts = torch.bincount((bits() & 0xFFFF).long() >> 8, minlength=256).double()
    expected = COUNT / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 255 + 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("value", [1.0, -3.14159, 1e-30, 65537.0, -2.7e-5])
def test_rounding_is_to_a_neighbour_and_right_on_average(value: float):
    x = torch.full((COUNT,), value)
    rounded = stochastic(x, bits())
    assert rounded.dtype == torch.bfloat16
    levels = rounded.float().unique()
    ulp = torch.finfo(torch.bfloat16).eps * abs(value)
    assert len(levels) <= 2
    assert (levels - x[0]).abs().max() < ulp
    # The cut-off part is one of 2 ** 16 shares of a step; the mean of COUNT such coins is within five deviations.
    assert abs(rounded.double().mean().item() - x[0].double().item()) < 5 * 0.5 * ulp / COUNT**0.5


def test_what_bfloat16_can_say_stays():
    x = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-130, float("inf"), float("-inf")])
    assert torch.equal(stochastic(x, torch.full((7,), 0xFFFF, dtype=torch.int32)), x.bfloat16())
    assert stochastic(torch.tensor([float("nan")]), torch.tensor([-1], dtype=torch.int32)).isnan().all()


def test_tiny_updates_add_up_where_plain_rounding_stands_still():
    """Steps of 1e-4 of the last bit: a thousand of them move the mean by a tenth of it."""
    ulp, steps, count = 2.0**-7, 1000, 1 << 14
    weights, plain = torch.ones(count).bfloat16(), torch.ones(count).bfloat16()
    for step in range(steps):
        draw = Dice(0, step, "w").bits("weights", weights)
        weights = stochastic(weights.float() + 1e-4 * ulp, draw)
        plain = (plain.float() + 1e-4 * ulp).bfloat16()
    assert torch.equal(plain, torch.ones(count).bfloat16())
    # 16 random bits see 1e-4 of a step as 6 or 7 of 65536 shares, and float32 near 1 as 6.55 rounded to whole ones.
    expected = steps * ((1.0 + torch.tensor(1e-4 * ulp)) - 1.0).item()
    deviation = (expected * ulp / count) ** 0.5
    assert abs((weights.double() - 1.0).mean().item() - expected) < 5 * deviation
    assert expected == pytest.approx(1e-4 * ulp * steps, rel=0.1)
