"""Conversions between predictions are exact inverses at every timestep, pure noise included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terminus.diffusion.prediction import (
    epsilon_from_velocity,
    noised,
    velocity,
    x0_from_epsilon,
    x0_from_velocity,
)
from terminus.diffusion.schedule import NoiseSchedule

ZTSNR = NoiseSchedule.scaled_linear().with_zero_terminal_snr()
ALPHA, SIGMA = ZTSNR.alpha[:, None], ZTSNR.sigma[:, None]
X0, EPSILON = torch.randn(2, 1000, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
X = noised(X0, EPSILON, ALPHA, SIGMA)
V = velocity(X0, EPSILON, ALPHA, SIGMA)


def test_velocity_round_trips_at_every_timestep():
    torch.testing.assert_close(x0_from_velocity(X, V, ALPHA, SIGMA), X0, rtol=0, atol=1e-14)
    torch.testing.assert_close(epsilon_from_velocity(X, V, ALPHA, SIGMA), EPSILON, rtol=0, atol=1e-14)


def test_velocity_round_trips_in_float32_to_float32_precision():
    alpha, sigma = ZTSNR.at(torch.arange(1000), 2)
    x0, epsilon = X0.float(), EPSILON.float()
    x, v = noised(x0, epsilon, alpha, sigma), velocity(x0, epsilon, alpha, sigma)
    torch.testing.assert_close(x0_from_velocity(x, v, alpha, sigma), x0, rtol=0, atol=2e-6)
    torch.testing.assert_close(epsilon_from_velocity(x, v, alpha, sigma), epsilon, rtol=0, atol=2e-6)


def test_at_zero_snr_x_is_noise_and_velocity_is_minus_the_image():
    assert torch.equal(X[-1], EPSILON[-1])
    assert torch.equal(V[-1], -X0[-1])


def test_velocity_is_the_derivative_along_the_circle():
    """v = dx/dφ with alpha = cos φ and sigma = sin φ (Salimans & Ho 2202.00512, appendix D)."""
    phi, step = torch.linspace(0.1, 1.4, 50, dtype=torch.float64)[:, None], 1e-6
    x0, epsilon = X0[:50], EPSILON[:50]
    ahead = noised(x0, epsilon, (phi + step).cos(), (phi + step).sin())
    behind = noised(x0, epsilon, (phi - step).cos(), (phi - step).sin())
    torch.testing.assert_close((ahead - behind) / (2 * step), velocity(x0, epsilon, phi.cos(), phi.sin()))


def test_epsilon_gives_x0_wherever_there_is_any():
    torch.testing.assert_close(
        x0_from_epsilon(X[:-1], EPSILON[:-1], ALPHA[:-1], SIGMA[:-1]), X0[:-1], rtol=0, atol=1e-11
    )
    with pytest.raises(ValueError, match="must predict velocity"):
        x0_from_epsilon(X, EPSILON, ALPHA, SIGMA)
    with pytest.raises(ValueError, match="must predict velocity"):
        x0_from_epsilon(X[-1:], EPSILON[-1:], 0.0, 1.0)


@given(phi=st.floats(0, torch.pi / 2), x0=st.floats(-30, 30), epsilon=st.floats(-6, 6))
def test_the_pair_x_and_v_is_a_rotation_of_the_pair_x0_and_epsilon(phi: float, x0: float, epsilon: float):
    pair = torch.tensor([[x0], [epsilon]], dtype=torch.float64)
    angle = torch.tensor(phi, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    x, v = noised(pair[0], pair[1], alpha, sigma), velocity(pair[0], pair[1], alpha, sigma)
    torch.testing.assert_close(x.square() + v.square(), pair.square().sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x0_from_velocity(x, v, alpha, sigma), pair[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(epsilon_from_velocity(x, v, alpha, sigma), pair[1], rtol=0, atol=1e-13)


FLOW = NoiseSchedule.rectified_flow()
LINE = FLOW.alpha[:, None], FLOW.sigma[:, None]


def test_the_velocity_of_a_flow_is_noise_less_image_and_round_trips():
    """u = ε − x0 whatever the timestep (Liu et al. 2209.03003), and x = x0 + sigma u."""
    x, u = noised(X0, EPSILON, *LINE), velocity(X0, EPSILON, *FLOW.rates(*LINE))
    assert torch.equal(u, EPSILON - X0)
    torch.testing.assert_close(x, X0 + LINE[1] * u, rtol=0, atol=1e-9)
    a, b = FLOW.rates(*LINE)
    torch.testing.assert_close(x0_from_velocity(x, u, a, LINE[1]), X0, rtol=0, atol=1e-14)
    torch.testing.assert_close(epsilon_from_velocity(x, u, LINE[0], b), EPSILON, rtol=0, atol=1e-14)


def test_a_velocity_is_a_flow_s_after_rescaling():
    """docs/math.md, "From velocity to flow": u = (alpha + sigma) v + (sigma − alpha) x, at x / (alpha + sigma)."""
    flow = NoiseSchedule(ZTSNR.alphas_cumprod, flow=True)
    alpha, sigma = flow.alpha[:, None], flow.sigma[:, None]
    torch.testing.assert_close(noised(X0, EPSILON, alpha, sigma), X / (ALPHA + SIGMA), rtol=0, atol=1e-14)
    torch.testing.assert_close((ALPHA + SIGMA) * V + (SIGMA - ALPHA) * X, EPSILON - X0, rtol=0, atol=1e-13)
