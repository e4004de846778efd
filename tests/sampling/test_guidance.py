"""Guidance and its rescale against the equations, and where they would divide by nothing."""

import pytest
import torch

from terminus.diffusion.prediction import x0_from_velocity
from terminus.errors import UserError
from terminus.sampling.guidance import Guidance, classifier_free, rescaled

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


@pytest.mark.parametrize("value", [0.1, -0.3, 123.4, 1e-3])
@pytest.mark.parametrize("size", [(8, 8), (17, 13), (33, 7), (128, 128)])
def test_the_rounding_of_a_flat_prediction_is_no_spread(value: float, size: tuple[int, int]):
    """The float32 spread of equal numbers is not always 0: divided by, it would make an image of 10^7."""
    cond = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(cond, value)
    assert torch.equal(rescaled(flat, cond, 1.0), flat)
    assert torch.equal(rescaled(flat, flat), flat)


def test_a_faint_spread_is_still_restored():
    faint = 1e-3 * GUIDED + 0.5
    torch.testing.assert_close(std(rescaled(faint, COND, 1.0)), std(COND), rtol=1e-3, atol=0)


def test_guidance_is_its_two_functions():
    torch.testing.assert_close(Guidance(7.5).combine(COND, UNCOND), GUIDED)
    torch.testing.assert_close(Guidance(7.5, 0.7).combine(COND, UNCOND), rescaled(GUIDED, COND, 0.7))


def test_guidance_acts_everywhere_unless_told_otherwise_and_nowhere_at_scale_1():
    assert all(Guidance(4.0).active(t, 1000) for t in range(1000))
    assert not any(Guidance(1.0).active(t, 1000) for t in range(1000))
    assert Guidance(0.0).active(999, 1000)  # the unconditional prediction alone


@pytest.mark.parametrize("T", [1000, 500])
def test_an_interval_cuts_the_timesteps_in_its_proportion(T: int):
    """Neighbouring intervals share no timestep and leave none out."""
    parts = [Guidance(4.0, interval=(low, high)) for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0))]
    active = [[part.active(t, T) for t in range(T)] for part in parts]
    assert [sum(part) for part in active] == [T // 5, T * 3 // 5, T // 5]
    assert all(sum(one) == 1 for one in zip(*active, strict=True))
    assert active[2][T - 1]  # 1 is pure noise
    assert active[0][0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": float("nan")}, "guidance nan"),
        ({"scale": -1.0}, "guidance -1"),
        ({"rescale": 1.5}, "rescale 1.5"),
        ({"rescale": float("nan")}, "rescale nan"),
        ({"interval": (0.8, 0.2)}, "guidance interval 0.8..0.2"),
        ({"interval": (0.5, 0.5)}, "guidance interval 0.5..0.5"),
        ({"interval": (0.0, 1.1)}, "guidance interval"),
        ({"interval": (float("nan"), 1.0)}, "guidance interval nan"),
    ],
)
def test_guidance_that_cannot_be_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        Guidance(**{"scale": 4.0} | wrong)
