"""What a network can be asked to learn, as settings; the steps beside this file do it.

A choice is tagged by its `kind`, and each kind has only the settings that mean something for it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from terminus.config.base import Config


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


class Constant(Config):
    """Every timestep weighs 1."""

    kind: Literal["constant"]
    """Unweighted velocity loss."""


class Debiased(Config):
    """Yu et al. 2310.08442, in its velocity form."""

    kind: Literal["debiased"]
    """Weight 1/sqrt(SNR) on the noise error."""


class Diffusion(Config):
    """Velocity prediction on a zero-terminal-SNR schedule: the UNet is trained."""

    kind: Literal["diffusion"] = "diffusion"
    """Trains the UNet."""
    prediction: Literal["velocity"] = "velocity"
    """What the network predicts; must agree with the checkpoint."""
    zero_terminal_snr: bool = True
    """Whether the schedule ends in pure noise; must agree with the checkpoint."""
    weighting: Annotated[MinSnr | Constant | Debiased, Field(discriminator="kind")] = MinSnr()
    """Weight of each timestep in the loss."""
    timesteps: Literal["stratified", "uniform"] = "stratified"
    """`stratified` spreads each global batch evenly over the timesteps."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of samples trained with the empty caption, the unconditional input of guidance."""


class Autoencoding(Config):
    """Reconstruction: the codec is trained."""

    kind: Literal["codec"]
    """Trains the codec."""
    squared_weight: float = Field(default=2.0, ge=0)
    """Weight of the squared error next to the absolute error, which has weight 1."""
    edge_weight: float = Field(default=0.5, ge=0)
    """Weight of the error of the image's gradients, which keeps edges sharp."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the divergence of the moments from a standard normal."""


class Contrast(Config):
    """CLIP's contrastive loss: both text towers and a vision tower are trained."""

    kind: Literal["towers"]
    """Trains the text towers."""
    tokenizers: str
    """Folder with `tokenizer` and `tokenizer_2`."""


Objective = Annotated[Diffusion | Autoencoding | Contrast, Field(discriminator="kind")]
"""What is trained, and how it is asked."""
