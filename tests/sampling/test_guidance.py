"""Guidance and its rescale against the equations, and where they would divide by nothing."""

import pytest
import torch

from terminus.diffusion.prediction import x0_from_velocity
from terminus.sampling.guidance import classifier_free, rescaled

COND, UNCOND, X = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
GUIDED = classifier_free(COND, UNCOND, 7.5)


def std(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([sample.std() for sample in x])


def test_scales_0_and_1_are_the_two_predictions():
    assert torch.equal(classifier_free(COND, UNCOND, 0.0), UNCOND)
    torch.testing.assert_close(classifier_free(COND, UNCOND, 1.0), COND)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (0.6, 0.8)])
def test_guiding_velocity_is_guiding_x0(alpha: float, sigma: float):
    x0 = [x0_from_velocity(X, v, alpha, sigma) for v in (COND, UNCOND, GUIDED)]
    torch.testing.assert_close(x0[2], classifier_free(x0[0], x0[1], 7.5), rtol=1e-5, atol=1e-5)


def test_rescale_1_restores_each_samples_own_spread_and_0_changes_nothing():
    cond = COND * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(std(rescaled(GUIDED, cond, 1.0)), std(cond))
    torch.testing.assert_close(rescaled(GUIDED, cond, 0.0), GUIDED)


def test_rescale_blends_the_two_as_in_equation_16():
    for i in range(2):
        expected = 0.7 * GUIDED[i] * COND[i].std() / GUIDED[i].std() + 0.3 * GUIDED[i]
        torch.testing.assert_close(rescaled(GUIDED, COND)[i], expected)


def test_a_flat_prediction_is_left_alone():
    flat = torch.full_like(COND, 0.25)
    flat[1] = GUIDED[1]
    result = rescaled(flat, COND)
    assert torch.equal(result[0], flat[0])
    assert bool(result.isfinite().all())
