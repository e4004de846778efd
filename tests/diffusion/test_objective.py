"""The loss against its formula, written out for one sample at a time in float64."""

import pytest
import torch

from terminus.diffusion.objective import VelocityObjective
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.weighting import constant, min_snr

ZTSNR = NoiseSchedule.scaled_linear().with_zero_terminal_snr()
OBJECTIVE = VelocityObjective(ZTSNR, min_snr(ZTSNR.snr))
T = torch.tensor([0, 1, 137, 500, 998, 999])
X0, EPSILON = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_loss_is_the_weighted_squared_velocity_error():
    losses = OBJECTIVE.loss(lambda x, t: 0.3 * x, X0, EPSILON, T)
    for i, t in enumerate(T.tolist()):
        alpha, sigma = ZTSNR.alpha[t], ZTSNR.sigma[t]
        x0, epsilon = X0[i].double(), EPSILON[i].double()
        error = 0.3 * (alpha * x0 + sigma * epsilon) - (alpha * epsilon - sigma * x0)
        assert float(losses.unweighted[i]) == pytest.approx(float(error.square().mean()), rel=1e-5)
        weighted = OBJECTIVE.weights[t] * error.square().mean()
        assert float(losses.weighted[i]) == pytest.approx(float(weighted), rel=1e-5)


def test_a_perfect_network_has_no_loss_at_any_timestep():
    t = torch.arange(1000)
    x0, epsilon = torch.randn(2, 1000, 4, generator=torch.Generator().manual_seed(0))

    def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = ZTSNR.at(t, 2)
        return alpha * epsilon - sigma * x0

    assert float(OBJECTIVE.loss(perfect, x0, epsilon, t).unweighted.max()) == 0.0


def test_the_terminal_step_trains_under_augmented_and_not_under_paper():
    def gradient_at_the_end(weights: torch.Tensor) -> float:
        scale = torch.zeros((), requires_grad=True)
        losses = VelocityObjective(ZTSNR, weights).loss(lambda x, t: scale + 0 * x, X0[:1] + 1, EPSILON[:1], T[-1:])
        losses.weighted.mean().backward()
        return float(scale.grad)

    assert gradient_at_the_end(min_snr(ZTSNR.snr, form="paper")) == 0.0
    # v = −x0 there, and the best constant is the mean of −x0.
    assert gradient_at_the_end(min_snr(ZTSNR.snr)) == pytest.approx(2 * float(X0[0].mean() + 1), rel=1e-5)


def test_inputs_and_network_in_bfloat16_do_not_lower_the_precision_of_the_target():
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        return torch.zeros_like(x, dtype=torch.bfloat16)

    x0, epsilon = X0.bfloat16(), EPSILON.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        losses = OBJECTIVE.loss(network, x0, epsilon, T)
    exact = OBJECTIVE.loss(lambda x, t: torch.zeros_like(x), x0.float(), epsilon.float(), T)
    assert losses.weighted.dtype == losses.unweighted.dtype == torch.float32
    assert torch.equal(losses.weighted, exact.weighted)


def test_the_loss_of_a_sample_does_not_depend_on_its_neighbours():
    whole = OBJECTIVE.loss(lambda x, t: x.tanh(), X0, EPSILON, T)
    alone = OBJECTIVE.loss(lambda x, t: x.tanh(), X0[3:4], EPSILON[3:4], T[3:4])
    assert torch.equal(whole.weighted[3:4], alone.weighted)


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(constant(ZTSNR.snr)[:-1], id="too few"),
        pytest.param(constant(ZTSNR.snr) * torch.nan, id="nan"),
        pytest.param(-constant(ZTSNR.snr), id="negative"),
    ],
)
def test_weights_that_are_not_weights_are_refused(weights: torch.Tensor):
    with pytest.raises(ValueError, match="weights"):
        VelocityObjective(ZTSNR, weights)
