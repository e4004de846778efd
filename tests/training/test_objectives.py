"""Objectives as settings: what cannot be learned is refused in the recipe, and each name builds what it says."""

from __future__ import annotations

import pytest
import torch

from terminus.diffusion.objective import huber_widths
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.weighting import constant, debiased, min_snr, soft_min_snr
from terminus.training.objectives import (
    Constant,
    Debiased,
    Diffusion,
    Huber,
    MinSnr,
    SoftMinSnr,
    TimestepBand,
)
from terminus.training.steps.diffusion import build_objective

SDXL = NoiseSchedule.scaled_linear()
ZTSNR = SDXL.with_zero_terminal_snr()
FLOW = NoiseSchedule.rectified_flow(shift=3.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prediction": "epsilon"}, "cannot be trained with zero_terminal_snr"),
        ({"timestep_bands": (TimestepBand(low=5, high=4),)}, "low 5 is above high 4"),
        ({"timestep_bands": (TimestepBand(low=0, high=400), TimestepBand(low=400, high=999))}, "400 is in two bands"),
        ({"timestep_bands": (TimestepBand(low=0, high=9, weight=0.0),)}, "no band has a weight"),
        ({"prediction": "flow", "zero_terminal_snr": False}, "flow ends in pure noise"),
        ({"shift": 3.0}, "shift is of prediction flow"),
        ({"prediction": "flow", "shift": 0.0}, "greater than or equal to 0.05"),
        ({"timestep_density": "logit_normal", "timestep_bands": (TimestepBand(low=0, high=9),)}, "set one of them"),
        ({"timestep_density": "normal"}, "'uniform' or 'logit_normal'"),
        ({"loss": Huber.model_construct(kind="huber", c=0.0)}, "greater than 0"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, object], words: str):
    raw = {key: value.model_dump() if isinstance(value, Huber) else value for key, value in settings.items()}
    with pytest.raises(ValueError, match=words):
        Diffusion.model_validate({"kind": "diffusion", **raw})


@pytest.mark.parametrize(
    ("choice", "weigh"),
    [
        (MinSnr(form="paper", floor=0.1), lambda snr, p: min_snr(snr, form="paper", floor=0.1, prediction=p)),
        (SoftMinSnr(kind="soft_min_snr", gamma=3.0), lambda snr, p: soft_min_snr(snr, 3.0, p)),
        (Debiased(kind="debiased"), debiased),
        (Constant(kind="constant"), lambda snr, p: constant(snr)),
    ],
)
def test_a_weighting_is_that_of_the_prediction(choice, weigh):
    velocity = build_objective(Diffusion(weighting=choice), ZTSNR)
    assert velocity.prediction == "velocity"
    assert torch.equal(velocity.weights, weigh(ZTSNR.snr, "velocity"))
    settings = Diffusion(prediction="epsilon", zero_terminal_snr=False, weighting=choice)
    epsilon = build_objective(settings, SDXL)
    assert epsilon.prediction == "epsilon"
    assert torch.equal(epsilon.weights, weigh(SDXL.snr, "epsilon"))
    flow = build_objective(Diffusion(prediction="flow", shift=3.0, weighting=choice), FLOW)
    assert flow.prediction == "flow"
    assert torch.equal(flow.weights, weigh(FLOW.snr, "flow"))


def test_huber_is_built_for_the_schedule():
    assert build_objective(Diffusion(), ZTSNR).huber is None
    built = build_objective(Diffusion(loss=Huber(kind="huber", c=0.2)), ZTSNR).huber
    assert built is not None
    assert torch.equal(built, huber_widths(ZTSNR, 0.2, "snr"))
