"""The recipe of a run: every setting there is, in the order in which the work happens.

Settings that belong to a component are declared beside it (`data.settings`); here stand those of training and the
root that ties them together.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.data.settings import DataConfig
from terminus.diffusion.prediction import PredictionType
from terminus.training.distributed.sharding import Parallel
from terminus.training.guards import Guards
from terminus.training.networks.adapter import AdapterConfig
from terminus.training.networks.execution import Checkpointing
from terminus.training.objectives import Diffusion, Objective
from terminus.training.optim.ema import ConstantEma, Ema
from terminus.training.optim.optimizer import AdamW, LearningRate, Optimizer

SDXL_BETA_END = 0.012


class RunConfig(Config):
    """Folder and device of a run, and what its model card states."""

    dir: str = "runs/nano"
    """Folder of the run: log, checkpoints, finished model. Training again with the same folder continues the run."""
    name: str = "Terminus nano"
    """Name of the model on its card."""
    licence: str | None = None
    """Licence id of the finished model, as on the Hugging Face Hub; null: that of `model.start`, if it names one."""
    developer: str | None = None
    """Who made the model; "not stated" on the card if null."""
    authors: tuple[str, ...] = ()
    """Who wrote the card and answers for it; none leaves it to `developer`."""
    contact: str | None = None
    """Where readers of the card may write; "not stated" if null."""
    citation: str | None = None
    """How to cite the model, as one BibTeX entry; null makes one of name, developer and date."""
    region: str | None = None
    """Where the run took place, such as "France" or "eu-west-3": what the grid factor is of."""
    grid_co2: float | None = Field(default=None, ge=0)
    """Grams of CO2 per kWh where the run took place; null leaves the emissions "not measured" on the card."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    trackers: tuple[Literal["wandb"], ...] = ()
    """Tracking services that get curves and previews too; each must be installed. `log.jsonl` has everything anyway."""


class ModelConfig(Config):
    """The networks that training begins from."""

    start: str | None = "nano"
    """Model to fine-tune: a folder, a hub id or `nano`. Null: random weights in the shapes of `architecture`."""
    convert_from: PredictionType | None = None
    """Prediction type of a `start` to train into what the objective says; at zero terminal SNR only into a flow."""
    architecture: Literal["nano", "nano-small", "nano128", "sdxl"] = "nano"
    """Network shapes for training from random weights."""
    beta_end: float = Field(default=SDXL_BETA_END, gt=0.00085, lt=1)
    """Last beta of the noise schedule where `start` is null: 0.012 is SDXL's. A smaller one leaks more signal."""
    vae: str | None = None
    """Folder whose `vae` is used where `start` is null."""
    text_encoders: str | None = None
    """Folder whose tokenizers and text encoders are used where `start` is null."""
    adapter: AdapterConfig | None = None
    """Adapter (LoRA or LyCORIS) to train while the networks stay frozen; null trains the networks themselves."""

    @model_validator(mode="after")
    def _has_one_schedule(self) -> ModelConfig:
        if self.start is not None and self.beta_end != SDXL_BETA_END:
            raise ValueError(
                "beta_end is for random weights: the checkpoint that start names has a schedule of its own"
            )
        return self

    @model_validator(mode="after")
    def _has_what_it_adapts(self) -> ModelConfig:
        if self.adapter is not None and self.start is None:
            raise ValueError(
                "adapter changes a trained model: set start, or adapter: null to train from random weights"
            )
        if self.adapter is not None and self.convert_from is not None:
            raise ValueError(
                "adapter leaves the model on its schedule, and convert_from trains it into another: set one of them"
            )
        return self

    @property
    def vae_from(self) -> str | None:
        """Folder or hub id of the model whose VAE is used; None if there is none yet."""
        return self.vae or self.start


class Checkpoints(Config):
    """Settings of the checkpoints that a run continues from."""

    every_images: int = Field(default=50_000, gt=0)
    """Images between checkpoints; a killed run loses at most these."""
    keep: int = Field(default=2, ge=2)
    """Newest checkpoints to keep; a new one is complete before the oldest is removed."""
    milestone_images: int | None = Field(default=None, gt=0)
    """The first checkpoint after each multiple of this many images is kept for good; null: none."""


class Validation(Config):
    """Loss on held-out images, with the same noise and timesteps every time."""

    every_images: int = Field(default=50_000, gt=0)
    """Images between measurements; the first and the last step are always measured."""
    images: int = Field(default=256, gt=0)
    """Number of held-out images."""


class Preview(Config):
    """Images of fixed prompts, drawn with the schedule that is trained."""

    every_images: int = Field(default=100_000, gt=0)
    """Images between previews."""
    prompts: tuple[str, ...] = ()
    """Prompts of the previews, one image each; empty: no previews."""
    steps: int = Field(default=20, ge=1)
    """Solver steps."""
    guidance: float = Field(default=4.0, ge=1)
    """Guidance scale."""


class Training(Config):
    """Settings of the training loop."""

    images: int = Field(default=200_000, gt=0)
    """Length of the run in images seen, repeats included; rounded up to a whole step."""
    seed: int = Field(default=0, ge=0)
    """Random seed of initial weights, order of the data, noise, timesteps and caption dropout."""
    micro_batch: int = Field(default=32, gt=0)
    """Images per forward pass on one device."""
    accumulation: int = Field(default=1, gt=0)
    """Micro-batches per optimizer step over all processes, so that the global batch does not depend on their number."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the networks' arithmetic (autocast); the loss and the weights' average are float32."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Number format of the trained weights; `bf16` rounds each update stochastically."""
    activation_checkpointing: Checkpointing = "none"
    """Activations that the backward pass computes again to save memory: `none`; norms and activation functions
    (`selective`); the wide feed-forward layers as well (`selective_ff`); everything in a block (`full`)."""
    compile: bool = False
    """Compile transformer and residual blocks with torch.compile: minutes at the start, once for each bucket."""
    loader_threads: int = Field(default=2, ge=0)
    """Threads that read data ahead; 0 reads in the loop. The results do not depend on it."""
    learning_rate: LearningRate = LearningRate()
    """Learning rate schedule, in images seen."""
    optimizer: Optimizer = AdamW()
    """Optimizer: AdamW, Adafactor or Muon."""
    ema: Ema = ConstantEma()
    """Exponential moving average of the weights; the finished model is the average."""
    guards: Guards = Guards()
    """Which steps are skipped as bad, beyond those that are not finite."""
    parallel: Parallel = Parallel()
    """How several processes share the run."""
    checkpoints: Checkpoints = Checkpoints()
    """When checkpoints are saved."""
    validation: Validation = Validation()
    """When held-out loss is measured."""
    preview: Preview = Preview()
    """When preview images are rendered."""

    @model_validator(mode="after")
    def _formats_agree(self) -> Training:
        if self.weights == "bf16" and self.precision == "fp32":
            raise ValueError("weights in bf16 are computed with in bf16: set precision to bf16, or weights to fp32")
        return self

    @property
    def global_batch(self) -> int:
        """Images per optimizer step."""
        return self.micro_batch * self.accumulation


class Recipe(Config):
    """All settings of a run."""

    run: RunConfig = RunConfig()
    """Folder, name and device of the run."""
    model: ModelConfig = ModelConfig()
    """Model that training starts from."""
    data: DataConfig
    """Images and captions, and how they are prepared."""
    objective: Objective = Diffusion()
    """Training objective: denoising, or training the VAE or the text encoders."""
    training: Training = Training()
    """Length, batch, optimizer, checkpoints."""

    @model_validator(mode="after")
    def _adapts_a_unet(self) -> Recipe:
        if self.model.adapter is not None and not isinstance(self.objective, Diffusion):
            raise ValueError(f"model.adapter is for the objective diffusion, and this is {self.objective.kind}")
        return self
