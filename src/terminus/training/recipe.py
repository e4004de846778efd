"""The recipe of a run: every setting there is, in the order in which the work happens.

Settings that belong to a component are declared beside it (`data.settings`); here stand those of training and the
root that ties them together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.data.settings import DataConfig


class RunConfig(Config):
    """Where a run lives and what its model card says of it."""

    dir: str = "runs/nano"
    """Folder of the run: log, checkpoints, the finished model. The same command on the same folder continues it."""
    name: str = "Terminus nano"
    """Name of the model on its card."""
    licence: str = "apache-2.0"
    """Licence id of the finished model, as the Hugging Face Hub spells it."""
    developer: str | None = None
    """Who made the model; "not stated" on the card if null."""
    grid_co2: float | None = Field(default=None, ge=0)
    """Grams of CO2 per kWh where the run took place; null leaves the emissions "not measured" on the card."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""


class ModelConfig(Config):
    """The networks that training begins from."""

    start: str | None = "nano"
    """Model to continue: a folder, a hub id or `nano`. Null builds `architecture` with random weights."""
    architecture: Literal["nano", "sdxl"] = "nano"
    """Shapes of what is built with random weights."""
    codec: str | None = None
    """Folder whose `vae` is used where `start` is null."""
    text: str | None = None
    """Folder whose tokenizers and text towers are used where `start` is null."""

    @property
    def codec_from(self) -> str | None:
        """The folder that has the codec; null if there is none yet."""
        return self.codec or self.start


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


class LearningRate(Config):
    """A cosine between two bounds, counted in images."""

    max: float = Field(default=1e-4, gt=0)
    """Highest learning rate, reached after the warm-up."""
    min: float = Field(default=1e-5, ge=0)
    """Lowest learning rate, reached at the end of the period."""
    warmup_images: int = Field(default=0, ge=0)
    """Images over which the rate rises linearly from 0."""
    period_images: int | None = Field(default=None, gt=0)
    """Images from the highest to the lowest rate, after which it stays low. Null: the length of the run."""

    @model_validator(mode="after")
    def _ordered(self) -> LearningRate:
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Optimizer(Config):
    """AdamW (Loshchilov & Hutter 1711.05101)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean gradient."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the mean squared gradient."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean squared gradient."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay on matrices and kernels; biases and norms have none."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""


class Ema(Config):
    """Exponential moving average of the weights, in float32; the finished model is the average."""

    half_life_images: int = Field(default=100_000, gt=0)
    """Images after which old weights count half."""
    ramp: float = Field(default=0.1, gt=0, le=1)
    """The half-life is at most this share of the images seen, so that a young average is not its random start."""


class Checkpoints(Config):
    """When the run is saved."""

    every_images: int = Field(default=50_000, gt=0)
    """Images between saves; a kill loses at most these."""
    keep: int = Field(default=2, ge=2)
    """Checkpoints on disk. The new one is complete before the oldest goes."""


class Validation(Config):
    """Loss on held-out images, with the same noise and timesteps every time."""

    every_images: int = Field(default=50_000, gt=0)
    """Images between measurements; the first and the last step are always measured."""
    images: int = Field(default=256, gt=0)
    """Held-out images used."""


class Preview(Config):
    """Pictures of fixed prompts, by the schedule that is trained."""

    every_images: int = Field(default=100_000, gt=0)
    """Images between previews."""
    prompts: tuple[str, ...] = ()
    """One picture each; none, no previews."""
    steps: int = Field(default=20, ge=1)
    """Solver steps."""
    guidance: float = Field(default=4.0, ge=1)
    """Guidance scale."""


class Training(Config):
    """The loop."""

    images: int = Field(default=200_000, gt=0)
    """Images to have seen at the end, repeats counted; rounded up to a whole step."""
    seed: int = Field(default=0, ge=0)
    """Decides weights, order, noise, timesteps and dropped captions."""
    micro_batch: int = Field(default=32, gt=0)
    """Images per forward pass."""
    accumulation: int = Field(default=1, gt=0)
    """Forward passes per optimizer step."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the networks' arithmetic; weights, loss and averages are float32."""
    loader_threads: int = Field(default=2, ge=0)
    """Threads that read ahead; 0 reads in the loop. No influence on the numbers."""
    learning_rate: LearningRate = LearningRate()
    """Learning rate by images seen."""
    optimizer: Optimizer = Optimizer()
    """How gradients become steps."""
    ema: Ema = Ema()
    """The averaged weights."""
    checkpoints: Checkpoints = Checkpoints()
    """Saving."""
    validation: Validation = Validation()
    """Measuring."""
    preview: Preview = Preview()
    """Looking."""

    @property
    def global_batch(self) -> int:
        """Images per optimizer step."""
        return self.micro_batch * self.accumulation


class Recipe(Config):
    """Everything a run depends on."""

    run: RunConfig = RunConfig()
    """Where the run lives."""
    model: ModelConfig = ModelConfig()
    """What it begins from."""
    data: DataConfig
    """What it learns from."""
    objective: Annotated[Diffusion | Autoencoding | Contrast, Field(discriminator="kind")] = Diffusion()
    """What it is asked to do."""
    training: Training = Training()
    """How it gets there."""
