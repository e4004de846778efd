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
from terminus.data.batch import Batch
from terminus.diffusion import timesteps, weighting
from terminus.diffusion.objective import Network, Objective, huber_widths
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.timesteps import density, logit_normal
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
    """Trains the UNet to predict velocity, or noise, from cached posteriors of the VAE."""

    components: Components
    objective: Objective
    seed: int
    global_batch: int
    stratified: bool
    caption_dropout: float
    device: torch.device
    precision: runtime.Precision
    density: Float64[Tensor, " timesteps"] | None = None
    """Probability of each timestep; None: all alike."""
    offset_noise: float = 0.0
    """Standard deviation of the number that is added to the noise of each image and channel."""
    input_perturbation: float = 0.0
    """Standard deviation of the noise that the input has and the target has not."""
    joint: nn.Module | None = None
    """The UNet and the text encoders, where these are trained as well."""

    @property
    def trained(self) -> nn.Module:
        """The UNet, or what it is trained together with."""
        return self.components.unet if self.joint is None else self.joint

    def loss(self, batch: Batch, step: int) -> StepLoss:
        """Per-sample weighted loss over the unmasked area; the plain error is that of the whole image."""
        # x0: a sample of the VAE's posterior, drawn anew in every epoch, as a scaled latent.
        stored = runtime.sent(batch.values, self.device)
        shape = stored.shape[2:]
        posterior = Posterior(mean=stored[:, 0], logvar=stored[:, 1])
        x0 = self.components.vae.latents(posterior, self._normal(batch, "moments", shape))

        # t, spread evenly over the global batch: the low-discrepancy sampler of Kingma et al. 2107.00630.
        t = runtime.sent(self._timesteps(batch, step), self.device)

        # epsilon, with one more number for each channel where offset noise is asked for; and what only the input has.
        epsilon = self._normal(batch, "noise", shape)
        if self.offset_noise:
            epsilon = epsilon + self.offset_noise * self._normal(batch, "offset noise", (shape[0], 1, 1))
        perturbation = None
        if self.input_perturbation:  # Ning et al. 2301.11706
            perturbation = self.input_perturbation * self._normal(batch, "input perturbation", shape)

        # L = w(t) · mean ρ(f(x_t, t) − target): noising, target and weight are the objective's.
        mask = None if batch.mask is None else runtime.sent(batch.mask, self.device)
        losses = self.objective.loss(self._network(batch), x0, epsilon, t, perturbation, mask)
        return StepLoss(losses.weighted, losses.unweighted, t)

    def _network(self, batch: Batch) -> Network:
        """f(x_t, t): the UNet, conditioned on this batch's captions, sizes and crops."""
        ids = time_ids(batch.conditioning, self.device)  # Podell et al. 2307.01952, section 2.2

        def network(x: Tensor, t: Tensor) -> Tensor:
            with runtime.autocast(self.device, self.precision):
                # Text encoders that are not trained need no graph.
                with torch.set_grad_enabled(self.joint is not None and torch.is_grad_enabled()):
                    text = self.components.text_encoders.encode(self._captions(batch))
                return predict(self.components.unet, x, self.objective.schedule.network_time(t), text, ids)

        return network

    def seeded(self, seed: int) -> DiffusionStep:
        """Other random numbers, every timestep equally often and evenly, and plain noise: what held-out data meet.

        So errors can be compared between runs that train other timesteps or with other noise.
        """
        return replace(self, seed=seed, stratified=True, density=None, offset_noise=0.0, input_perturbation=0.0)

    def _captions(self, batch: Batch) -> list[str]:
        """One caption for each sample; some are empty, for guidance (Ho & Salimans 2207.12598, algorithm 1)."""
        captions = drawn_captions(batch, self.seed)
        for place, position in enumerate(batch.positions):
            if runtime.uniform(self.seed, position, "caption dropout") < self.caption_dropout:
                captions[place] = ""
        return captions

    def _timesteps(self, batch: Batch, step: int) -> Int[Tensor, " batch"]:
        """The timestep of each sample, as likely as `density` says."""
        draws = [runtime.uniform(self.seed, position, "timestep") for position in batch.positions]
        u = torch.tensor(draws, dtype=torch.float64)
        count = self.objective.schedule.timesteps
        if not self.stratified:
            return timesteps.uniform_timesteps(u, count, self.density)
        # Each place in the global batch has a slice of the timesteps to itself, another one in every step.
        slices = timesteps.slices(runtime.rng(self.seed, step, "timestep slices"), self.global_batch)
        place = torch.tensor([position % self.global_batch for position in batch.positions])
        return timesteps.stratified(u, slices[place], self.global_batch, count, self.density)

    def _normal(self, batch: Batch, purpose: str, shape: Sequence[int]) -> Float[Tensor, "batch *shape"]:
        """Standard normal numbers, which follow from seed, sample and purpose alone."""
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
    if settings.timestep_density == "logit_normal":
        return logit_normal(0.0, 1.0, schedule.timesteps)
    last = schedule.timesteps - 1
    beyond = [band.high for band in settings.bands if band.high > last]
    if beyond:
        raise UserError(
            f"A band of timesteps goes to {max(beyond)}",
            where="objective.timestep_bands",
            rule=f"The checkpoint's timesteps are 0 to {last}",
            fix=f"End every band at {last} or before",
        )
    return density(settings.bands, schedule.timesteps) if settings.bands else None
