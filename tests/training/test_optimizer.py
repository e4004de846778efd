"""The learning rate as a function of images, the averaged weights, and the optimizer's memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from terminus.training.ema import Average, Ema
from terminus.training.optimizer import (
    LearningRate,
    Optimizer,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
)


def test_learning_rate_rises_falls_and_stays():
    settings = LearningRate(max=8e-7, min=4e-7, warmup_images=100, period_images=1000)
    rates = [learning_rate(images, settings, 5000) for images in (0, 50, 99, 100, 600, 1100, 4000)]
    assert rates == pytest.approx([8e-9, 4.08e-7, 8e-7, 8e-7, 6e-7, 4e-7, 4e-7])


def test_without_a_period_the_run_is_the_period():
    settings = LearningRate(max=1.0, min=0.0)
    assert learning_rate(0, settings, 200) == 1.0
    assert learning_rate(100, settings, 200) == pytest.approx(0.5)
    assert learning_rate(200, settings, 200) == 0.0


def test_min_above_max_is_refused():
    with pytest.raises(ValueError, match="above max"):
        LearningRate(max=1e-5, min=1e-4)


def test_average_halves_old_weights_after_a_half_life():
    module = nn.Linear(2, 2)
    average = Average(module, Ema(half_life_images=40, ramp=1.0))
    before = average.tensors["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    for step in range(4):
        average.update(images=1000 + 10 * step, step_images=10)
    torch.testing.assert_close(average.tensors["weight"], before + 0.5)


def test_a_young_average_forgets_its_random_start():
    module = nn.Linear(2, 2)
    average = Average(module, Ema(half_life_images=10**6, ramp=0.1))
    start = average.tensors["bias"].clone()
    with torch.no_grad():
        module.bias.add_(1.0)
    for images in range(10, 2010, 10):
        average.update(images, 10)
    assert (average.tensors["bias"] - start).min() > 0.99


def test_swapping_in_and_out_is_exact():
    module = nn.Linear(3, 3)
    average = Average(module, Ema())
    with torch.no_grad():
        module.weight.mul_(3.7)
    live = module.weight.detach().clone()
    with average.swapped_in():
        assert torch.equal(module.weight, average.tensors["weight"])
    assert torch.equal(module.weight, live)


def test_a_restored_optimizer_takes_the_same_next_step():
    torch.manual_seed(0)
    one, two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    two.load_state_dict(one.state_dict())
    first, second = (build_optimizer(module, Optimizer()) for module in (one, two))
    x = torch.randn(2, 3, 8, 8)

    def step(module: nn.Module, optimizer: torch.optim.AdamW) -> None:
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(one, first)
    two.load_state_dict(one.state_dict())
    names = [{p: name for name, p in module.named_parameters()} for module in (one, two)]
    restore_optimizer(second, names[1], optimizer_tensors(first, names[0]))
    step(one, first)
    step(two, second)
    torch.testing.assert_close(two.weight, one.weight, rtol=1e-6, atol=1e-7)


def test_biases_and_norms_do_not_decay():
    optimizer = build_optimizer(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), Optimizer(weight_decay=0.5))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 1), (0.0, 3)]
