"""The loss against its formula, written out for one sample at a time in float64."""

import pytest
import torch

from terminus.diffusion.objective import Objective, huber_widths, pseudo_huber
from terminus.diffusion.prediction import epsilon_from_velocity
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.weighting import constant, debiased, min_snr, soft_min_snr

SDXL = NoiseSchedule.scaled_linear()
ZTSNR = SDXL.with_zero_terminal_snr()
OBJECTIVE = Objective(ZTSNR, min_snr(ZTSNR.snr))
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
        losses = Objective(ZTSNR, weights).loss(lambda x, t: scale + 0 * x, X0[:1] + 1, EPSILON[:1], T[-1:])
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
        Objective(ZTSNR, weights)


def test_epsilon_loss_is_the_weighted_squared_error_of_the_noise():
    objective = Objective(SDXL, min_snr(SDXL.snr, prediction="epsilon"), "epsilon")
    losses = objective.loss(lambda x, t: 0.3 * x, X0, EPSILON, T)
    for i, t in enumerate(T.tolist()):
        epsilon = EPSILON[i].double()
        error = 0.3 * (SDXL.alpha[t] * X0[i].double() + SDXL.sigma[t] * epsilon) - epsilon
        assert float(losses.unweighted[i]) == pytest.approx(float(error.square().mean()), rel=1e-5)
        expected = min(1.0, 5.0 / float(SDXL.snr[t])) * float(error.square().mean())
        assert float(losses.weighted[i]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "weigh",
    [pytest.param(lambda p: min_snr(SDXL.snr, form="paper", prediction=p), id="min_snr"),
     pytest.param(lambda p: soft_min_snr(SDXL.snr, prediction=p), id="soft_min_snr"),
     pytest.param(lambda p: debiased(SDXL.snr, prediction=p), id="debiased")],
)  # fmt: skip
def test_one_network_has_one_loss_whether_it_says_velocity_or_noise(weigh):
    """A published weight is about the image; which quantity the network names must not change it."""

    def says_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (0.3 * x).tanh()

    def says_noise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = SDXL.at(t, x.ndim)
        return epsilon_from_velocity(x, says_velocity(x, t), alpha, sigma)

    t = torch.tensor([40, 137, 300, 500, 900, 999])
    velocity = Objective(SDXL, weigh("velocity")).loss(says_velocity, X0, EPSILON, t)
    noise = Objective(SDXL, weigh("epsilon"), "epsilon").loss(says_noise, X0, EPSILON, t)
    torch.testing.assert_close(noise.weighted, velocity.weighted, rtol=2e-4, atol=0)


def test_epsilon_on_a_zero_terminal_schedule_is_refused():
    with pytest.raises(ValueError, match="predict velocity"):
        Objective(ZTSNR, constant(ZTSNR.snr), "epsilon")


FLOW = NoiseSchedule.rectified_flow(shift=3.0)


def test_flow_loss_is_the_weighted_squared_error_of_noise_less_image():
    objective = Objective(FLOW, min_snr(FLOW.snr, prediction="flow"), "flow")
    losses = objective.loss(lambda x, t: 0.3 * x, X0, EPSILON, T)
    for i, t in enumerate(T.tolist()):
        u = (t + 1) / 1000
        sigma = 3 * u / (1 + 2 * u)
        x0, epsilon = X0[i].double(), EPSILON[i].double()
        error = 0.3 * ((1 - sigma) * x0 + sigma * epsilon) - (epsilon - x0)
        assert float(losses.unweighted[i]) == pytest.approx(float(error.square().mean()), rel=1e-5)
        weight = min(1.0, 5.0 * sigma**2)  # min(d, γ) / d with d = 1 / sigma²
        assert float(losses.weighted[i]) == pytest.approx(weight * float(error.square().mean()), rel=1e-5)


def test_a_flow_is_velocity_on_the_same_curve_with_another_weight():
    """docs/math.md: |Δu|² = (alpha + sigma)² |Δv|², so one network has one loss under either name."""
    flow = NoiseSchedule(ZTSNR.alphas_cumprod, flow=True)
    total = ZTSNR.alpha + ZTSNR.sigma

    def says_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (0.3 * x).tanh()

    def says_flow(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = ZTSNR.at(t, x.ndim)
        x = x * (alpha + sigma)
        return (alpha + sigma) * says_velocity(x, t) + (sigma - alpha) * x

    as_flow = Objective(flow, constant(flow.snr), "flow").loss(says_flow, X0, EPSILON, T)
    as_velocity = Objective(ZTSNR, total.square()).loss(says_velocity, X0, EPSILON, T)
    torch.testing.assert_close(as_flow.weighted, as_velocity.weighted, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("schedule", "prediction"), [(FLOW, "velocity"), (SDXL, "flow"), (FLOW, "epsilon")])
def test_a_prediction_on_the_other_s_schedule_is_refused(schedule: NoiseSchedule, prediction: str):
    with pytest.raises(ValueError, match=r"epsilon cannot|does not belong"):
        Objective(schedule, constant(schedule.snr), prediction)


def test_a_perturbation_is_in_the_input_and_not_in_the_target():
    """A network that returns what it was given shows the input; one that returns 0 shows the target."""
    extra = torch.randn(X0.shape, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    plain, perturbed = OBJECTIVE.loss(network, X0, EPSILON, T), OBJECTIVE.loss(network, X0, EPSILON, T, 0.1 * extra)
    assert torch.equal(plain.weighted, perturbed.weighted)
    sigma = ZTSNR.at(T, 4)[1]
    torch.testing.assert_close(seen[1] - seen[0], 0.1 * sigma * extra, rtol=1e-5, atol=1e-6)


def test_a_mask_multiplies_places_and_does_not_divide():
    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.3 * x

    def loss(mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return OBJECTIVE.loss(network, X0, EPSILON, T, mask=mask)

    whole = torch.ones(6, 1, 8, 8)
    left = whole.clone()
    left[..., 4:] = 0
    plain = loss(None)
    assert torch.equal(loss(whole)[0], plain[0])
    assert float(loss(0 * whole)[0].abs().max()) == 0.0
    torch.testing.assert_close(loss(left)[0] + loss(whole - left)[0], plain[0], rtol=1e-5, atol=0)
    assert bool((loss(left)[0] > 0).all())
    assert torch.equal(loss(left)[1], plain[1]), "the plain error is that of the whole image"


def test_pseudo_huber_is_the_square_when_small_and_linear_when_large():
    d = torch.tensor([[1e-5, -1e-3, 0.0]])
    torch.testing.assert_close(pseudo_huber(d, torch.ones(1, 1)), d.square(), rtol=1e-6, atol=0)
    far = torch.tensor([[1e3, -1e4]])
    torch.testing.assert_close(pseudo_huber(far, torch.full((1, 1), 0.1)), 0.2 * far.abs(), rtol=2e-4, atol=0)
    # the paper's form, where it has digits to spare
    d, c = torch.linspace(-3, 3, 41, dtype=torch.float64)[None], torch.full((1, 1), 0.3, dtype=torch.float64)
    torch.testing.assert_close(pseudo_huber(d, c), 2 * c * ((d.square() + c.square()).sqrt() - c))


def test_huber_widths_fall_from_1_to_c_and_are_finite_in_pure_noise():
    widths = huber_widths(ZTSNR, 0.1)
    assert float(widths[-1]) == 0.1
    assert bool((widths.diff() < 0).all())
    ratio = ZTSNR.sigma[:-1] / ZTSNR.alpha[:-1]
    torch.testing.assert_close(widths[:-1], 0.1 + 0.9 / (1 + ratio).square())
    assert float(widths[0]) > 0.9
    assert torch.equal(huber_widths(ZTSNR, 0.1, "constant"), torch.full_like(widths, 0.1))


def test_huber_in_the_loss_leaves_the_plain_error_alone():
    huber = Objective(ZTSNR, OBJECTIVE.weights, huber=huber_widths(ZTSNR, 0.1))
    with_it, without = (o.loss(lambda x, t: 0.3 * x, X0, EPSILON, T) for o in (huber, OBJECTIVE))
    assert torch.equal(with_it.unweighted, without.unweighted)
    assert bool((with_it.weighted < without.weighted).all())


@pytest.mark.parametrize("c", [0.0, -1.0, 1.5])
def test_a_huber_width_outside_0_to_1_is_refused(c: float):
    with pytest.raises(ValueError, match="c must be"):
        huber_widths(ZTSNR, c)
