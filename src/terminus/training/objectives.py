"""What a network can be asked to learn, as settings; the steps beside this file do it.

A choice is tagged by its `kind`, and each kind has only the settings that mean something for it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.diffusion.timesteps import Band


class MinSnr(Config):
    """Hang et al. 2303.09556; `augmented` keeps weight 1 at the terminal step, `paper` gives it 0."""

    kind: Literal["min_snr"] = "min_snr"
    """Min-SNR weighting."""
    gamma: float = Field(default=5.0, gt=0)
    """Where the weight is clipped, in units of SNR."""
    form: Literal["augmented", "paper"] = "augmented"
    """min(SNR+1, gamma)/(SNR+1), or min(SNR, gamma)/(SNR+1)."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """No timestep weighs less than this."""


class SoftMinSnr(Config):
    """Crowson et al. 2401.11605; like `paper` it gives the terminal step weight 0."""

    kind: Literal["soft_min_snr"]
    """Min-SNR without its corner."""
    gamma: float = Field(default=5.0, gt=0)
    """Limit of the weight on the error of x0: SNR gamma / (SNR + gamma)."""


class Constant(Config):
    """Every timestep weighs 1."""

    kind: Literal["constant"]
    """Unweighted loss."""


class Debiased(Config):
    """Yu et al. 2310.08442, in its velocity form."""

    kind: Literal["debiased"]
    """Weight 1/sqrt(SNR) on the noise error."""


class Squared(Config):
    """The error counts by its square."""

    kind: Literal["squared"] = "squared"
    """Squared error."""


class Huber(Config):
    """Pseudo-Huber: the square of small errors, the size of large ones, so that outliers pull less."""

    kind: Literal["huber"]
    """Squared below c, linear above it."""
    c: float = Field(default=0.1, gt=0, le=1)
    """Where the square ends, in units of the latents' spread."""
    schedule: Literal["constant", "snr"] = "snr"
    """c at every timestep, or from 1 at the first down to c at the last."""


class TimestepBand(Config):
    """A run of timesteps that are drawn equally often."""

    low: int = Field(ge=0)
    """First timestep."""
    high: int = Field(ge=0)
    """Last timestep, included."""
    weight: float = Field(default=1.0, ge=0)
    """How often each of its timesteps is drawn, relative to those of other bands."""


class Diffusion(Config):
    """The noise is learned that was added to an image: the UNet is trained."""

    kind: Literal["diffusion"] = "diffusion"
    """Trains the UNet."""
    prediction: Literal["velocity", "epsilon"] = "velocity"
    """What the network predicts; must agree with the checkpoint."""
    zero_terminal_snr: bool = True
    """Whether the schedule ends in pure noise; must agree with the checkpoint."""
    weighting: Annotated[MinSnr | SoftMinSnr | Constant | Debiased, Field(discriminator="kind")] = MinSnr()
    """Weight of each timestep in the loss."""
    loss: Annotated[Squared | Huber, Field(discriminator="kind")] = Squared()
    """How an error counts."""
    timesteps: Literal["stratified", "uniform"] = "stratified"
    """`stratified` spreads each global batch evenly over the timesteps."""
    timestep_bands: tuple[TimestepBand, ...] = ()
    """Timesteps to draw more often than others; those in no band are never drawn. Empty: all alike."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of samples trained with the empty caption, the unconditional input of guidance."""
    offset_noise: float = Field(default=0.0, ge=0)
    """Spread of a number added to the noise per image and channel. A remedy for schedules without zero terminal SNR."""
    input_perturbation: float = Field(default=0.0, ge=0)
    """Noise that the input has and the target has not, relative to the noise (Ning et al. 2301.11706 use 0.1)."""
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
        ordered = sorted(self.bands)
        for band in ordered:
            if band.low > band.high:
                raise ValueError(f"timestep_bands: low {band.low} is above high {band.high}")
        for before, after in pairwise(ordered):
            if after.low <= before.high:
                raise ValueError(f"timestep_bands: {after.low} is in two bands")
        if ordered and not any(band.weight > 0 for band in ordered):
            raise ValueError("timestep_bands: no band has a weight above 0")
        return self

    @property
    def bands(self) -> tuple[Band, ...]:
        """`timestep_bands`, as the mathematics takes them."""
        return tuple(Band(band.low, band.high, band.weight) for band in self.timestep_bands)


class Autoencoding(Config):
    """Reconstruction: the VAE is trained."""

    kind: Literal["vae"]
    """Trains the VAE."""
    squared_weight: float = Field(default=2.0, ge=0)
    """Weight of the squared error next to the absolute error, which has weight 1."""
    edge_weight: float = Field(default=0.5, ge=0)
    """Weight of the error of the image's gradients, which keeps edges sharp."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the divergence of the moments from a standard normal."""


class Contrastive(Config):
    """CLIP's contrastive loss: both text encoders and a vision encoder are trained."""

    kind: Literal["text_encoders"]
    """Trains the text encoders."""
    tokenizers: str
    """Folder with `tokenizer` and `tokenizer_2`."""


Objective = Annotated[Diffusion | Autoencoding | Contrastive, Field(discriminator="kind")]
"""What is trained, and how it is asked."""
