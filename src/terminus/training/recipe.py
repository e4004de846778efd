"""The recipe of a run: every setting there is, in the order in which the work happens.

Settings that belong to a component are declared beside it (`data.settings`); here stand those of training and the
root that ties them together.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.data.settings import DataConfig
from terminus.training.distributed.sharding import Parallel
from terminus.training.guards import Guards
from terminus.training.networks.adapter import AdapterConfig
from terminus.training.networks.execution import Checkpointing
from terminus.training.objectives import Diffusion, Objective
from terminus.training.optim.ema import ConstantEma, Ema
from terminus.training.optim.optimizer import AdamW, LearningRate, Optimizer


class RunConfig(Config):
    """Where a run lives and what its model card says of it."""

    dir: str = "runs/nano"
    """Folder of the run: log, checkpoints, the finished model. The same command on the same folder continues it."""
    name: str = "Terminus nano"
    """Name of the model on its card."""
    licence: str | None = None
    """Licence id of the finished model, as the Hugging Face Hub spells it; null: that of `model.start`, if it says."""
    developer: str | None = None
    """Who made the model; "not stated" on the card if null."""
    grid_co2: float | None = Field(default=None, ge=0)
    """Grams of CO2 per kWh where the run took place; null leaves the emissions "not measured" on the card."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    trackers: tuple[Literal["wandb"], ...] = ()
    """Services that get curves and previews as well; each must be installed. `log.jsonl` has all without them."""


class ModelConfig(Config):
    """The networks that training begins from."""

    start: str | None = "nano"
    """Model to continue: a folder, a hub id or `nano`. Null builds `architecture` with random weights."""
    convert_from: Literal["epsilon", "velocity"] | None = None
    """What `start` is, without zero terminal SNR: consent to training it into what the objective says."""
    architecture: Literal["nano", "nano128", "sdxl"] = "nano"
    """Shapes of what is built with random weights."""
    vae: str | None = None
    """Folder whose `vae` is used where `start` is null."""
    text_encoders: str | None = None
    """Folder whose tokenizers and text encoders are used where `start` is null."""
    adapter: AdapterConfig | None = None
    """A small change to train in place of the networks, which stay as they are; null trains these."""

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
        """The folder that has the VAE; null if there is none yet."""
        return self.vae or self.start


class Checkpoints(Config):
    """When the run is saved."""

    every_images: int = Field(default=50_000, gt=0)
    """Images between saves; a kill loses at most these."""
    keep: int = Field(default=2, ge=2)
    """Checkpoints on disk. The new one is complete before the oldest goes."""
    milestone_images: int | None = Field(default=None, gt=0)
    """Beside those, the first checkpoint after each multiple of this is kept for good; null, none."""


class Validation(Config):
    """Loss on held-out images, with the same noise and timesteps every time."""

    every_images: int = Field(default=50_000, gt=0)
    """Images between measurements; the first and the last step are always measured."""
    images: int = Field(default=256, gt=0)
    """Held-out images used."""


class Preview(Config):
    """Images of fixed prompts, by the schedule that is trained."""

    every_images: int = Field(default=100_000, gt=0)
    """Images between previews."""
    prompts: tuple[str, ...] = ()
    """One image each; none, no previews."""
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
    """Micro-batches per optimizer step, over all processes: a recipe means the same on any number of them."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the networks' arithmetic; loss and averages are float32."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Number format in which what is trained is stored; `bf16` rounds each step stochastically."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass computes again instead of keeping: nothing; norms and activation functions (`selective`);
    the wide feed-forward layers as well (`selective_ff`); everything inside a block (`full`). Same gradients."""
    compile: bool = False
    """Whether transformer and residual blocks are compiled: minutes at the start, one variant for each bucket."""
    loader_threads: int = Field(default=2, ge=0)
    """Threads that read ahead; 0 reads in the loop. No influence on the numbers."""
    learning_rate: LearningRate = LearningRate()
    """Learning rate by images seen."""
    optimizer: Optimizer = AdamW()
    """How gradients become steps."""
    ema: Ema = ConstantEma()
    """The averaged weights."""
    guards: Guards = Guards()
    """Steps that are left out."""
    parallel: Parallel = Parallel()
    """What several processes divide between them."""
    checkpoints: Checkpoints = Checkpoints()
    """Saving."""
    validation: Validation = Validation()
    """Measuring."""
    preview: Preview = Preview()
    """Looking."""

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
    """Everything a run depends on."""

    run: RunConfig = RunConfig()
    """Where the run lives."""
    model: ModelConfig = ModelConfig()
    """What it begins from."""
    data: DataConfig
    """What it learns from."""
    objective: Objective = Diffusion()
    """What it is asked to do."""
    training: Training = Training()
    """How it gets there."""

    @model_validator(mode="after")
    def _adapts_a_unet(self) -> Recipe:
        if self.model.adapter is not None and not isinstance(self.objective, Diffusion):
            raise ValueError(f"model.adapter is for the objective diffusion, and this is {self.objective.kind}")
        return self
