"""The averaged weights: how fast they forget, and that showing them changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from terminus.training.optim.ema import Average, ConstantEma, PowerEma, decay, power
from terminus.training.optim.weight_formats import store_weights


def test_average_halves_old_weights_after_a_half_life():
    module = nn.Linear(2, 2)
    average = Average(module, ConstantEma(half_life_images=40, ramp=1.0))
    before = average.tensors["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    for step in range(4):
        average.update(images=1000 + 10 * step, step_images=10)
    torch.testing.assert_close(average.tensors["weight"], before + 0.5)


def test_a_young_average_forgets_its_random_start():
    module = nn.Linear(2, 2)
    average = Average(module, ConstantEma(half_life_images=10**6, ramp=0.1))
    start = average.tensors["bias"].clone()
    with torch.no_grad():
        module.bias.add_(1.0)
    for images in range(10, 2010, 10):
        average.update(images, 10)
    assert (average.tensors["bias"] - start).min() > 0.99


def test_swapping_in_and_out_is_exact():
    module = nn.Linear(3, 3)
    average = Average(module, ConstantEma())
    with torch.no_grad():
        module.weight.mul_(3.7)
    live = module.weight.detach().clone()
    with average.swapped_in():
        assert torch.equal(module.weight, average.tensors["weight"])
    assert torch.equal(module.weight, live)


def wander(settings: ConstantEma | PowerEma, steps: int, batch: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The average after some steps of a module that moves at random, and where the module was after each."""
    torch.manual_seed(0)
    module = nn.Linear(3, 3, bias=False)
    average = Average(module, settings)
    path: list[torch.Tensor] = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            module.weight.normal_()
        path.append(module.weight.detach().double().clone())
        average.update(step * batch, batch)
    return average.tensors["weight"], path


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_the_power_profile_has_the_width_that_was_asked_for(width: float):
    gamma = power(width)
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:]
    weights = t**gamma / (t**gamma).sum()
    mean = (weights * t).sum()
    assert ((weights * (t - mean) ** 2).sum().sqrt()).item() == pytest.approx(width, rel=1e-3)


def test_the_power_average_is_the_weighted_mean_of_the_whole_path():
    """Weights of the time integral of t ** gamma over each step; the random start has none."""
    found, path = wander(PowerEma(kind="power", width=0.1), 50)
    gamma = power(0.1)
    edges = torch.arange(51, dtype=torch.float64) ** (gamma + 1)
    expected = sum(w * p for w, p in zip((edges[1:] - edges[:-1]) / edges[-1], path, strict=True))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [ConstantEma(half_life_images=30), PowerEma(kind="power", width=0.2)])
def test_a_move_over_several_steps_weighs_as_much_as_they_do(settings: ConstantEma | PowerEma):
    one = [decay(settings, images, 4) for images in (404, 408, 412)]
    assert decay(settings, 412, 12) == pytest.approx(one[0] * one[1] * one[2], rel=1e-12)


def test_every_so_many_steps():
    found, path = wander(PowerEma(kind="power", width=0.1, every_steps=3), 10)
    gamma = power(0.1)
    edges = torch.tensor([0.0, 3.0, 6.0, 9.0], dtype=torch.float64) ** (gamma + 1)
    moves = [path[2], path[5], path[8]]
    expected = sum(w * p for w, p in zip((edges[1:] - edges[:-1]) / edges[-1], moves, strict=True))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_beside_the_training_is_bit_for_bit_the_same():
    """The weights change at once after each move begins; what is averaged are those of its moment."""
    here, _ = wander(ConstantEma(half_life_images=30), 40)
    there, _ = wander(ConstantEma(half_life_images=30, device="cpu"), 40)
    assert torch.equal(here, there)


def test_an_error_beside_the_training_is_not_lost():
    module = nn.Linear(3, 3)
    average = Average(module, ConstantEma(device="cpu"))
    average.tensors["weight"].resize_(2, 2)
    average.update(4, 4)
    with pytest.raises(RuntimeError, match="size"):
        _ = average.tensors


def test_an_average_of_bf16_weights_is_float32_and_shown_as_such():
    module = nn.Linear(64, 64)
    store_weights(module, "bf16")
    average = Average(module, ConstantEma(half_life_images=8))
    with torch.no_grad():
        module.weight.add_(1.0)
    average.update(4, 4)
    live = module.weight.detach().clone()
    assert average.tensors["weight"].dtype == torch.float32
    with average.swapped_in():
        assert torch.equal(module.weight, average.tensors["weight"])
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, live)
    for _ in range(2):  # gradients still add up in float32
        with torch.autocast("cpu", torch.bfloat16):
            module(torch.ones(1, 64)).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
