"""The schedule against the statements of Lin et al. 2305.08891, for every timestep, in float64."""

import pytest
import torch

from terminus.diffusion.schedule import NoiseSchedule, gather

SDXL = NoiseSchedule.scaled_linear()
ZTSNR = SDXL.with_zero_terminal_snr()
FLOW = NoiseSchedule.rectified_flow()


def test_scaled_linear_is_the_product_of_sdxl_betas():
    product, alphas_cumprod = 1.0, []
    for t in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999
        product *= 1 - root * root
        alphas_cumprod.append(product)
    torch.testing.assert_close(
        SDXL.alphas_cumprod, torch.tensor(alphas_cumprod, dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert float(SDXL.sigma[-1] / SDXL.alpha[-1]) == pytest.approx(14.6146, abs=1e-4)  # sigma_max of k-diffusion


def test_zero_terminal_snr_moves_only_what_it_must():
    assert float(ZTSNR.alpha[-1]) == 0.0
    assert float(ZTSNR.sigma[-1]) == 1.0
    assert float(ZTSNR.snr[-1]) == 0.0
    assert ZTSNR.alphas_cumprod[0] == SDXL.alphas_cumprod[0]
    assert ZTSNR.is_zero_terminal
    assert not SDXL.is_zero_terminal
    # Algorithm 1 is affine in sqrt(ᾱ): the shape of the curve is kept.
    slope = ZTSNR.alpha.diff() / SDXL.alpha.diff()
    torch.testing.assert_close(slope, torch.full_like(slope, float(slope[0])), rtol=1e-9, atol=0)


def test_sigmas_near_the_end_are_the_published_ones():
    sigmas = ZTSNR.sigma[995:999] / ZTSNR.alpha[995:999]
    expected = torch.tensor([559.7, 748.0, 1124.6, 2254.2], dtype=torch.float64)
    torch.testing.assert_close(sigmas, expected, atol=0.05, rtol=0)


def test_rescaling_twice_changes_nothing():
    torch.testing.assert_close(ZTSNR.with_zero_terminal_snr().alphas_cumprod, ZTSNR.alphas_cumprod, rtol=1e-15, atol=0)


@pytest.mark.parametrize("schedule", [SDXL, ZTSNR], ids=["sdxl", "ztsnr"])
def test_identities_hold_at_every_timestep(schedule: NoiseSchedule):
    one = torch.ones(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha.square() + schedule.sigma.square(), one, rtol=1e-15, atol=0)
    torch.testing.assert_close(schedule.snr, schedule.alpha.square() / schedule.sigma.square(), rtol=1e-12, atol=0)
    assert bool((schedule.snr.diff() < 0).all())
    assert bool((schedule.sigma.diff() > 0).all())


def test_at_is_float32_of_the_float64_table():
    t = torch.tensor([0, 1, 500, 999])
    alpha, sigma = ZTSNR.at(t, ndim=4)
    assert alpha.shape == sigma.shape == (4, 1, 1, 1)
    assert alpha.dtype == sigma.dtype == torch.float32
    assert torch.equal(alpha.flatten(), ZTSNR.alpha[t].float())
    assert torch.equal(sigma.flatten(), ZTSNR.sigma[t].float())
    assert float(sigma[0]) > 0.029  # bfloat16 tables have 0 here


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_outside_the_table_is_refused(t: int):
    with pytest.raises(ValueError, match="0 to 999"):
        gather(ZTSNR.alpha, torch.tensor([5, t]))


def test_a_schedule_cannot_be_changed_through_the_table_it_was_given():
    table = SDXL.alphas_cumprod.clone()
    schedule = NoiseSchedule(table)
    table[0] = 0.5
    assert schedule.alphas_cumprod[0] == SDXL.alphas_cumprod[0]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(torch.linspace(0.9, 0, 10, dtype=torch.float64).flip(0), id="rising"),
        pytest.param(torch.linspace(1.0, 0, 10, dtype=torch.float64), id="no noise at t = 0"),
        pytest.param(torch.linspace(0.9, -0.1, 10, dtype=torch.float64), id="below zero"),
        pytest.param(torch.full((10,), torch.nan, dtype=torch.float64), id="nan"),
    ],
)
def test_what_is_not_a_schedule_is_refused(table: torch.Tensor):
    with pytest.raises(ValueError, match="alphas_cumprod must fall"):
        NoiseSchedule(table)


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(torch.linspace(0.9, 0, 10), id="float32"),
        pytest.param(torch.linspace(0.9, 0, 10, dtype=torch.float64)[None], id="two dimensions"),
    ],
)
def test_a_table_of_another_kind_is_refused(table: torch.Tensor):
    with pytest.raises((ValueError, TypeError)):  # TypeError where jaxtyping checks shapes first
        NoiseSchedule(table)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5, 0.1])
def test_a_flow_is_the_straight_line_of_its_papers(shift: float):
    """Esser et al. 2403.03206, eq. 23: sigma' = shift sigma / (1 + (shift − 1) sigma); from 1 / T to pure noise."""
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    schedule = NoiseSchedule.rectified_flow(shift=shift)
    sigma = shift * u / (1 + (shift - 1) * u)
    torch.testing.assert_close(schedule.sigma, sigma, rtol=1e-8, atol=0)
    torch.testing.assert_close(schedule.alpha, 1 - sigma, rtol=1e-8, atol=1e-15)
    torch.testing.assert_close(schedule.snr, ((1 - sigma) / sigma).square(), rtol=1e-6, atol=1e-25)
    assert (float(schedule.alpha[-1]), float(schedule.sigma[-1]), float(schedule.snr[-1])) == (0.0, 1.0, 0.0)
    assert schedule.is_zero_terminal
    assert schedule.with_zero_terminal_snr() is schedule


def test_a_flow_network_is_told_a_thousandfold_of_sigma_and_any_other_the_timestep():
    t = torch.arange(1000)
    assert torch.equal(FLOW.network_time(t), t + 1.0)
    assert FLOW.network_time(t).dtype == torch.float32
    assert ZTSNR.network_time(t) is t
    shifted = NoiseSchedule.rectified_flow(shift=3.0)
    assert torch.equal(shifted.network_time(t), (1000 * shifted.sigma).float())


@pytest.mark.parametrize("schedule", [SDXL, ZTSNR, FLOW], ids=["sdxl", "ztsnr", "flow"])
def test_the_rates_are_those_of_the_scales_along_the_curve(schedule: NoiseSchedule):
    """a alpha + b sigma = 1, and a / b = −d sigma / d alpha: the tangent, by differences between timesteps."""
    a, b = (torch.as_tensor(rate).expand(1000) for rate in schedule.rates(schedule.alpha, schedule.sigma))
    torch.testing.assert_close(a * schedule.alpha + b * schedule.sigma, torch.ones(1000, dtype=torch.float64))
    # Central differences: second order in the step.
    slope = (schedule.sigma[2:] - schedule.sigma[:-2]) / (schedule.alpha[:-2] - schedule.alpha[2:])
    torch.testing.assert_close(slope[100:-100], (a / b).double()[101:-101], rtol=1e-3, atol=0)


def test_the_same_curve_as_a_flow_has_the_same_signal_to_noise_ratio():
    flow = NoiseSchedule(ZTSNR.alphas_cumprod, flow=True)
    assert torch.equal(flow.snr, ZTSNR.snr)
    torch.testing.assert_close(flow.alpha + flow.sigma, torch.ones(1000, dtype=torch.float64), rtol=1e-15, atol=0)
    torch.testing.assert_close(flow.sigma, ZTSNR.sigma / (ZTSNR.alpha + ZTSNR.sigma), rtol=1e-15, atol=0)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("inf"), float("nan")])
def test_a_shift_that_is_none_is_refused(shift: float):
    with pytest.raises(ValueError, match="shift must be"):
        NoiseSchedule.rectified_flow(shift=shift)
