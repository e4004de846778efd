"""Weights against the published formulas, and against what they must mean for the terminal step."""

from collections.abc import Callable

import pytest
import torch

from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.weighting import bands, constant, debiased, min_snr, soft_min_snr

SDXL = NoiseSchedule.scaled_linear()
ZTSNR = SDXL.with_zero_terminal_snr()


def share_of_last_hundred(weights: torch.Tensor) -> float:
    return round(100 * float(bands(weights)[-1]), 2)


def test_the_forms_of_min_snr_differ_where_ztsnr_matters():
    """The table of docs/math.md: share of the total weight on t ≥ 900, in percent."""
    paper, augmented = min_snr(ZTSNR.snr, form="paper"), min_snr(ZTSNR.snr, form="augmented")
    assert share_of_last_hundred(paper) == 0.03
    assert share_of_last_hundred(augmented) == 10.95
    assert share_of_last_hundred(constant(ZTSNR.snr)) == 10.0
    assert share_of_last_hundred(min_snr(ZTSNR.snr, form="epsilon")) == 10.85
    assert float(min_snr(ZTSNR.snr, form="epsilon")[-1]) == 1.0
    assert float(paper[-1]) == 0.0
    assert float(augmented[-1]) == 1.0


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_the_published_formula(gamma: float):
    snr = SDXL.snr.tolist()
    paper = [min(value, gamma) / (value + 1) for value in snr]
    augmented = [min(value + 1, gamma) / (value + 1) for value in snr]
    epsilon = [min(value, gamma) / value for value in snr]
    assert min_snr(SDXL.snr, gamma, "paper").tolist() == pytest.approx(paper, rel=1e-14)
    assert min_snr(SDXL.snr, gamma, "augmented").tolist() == pytest.approx(augmented, rel=1e-14)
    assert min_snr(SDXL.snr, gamma, "epsilon").tolist() == pytest.approx(epsilon, rel=1e-14)
    for form in ("paper", "augmented", "epsilon"):
        assert min_snr(SDXL.snr, gamma, form, prediction="epsilon").tolist() == pytest.approx(epsilon, rel=1e-14)


def test_paper_weights_are_one_loss_on_x0_whatever_is_predicted():
    """|Δv|² = (SNR + 1) |Δx0|² and |Δε|² = SNR |Δx0|²: both must come to min(SNR, γ) |Δx0|²."""
    snr = SDXL.snr
    by_velocity = min_snr(snr, form="paper") * (snr + 1)
    by_epsilon = min_snr(snr, form="paper", prediction="epsilon") * snr
    torch.testing.assert_close(by_velocity, snr.clamp(max=5.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(by_epsilon, by_velocity, rtol=1e-12, atol=0)


def test_debiased_is_one_loss_whatever_is_predicted_and_finite_at_zero_snr():
    snr = SDXL.snr
    on_epsilon = debiased(snr, prediction="epsilon")
    torch.testing.assert_close(on_epsilon, snr.rsqrt(), rtol=1e-12, atol=0)
    # |Δε|² = SNR / (SNR + 1) |Δv|²
    torch.testing.assert_close(debiased(snr), on_epsilon * snr / (snr + 1), rtol=1e-12, atol=0)
    torch.testing.assert_close(debiased(ZTSNR.snr), ZTSNR.alpha * ZTSNR.sigma, rtol=1e-12, atol=0)
    assert float(debiased(ZTSNR.snr)[-1]) == 0.0


def test_a_published_weight_is_one_loss_on_x0_for_a_flow_too():
    """|Δu|² = |Δx0|² / sigma², where sigma is the flow's own."""
    flow = NoiseSchedule.rectified_flow(shift=2.0)
    to_x0 = flow.sigma.square().reciprocal()
    paper, soft = min_snr(flow.snr, form="paper", prediction="flow"), soft_min_snr(flow.snr, prediction="flow")
    torch.testing.assert_close(paper * to_x0, flow.snr.clamp(max=5.0), rtol=1e-8, atol=0)
    torch.testing.assert_close(soft * to_x0, 1 / (1 / flow.snr + 1 / 5), rtol=1e-8, atol=0)
    torch.testing.assert_close(debiased(flow.snr, prediction="flow") * to_x0, flow.snr.sqrt(), rtol=1e-8, atol=0)
    assert float(min_snr(flow.snr, prediction="flow")[-1]) == 1.0


@pytest.mark.parametrize("form", ["paper", "augmented", "epsilon"])
def test_floor_is_a_lower_bound_and_nothing_else(form: str):
    plain, floored = min_snr(ZTSNR.snr, form=form), min_snr(ZTSNR.snr, form=form, floor=0.1)
    assert float(floored.min()) == 0.1
    assert torch.equal(floored[plain >= 0.1], plain[plain >= 0.1])


def test_bands_are_shares_from_the_first_timestep_up():
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    assert bands(weights, width=2).tolist() == [3 / 15, 7 / 15, 5 / 15]


def test_soft_min_snr_is_min_snr_without_its_corner():
    """SNR γ / (SNR + γ) on x0: half of min-SNR at the corner, the same far from it, on either side."""
    on_x0 = soft_min_snr(SDXL.snr) * (SDXL.snr + 1)
    hard = SDXL.snr.clamp(max=5.0)
    torch.testing.assert_close(on_x0, 1 / (1 / SDXL.snr + 1 / 5), rtol=1e-12, atol=0)
    assert bool((on_x0 < hard).all())
    corner = int((SDXL.snr - 5).abs().argmin())
    assert float(on_x0[corner] / hard[corner]) == pytest.approx(0.5, abs=0.01)
    assert float(on_x0[0] / hard[0]) == pytest.approx(1, abs=0.01)
    assert float(on_x0[-1] / hard[-1]) == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(soft_min_snr(SDXL.snr, prediction="epsilon") * SDXL.snr, on_x0, rtol=1e-12, atol=0)
    assert float(soft_min_snr(ZTSNR.snr)[-1]) == 0.0
    assert share_of_last_hundred(soft_min_snr(ZTSNR.snr)) == 0.04


@pytest.mark.parametrize("weigh", [min_snr, debiased, soft_min_snr])
def test_epsilon_at_zero_snr_is_refused(weigh: Callable[..., torch.Tensor]):
    with pytest.raises(ValueError, match="must predict velocity"):
        weigh(ZTSNR.snr, prediction="epsilon")


@pytest.mark.parametrize(
    "setting",
    [
        {"gamma": 0.0},
        {"gamma": -1.0},
        {"gamma": float("nan")},
        {"floor": -0.1},
        {"floor": 2.0},
    ],
)
def test_settings_without_meaning_are_refused(setting: dict[str, float]):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
        min_snr(ZTSNR.snr, **setting)


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises((ValueError, TypeError)):  # TypeError where jaxtyping checks literals first
        min_snr(ZTSNR.snr, form="hard")
