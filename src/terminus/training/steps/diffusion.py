"""The diffusion step: where the network, the mathematics and the conditioning meet.

All randomness is a function of the sample's running number, so a batch cut into other pieces, read by other threads
or computed again after a restart gives the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from terminus import runtime
from terminus.conditioning import time_ids
from terminus.data.loader import Batch
from terminus.diffusion import timesteps, weighting
from terminus.diffusion.objective import Objective, huber_widths
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.timesteps import density
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.record import noise_schedule
from terminus.model.unet import predict
from terminus.model.vae import Posterior
from terminus.training.networks.joint import JointModel
from terminus.training.objectives import Constant, Debiased, Diffusion, Huber, MinSnr, SoftMinSnr
from terminus.training.recipe import Training
from terminus.training.step import StepLoss
from terminus.training.steps.captions import drawn_captions


@dataclass(frozen=True)
class DiffusionStep:
    """Trains the UNet to predict velocity, or noise, from cached moments."""

    components: Components
    objective: Objective
    seed: int
    global_batch: int
    stratified: bool
    caption_dropout: float
    device: torch.device
    precision: runtime.Precision
    density: Float64[Tensor, " timesteps"] | None = None
    """How often each timestep is drawn; None: all alike."""
    offset_noise: float = 0.0
    """Spread of what is added to the noise of each image and channel."""
    input_perturbation: float = 0.0
    """Noise of the input that is not in the target, in units of the noise."""
    joint: nn.Module | None = None
    """The UNet and the text encoders, where these are trained as well."""

    @property
    def trained(self) -> nn.Module:
        """The UNet, or what it is trained together with."""
        return self.components.unet if self.joint is None else self.joint

    def loss(self, batch: Batch, step: int) -> StepLoss:
        """The weighted error of each sample, of what its mask counts; the plain error is that of the whole image."""
        moments = runtime.sent(batch.values, self.device)
        shape = moments.shape[2:]
        posterior = Posterior(moments[:, 0], moments[:, 1])
        x0 = self.components.vae.latents(posterior, self._normal(batch, "moments", shape))
        t = runtime.sent(self._timesteps(batch, step), self.device)
        ids = time_ids(batch.conditioning, self.device)

        def network(x: Tensor, t: Tensor) -> Tensor:
            with runtime.autocast(self.device, self.precision):
                with torch.set_grad_enabled(self.joint is not None and torch.is_grad_enabled()):
                    text = self.components.text_encoders.encode(self._captions(batch))
                return predict(self.components.unet, x, t, text, ids)

        epsilon = self._normal(batch, "noise", shape)
        if self.offset_noise:
            epsilon = epsilon + self.offset_noise * self._normal(batch, "offset noise", (shape[0], 1, 1))
        perturbation = None
        if self.input_perturbation:
            perturbation = self.input_perturbation * self._normal(batch, "input perturbation", shape)
        mask = None if batch.mask is None else runtime.sent(batch.mask, self.device)
        losses = self.objective.loss(network, x0, epsilon, t, perturbation, mask)
        return StepLoss(losses.weighted, losses.unweighted, t)

    def seeded(self, seed: int) -> DiffusionStep:
        """Other random numbers, every timestep equally often and evenly, and plain noise: what held-out data meet.

        So errors can be compared between runs that train other timesteps or with other noise.
        """
        return replace(self, seed=seed, stratified=True, density=None, offset_noise=0.0, input_perturbation=0.0)

    def _captions(self, batch: Batch) -> list[str]:
        return [
            "" if runtime.uniform(self.seed, position, "caption dropout") < self.caption_dropout else caption
            for position, caption in zip(batch.positions, drawn_captions(batch, self.seed), strict=True)
        ]

    def _timesteps(self, batch: Batch, step: int) -> Int[Tensor, " batch"]:
        draws = [runtime.uniform(self.seed, position, "timestep") for position in batch.positions]
        u = torch.tensor(draws, dtype=torch.float64)
        count = self.objective.schedule.timesteps
        if not self.stratified:
            return timesteps.uniform_timesteps(u, count, self.density)
        slices = timesteps.slices(runtime.rng(self.seed, step, "timestep slices"), self.global_batch)
        place = torch.tensor([position % self.global_batch for position in batch.positions])
        return timesteps.stratified(u, slices[place], self.global_batch, count, self.density)

    def _normal(self, batch: Batch, purpose: str, shape: Sequence[int]) -> Float[Tensor, "batch *shape"]:
        rows = [torch.randn(shape, generator=runtime.rng(self.seed, position, purpose)) for position in batch.positions]
        return runtime.sent(torch.stack(rows), self.device)


def diffusion_step(
    components: Components, objective: Diffusion, training: Training, device: torch.device
) -> DiffusionStep:
    """The step that trains these networks, which are on `device`, by these settings; UserError for impossible bands.

    Turns gradients of both text encoders on where they are trained as well.
    """
    schedule, text = noise_schedule(components.record.schedule), components.text_encoders
    joint = None
    if objective.train_text_encoders == "both":
        joint = JointModel(components.unet, text.text_encoder_1, text.text_encoder_2, objective.text_encoder_rate)
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
        joint=joint,
    )


def build_objective(settings: Diffusion, schedule: NoiseSchedule) -> Objective:
    """The loss that these settings describe, on this schedule."""
    huber = None
    if isinstance(settings.loss, Huber):
        huber = huber_widths(schedule, settings.loss.c, settings.loss.schedule)
    return Objective(schedule, weights(settings, schedule), settings.prediction, huber)


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
