"""Settings of the objectives: what a network is trained to do. `steps/` computes their losses.

A choice is tagged by its `kind`, and each kind has only the settings that mean something for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.diffusion.prediction import PredictionType
from terminus.diffusion.schedule import SHIFTS
from terminus.diffusion.timesteps import Band
from terminus.diffusion.weighting import MinSnrForm


class MinSnr(Config):
    """Hang et al. 2303.09556; `augmented` and `epsilon` keep weight 1 at the terminal step, `paper` gives it 0."""

    kind: Literal["min_snr"] = "min_snr"
    """Min-SNR weighting."""
    gamma: float = Field(default=5.0, gt=0)
    """SNR at which the weight is clipped."""
    form: MinSnrForm = "augmented"
    """min(SNR+1, gamma)/(SNR+1); min(SNR, gamma)/(SNR+1); or min(SNR, gamma)/SNR, as in trainers of 2023."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Smallest weight of any timestep."""


class SoftMinSnr(Config):
    """Crowson et al. 2401.11605; like `paper` it gives the terminal step weight 0."""

    kind: Literal["soft_min_snr"]
    """Min-SNR without its corner."""
    gamma: float = Field(default=5.0, gt=0)
    """Limit of the weight on the error of x0: SNR gamma / (SNR + gamma)."""


class Constant(Config):
    """Weight 1 at every timestep."""

    kind: Literal["constant"]
    """Unweighted loss."""


class Debiased(Config):
    """Yu et al. 2310.08442, in its velocity form."""

    kind: Literal["debiased"]
    """Weight 1/sqrt(SNR) on the noise error."""


class Squared(Config):
    """Squared error of every element."""

    kind: Literal["squared"] = "squared"
    """Squared error."""


class Huber(Config):
    """Pseudo-Huber: the square of small errors, the size of large ones, so that outliers pull less."""

    kind: Literal["huber"]
    """Squared below c, linear above it."""
    c: float = Field(default=0.1, gt=0, le=1)
    """Error at which the square turns into a line, in units of the latents' standard deviation."""
    schedule: Literal["constant", "snr"] = "snr"
    """c at every timestep, or from 1 at the first down to c at the last."""


class TimestepBand(Config):
    """Consecutive timesteps that are drawn equally often."""

    low: int = Field(ge=0)
    """First timestep."""
    high: int = Field(ge=0)
    """Last timestep, included."""
    weight: float = Field(default=1.0, ge=0)
    """How often each of its timesteps is drawn, relative to those of other bands."""


class Diffusion(Config):
    """Denoising objective: trains the UNet to undo the noise that was added to an image."""

    kind: Literal["diffusion"] = "diffusion"
    """Denoising objective: trains the UNet."""
    prediction: PredictionType = "velocity"
    """What the network predicts, `flow` being noise less image; must agree with the checkpoint."""
    zero_terminal_snr: bool = True
    """Whether the schedule ends in pure noise, as a flow's does always; must agree with the checkpoint."""
    shift: float = Field(default=1.0, ge=SHIFTS[0], le=SHIFTS[1])
    """Factor of a flow's sigma / alpha at every timestep, 3 in SD3; must agree with the checkpoint."""
    weighting: Annotated[MinSnr | SoftMinSnr | Constant | Debiased, Field(discriminator="kind")] = MinSnr()
    """Weight of each timestep in the loss."""
    loss: Annotated[Squared | Huber, Field(discriminator="kind")] = Squared()
    """Per-element loss: squared or pseudo-Huber."""
    timesteps: Literal["stratified", "uniform"] = "stratified"
    """`uniform` draws each sample's timestep independently, `stratified` spreads a global batch evenly over them."""
    timestep_bands: tuple[TimestepBand, ...] = ()
    """Ranges of timesteps to draw more often; timesteps outside of all of them are never drawn. Empty: all alike."""
    timestep_density: Literal["uniform", "logit_normal"] = "uniform"
    """`logit_normal` draws the middle of the schedule most often, as SD3 did (2403.03206); a smooth form of bands."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of samples trained with an empty caption, which classifier-free guidance needs."""
    offset_noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the offset per image and channel; a remedy for schedules without zero terminal SNR."""
    input_perturbation: float = Field(default=0.0, ge=0)
    """Extra noise of the input that the target lacks, relative to the noise (Ning et al. 2301.11706 use 0.1)."""
    train_text_encoders: Literal["none", "both"] = "none"
    """Whether both text encoders are trained with the UNet."""
    text_encoder_rate: float = Field(default=0.1, gt=0)
    """Learning rate of trained text encoders, relative to that of the UNet."""

    @model_validator(mode="after")
    def _possible(self) -> Diffusion:
        if self.prediction == "epsilon" and self.zero_terminal_snr:
            raise ValueError(
                "prediction epsilon cannot be trained with zero_terminal_snr true: the last latent is nothing but the "
                "noise; set prediction velocity, or zero_terminal_snr false"
            )
        if self.prediction == "flow" and not self.zero_terminal_snr:
            raise ValueError("prediction flow ends in pure noise: zero_terminal_snr false belongs to other predictions")
        if self.prediction != "flow" and self.shift != 1.0:
            raise ValueError(f"shift is of prediction flow; {self.prediction} has the betas of its checkpoint")
        if self.timestep_density != "uniform" and self.timestep_bands:
            raise ValueError("timestep_density and timestep_bands are two ways to say one thing: set one of them")
        _check_bands(sorted(self.bands))
        return self

    @property
    def bands(self) -> tuple[Band, ...]:
        """`timestep_bands`, in the form that `diffusion.timesteps` takes."""
        return tuple(Band(band.low, band.high, band.weight) for band in self.timestep_bands)


def _check_bands(ordered: Sequence[Band]) -> None:
    for band in ordered:
        if band.low > band.high:
            raise ValueError(f"timestep_bands: low {band.low} is above high {band.high}")
    for before, after in pairwise(ordered):
        if after.low <= before.high:
            raise ValueError(f"timestep_bands: {after.low} is in two bands")
    if ordered and not any(band.weight > 0 for band in ordered):
        raise ValueError("timestep_bands: no band has a weight above 0")


class Autoencoding(Config):
    """Reconstruction objective: trains the VAE."""

    kind: Literal["vae"]
    """Reconstruction objective: trains the VAE."""
    squared_weight: float = Field(default=2.0, ge=0)
    """Weight of the squared error; the absolute error has weight 1."""
    edge_weight: float = Field(default=0.5, ge=0)
    """Weight of the error of differences between neighbouring pixels, which keeps edges sharp."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the posterior's KL divergence from a standard normal."""


class Contrastive(Config):
    """CLIP's contrastive objective: trains both text encoders and a vision encoder."""

    kind: Literal["text_encoders"]
    """Contrastive objective: trains the text encoders."""
    tokenizers: str
    """Folder that holds `tokenizer` and `tokenizer_2`."""


Objective = Annotated[Diffusion | Autoencoding | Contrastive, Field(discriminator="kind")]
"""The objective of a run, chosen by `kind`."""
