"""The norm of all gradients as one vector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from terminus.training.optim.clipping import clip_gradient_norm
from terminus.training.optim.weight_formats import store_weights


def network(weights: str = "fp32") -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 64, 16))
    store_weights(module, weights)
    return module


def test_clipping_is_torchs():
    one, two = network(), network()
    for module in (one, two):
        module(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    norm = float(torch.nn.utils.clip_grad_norm_(two.parameters(), 0.5))
    assert clip_gradient_norm(one.parameters(), 0.5) == norm > 0.5
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert mine.grad is not None
        assert torch.equal(mine.grad, theirs.grad)


def test_clipping_of_bf16_weights_measures_in_float32():
    module = network("bf16")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        module(images).float().square().sum().backward()
    expected = sum(p.grad.double().square().sum() for p in module.parameters() if p.grad is not None) ** 0.5
    assert clip_gradient_norm(module.parameters(), 1e-3) == pytest.approx(float(expected), rel=1e-6)
    after = sum(p.grad.double().square().sum() for p in module.parameters() if p.grad is not None) ** 0.5
    assert float(after) == pytest.approx(1e-3, rel=1e-3)
