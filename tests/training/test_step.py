"""The diffusion step: however a batch is cut, the unconditional input of sampling, exact conditioning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from terminus.conditioning import Crop, MicroConditioning, Size
from terminus.data.batch import Batch
from terminus.data.caption import Caption
from terminus.diffusion.objective import Losses, Objective
from terminus.diffusion.timesteps import Band, density, logit_normal
from terminus.diffusion.weighting import min_snr
from terminus.model.components import Components, load_components
from terminus.model.record import Schedule, noise_schedule
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img
from terminus.training.steps.diffusion import DiffusionStep
from terminus.training.validation import HeldOutSet


@pytest.fixture(scope="module")
def components(random_nano: Path) -> Components:
    return load_components(random_nano)


@pytest.fixture
def step(components: Components) -> DiffusionStep:
    schedule = noise_schedule(components.record.schedule)
    return DiffusionStep(
        components=components,
        objective=Objective(schedule, min_snr(schedule.snr)),
        seed=5,
        global_batch=8,
        stratified=True,
        caption_dropout=0.5,
        device=torch.device("cpu"),
        precision="fp32",
    )


def batch(first: int = 0, count: int = 8) -> Batch:
    numbers = range(first, first + count)
    posterior = torch.stack([torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in numbers])
    posterior[:, 1] = -6.0
    sizes = [MicroConditioning(Size(40 + n, 50), Crop(n, 2), Size(32, 32)) for n in numbers]
    captions = tuple((Caption(f"a red apple {n}", "test"), Caption(f"an apple {n}", "test")) for n in numbers)
    return Batch(tuple(numbers), tuple(map(str, numbers)), captions, tuple(sizes), posterior, epoch=0)


def uneven(step: DiffusionStep) -> DiffusionStep:
    """The step with everything switched on that only training wants."""
    late = density([Band(0, 399, 1.0), Band(400, 999, 3.0)], 1000)
    return replace(step, density=late, offset_noise=0.1, input_perturbation=0.1)


@pytest.mark.parametrize("switched", ["off", "on"])
def test_a_batch_cut_in_pieces_gives_the_same_losses(step: DiffusionStep, switched: str):
    step = uneven(step) if switched == "on" else step
    with torch.no_grad():
        whole = step.loss(batch(16, 8), step=2)
        parts = [step.loss(batch(16 + start, 2), step=2) for start in range(0, 8, 2)]
    assert whole.t is not None
    assert torch.equal(whole.t, torch.cat([part.t for part in parts if part.t is not None]))
    torch.testing.assert_close(whole.weighted, torch.cat([part.weighted for part in parts]), rtol=1e-5, atol=1e-6)


def test_the_same_sample_again_is_the_same_number_and_another_is_not(step: DiffusionStep):
    with torch.no_grad():
        one, again, later = step.loss(batch(0), 0), step.loss(batch(0), 0), step.loss(batch(8), 1)
    assert torch.equal(one.weighted, again.weighted)
    assert not torch.equal(one.weighted, later.weighted)


def test_a_global_batch_covers_the_timesteps_evenly(step: DiffusionStep):
    with torch.no_grad():
        t = step.loss(batch(0), 0).t
    assert t is not None
    assert sorted((t // 125).tolist()) == list(range(8))


def test_a_flow_is_trained_on_the_time_that_it_is_sampled_with(step: DiffusionStep, monkeypatch: pytest.MonkeyPatch):
    """T sigma, in training and in sampling; and what is drawn more often is what the density says."""
    told: list[torch.Tensor] = []

    def predict(unet: object, x: torch.Tensor, t: torch.Tensor, *more: object) -> torch.Tensor:
        told.append(t)
        return torch.zeros_like(x)

    schedule = noise_schedule(Schedule("flow", shift=3.0))
    objective = Objective(schedule, torch.ones_like(schedule.snr), "flow")
    flow = replace(step, objective=objective, density=logit_normal(0.0, 0.5, 1000), global_batch=400)
    monkeypatch.setattr("terminus.training.steps.diffusion.predict", predict)
    loss = flow.loss(batch(0, 400), 0)
    assert loss.t is not None
    assert torch.equal(told[0], (1000 * schedule.sigma[loss.t]).float())
    assert abs(float((loss.t < 500).double().mean()) - 0.5) < 0.01
    assert float(((loss.t >= 300) & (loss.t < 700)).double().mean()) > 0.85

    record = replace(step.components.record, schedule=Schedule("flow", shift=3.0))
    monkeypatch.setattr("terminus.sampling.network.predict", predict)
    told.clear()
    list(text2img(replace(step.components, record=record), ["a"], [0], Settings(steps=4, guidance=1.0)))
    grid = torch.tensor([999, 749, 499, 249])
    assert torch.equal(torch.cat(told), (1000 * schedule.sigma[grid]).float())


def test_a_dropped_caption_is_the_empty_prompt_of_sampling(step: DiffusionStep, components: Components):
    """With every caption dropped, the loss is that of a batch whose only caption is empty."""
    dropped = replace(step, caption_dropout=1.0)
    empty = replace(batch(), captions=((Caption("", "test"),),) * 8)
    with torch.no_grad():
        assert torch.equal(
            dropped.loss(batch(), 0).weighted, replace(step, caption_dropout=0.0).loss(empty, 0).weighted
        )
    # and the empty caption is encoded, not zeroed: what text2img feeds as its unconditional half
    assert components.text_encoders.encode([""]).context.abs().sum() > 0


def test_captions_are_dropped_at_the_rate_and_chosen_among_all(step: DiffusionStep):
    picked = replace(step, caption_dropout=0.25)._captions(batch(0, 400))
    dropped = picked.count("")
    assert 70 < dropped < 130
    first = sum(caption.startswith("a red") for caption in picked)
    assert 110 < first < 190


def test_sizes_reach_the_network(step: DiffusionStep):
    wide = replace(batch(), conditioning=(MicroConditioning(Size(900, 900), Crop(0, 0), Size(32, 32)),) * 8)
    with torch.no_grad():
        assert not torch.equal(step.loss(batch(), 0).error, step.loss(wide, 0).error)


def test_the_terminal_timestep_is_finite_and_weighs_one(step: DiffusionStep):
    uniform = replace(step, stratified=False, global_batch=4000)
    terminal = [n for n in range(4000) if uniform._timesteps(batch(n, 1), 0).item() == 999]
    assert terminal, "4000 samples must meet the terminal step"
    with torch.no_grad():
        loss = uniform.loss(batch(terminal[0], 1), 0)
    assert loss.t is not None
    assert loss.t.item() == 999
    assert torch.isfinite(loss.weighted).all()
    assert torch.equal(loss.weighted, loss.error)


def test_validation_does_not_depend_on_the_run_s_seed(step: DiffusionStep):
    fixed = HeldOutSet((batch(0, 4),))
    assert fixed.measure(step) == fixed.measure(step.seeded(77))
    with torch.no_grad():
        assert not torch.equal(step.loss(batch(), 0).error, step.seeded(77).loss(batch(), 0).error)


def test_validation_does_not_depend_on_what_only_training_wants(step: DiffusionStep):
    fixed = HeldOutSet((batch(0, 8),))
    expected = fixed.measure(step)
    for other in (uneven(step), replace(step, density=density([Band(990, 999, 1.0)], 1000), stratified=False)):
        assert fixed.measure(other) == expected
    with torch.no_grad():
        t = uneven(step).seeded(0).loss(batch(0, 8), 0).t
        late = replace(step, density=density([Band(990, 999, 1.0)], 1000)).loss(batch(0, 8), 0).t
    assert t is not None
    assert sorted((t // 125).tolist()) == list(range(8)), "every part of the schedule is measured"
    assert late is not None
    assert int(late.min()) >= 990


def test_timesteps_follow_the_density(step: DiffusionStep):
    third = replace(step, global_batch=4, density=density([Band(0, 499, 1.0), Band(500, 999, 3.0)], 1000))
    t = torch.cat([third._timesteps(batch(4 * n, 4), n) for n in range(50)]).reshape(50, 4)
    assert ((t < 500).sum(1) == 1).all(), "one of four, in every global batch"


def test_offset_noise_moves_whole_channels_and_the_perturbation_only_the_input(
    step: DiffusionStep, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def loss(self, model, x0, epsilon, t, perturbation=None, mask=None):
        seen.append((epsilon, perturbation))
        return Losses(torch.zeros(len(x0)), torch.zeros(len(x0)))

    monkeypatch.setattr(Objective, "loss", loss)
    count = 500
    one = replace(step, global_batch=count)
    for each in (one, replace(one, offset_noise=0.5), replace(one, input_perturbation=0.1)):
        each.loss(batch(0, count), 0)
    (plain, nothing), (moved, none_either), (same, perturbation) = seen
    assert nothing is None
    assert none_either is None
    assert torch.equal(same, plain)
    offset = moved - plain
    assert float((offset - offset.mean((2, 3), keepdim=True)).abs().max()) < 1e-5, "one number per image and channel"
    assert float(offset.mean((2, 3)).std()) == pytest.approx(0.5, rel=0.05)
    assert perturbation is not None
    assert float(perturbation.std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float((perturbation * plain).mean())) < 0.001, "independent of the noise"


def test_what_a_mask_leaves_out_is_not_learned(step: DiffusionStep):
    """The loss's gradient at each place of the prediction: that without a mask, times the mask."""
    mask = torch.zeros(8, 1, 8, 8)
    mask[:, :, 2:5, 1:7] = 1.0
    mask[3] = 0.25
    mask[4] = 0.0
    plain, whole = replace(batch(), mask=None), replace(batch(), mask=torch.ones(8, 1, 8, 8))
    everywhere, error = slopes(step, plain)
    inside, same_error = slopes(step, replace(batch(), mask=mask))
    assert bool((everywhere != 0).all())
    assert torch.equal(inside, everywhere * mask), "not divided by the mask's mean: a place counts the same"
    assert not bool(inside[mask.expand_as(inside) == 0].any())
    assert torch.equal(same_error, error), "the plain error is that of the whole image"
    assert torch.equal(slopes(step, whole)[0], everywhere)


def slopes(step: DiffusionStep, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the loss, at each place of what the network predicted; and the plain errors."""
    made: list[torch.Tensor] = []

    def keep(_: object, __: object, result: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        made.append(result[0].detach().requires_grad_())
        return (made[0],)

    handle = step.components.unet.register_forward_hook(keep)
    try:
        loss = step.loss(batch, 0)
    finally:
        handle.remove()
    return torch.autograd.grad(loss.weighted.sum(), made[0])[0], loss.error.detach()


def test_validation_measures_whole_images(step: DiffusionStep):
    masked = replace(batch(), mask=torch.zeros(8, 1, 8, 8))
    assert HeldOutSet((masked,)).measure(step) == HeldOutSet((batch(),)).measure(step)
