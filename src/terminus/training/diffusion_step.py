"""From the settings of the objective `diffusion` to its step: loss, weights and density of the timesteps."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from terminus.diffusion import weighting
from terminus.diffusion.objective import EpsilonObjective, Objective, VelocityObjective, huber_widths
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.timesteps import density
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.sampling.schedule import noise_schedule
from terminus.training.objectives import Constant, Debiased, Diffusion, Huber, MinSnr, SoftMinSnr
from terminus.training.recipe import Training
from terminus.training.step import DiffusionStep
from terminus.training.together import Together


def diffusion_step(
    components: Components, objective: Diffusion, training: Training, device: torch.device
) -> DiffusionStep:
    """The step that trains these networks, which are on `device`, by these settings; UserError for impossible bands.

    Turns gradients of both text towers on where they are trained as well.
    """
    schedule, text = noise_schedule(components.record.schedule), components.text
    together = None
    if objective.train_text == "both":
        together = Together(components.unet, text.tower_1, text.tower_2, objective.text_rate)
    return DiffusionStep(
        components=components,
        objective=build_objective(objective, schedule),
        seed=training.seed,
        global_batch=training.global_batch,
        stratified=objective.timesteps == "stratified",
        caption_dropout=objective.caption_dropout,
        device=device,
        precision=training.precision,
        density=_density(objective, schedule),
        offset_noise=objective.offset_noise,
        input_perturbation=objective.input_perturbation,
        together=together,
    )


def build_objective(settings: Diffusion, schedule: NoiseSchedule) -> Objective:
    """The loss that these settings describe, on this schedule."""
    build = EpsilonObjective if settings.prediction == "epsilon" else VelocityObjective
    huber = None
    if isinstance(settings.loss, Huber):
        huber = huber_widths(schedule, settings.loss.c, settings.loss.schedule)
    return build(schedule, weights(settings, schedule), huber)


def weights(settings: Diffusion, schedule: NoiseSchedule) -> Float64[Tensor, " timesteps"]:
    """The weight of each timestep."""
    snr, prediction = schedule.snr, settings.prediction
    match settings.weighting:
        case MinSnr(gamma=gamma, form=form, floor=floor):
            return weighting.min_snr(snr, gamma, form, floor, prediction)
        case SoftMinSnr(gamma=gamma):
            return weighting.soft_min_snr(snr, gamma, prediction)
        case Debiased():
            return weighting.debiased(snr, prediction)
        case Constant():
            return weighting.constant(snr)


def _density(settings: Diffusion, schedule: NoiseSchedule) -> Float64[Tensor, " timesteps"] | None:
    last = schedule.timesteps - 1
    beyond = [band.high for band in settings.bands if band.high > last]
    if beyond:
        raise UserError(
            f"A band of timesteps goes to {max(beyond)}",
            where="objective.timestep_bands",
            rule=f"The checkpoint's timesteps are 0 to {last}",
            fix=f"Let no band end after {last}",
        )
    return density(settings.bands, schedule.timesteps) if settings.bands else None
