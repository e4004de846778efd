"""Who trains: our loop, and one of diffusers' classes the way its script for SDXL goes, on the same rows in one order.

Both have a network of their own with the same weights. The other one is given what a script could hardly have better:
latents and captions' features in memory as tensors, and autocast without the layers that a launcher puts around it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.task import PARTS, MadeRows, Task
from terminus import runtime
from terminus.bench.measure import Laps
from terminus.data.batch import Batch
from terminus.data.loader import Loader
from terminus.data.order import Order
from terminus.model.components import Components
from terminus.model.record import scheduler_config
from terminus.model.text import TextEncoders, TextFeatures
from terminus.model.unet import UNet
from terminus.training.loop import Hooks, State, run_loop
from terminus.training.networks.execution import run_as, trainable
from terminus.training.objectives import MinSnr
from terminus.training.optim.ema import Average
from terminus.training.optim.optimizer import AdamW, LearningRate, build_optimizer
from terminus.training.optim.weight_formats import store_weights
from terminus.training.saving.checkpoint import RunPosition
from terminus.training.steps.diffusion import diffusion_step


@dataclass(frozen=True)
class _TextEncoders(TextEncoders):
    """Text encoders that say when they begin and end, and that may have learned their answers by heart."""

    laps: Laps
    known: dict[str, TextFeatures] = field(default_factory=dict[str, TextFeatures])

    def encode(self, captions: Sequence[str]) -> TextFeatures:
        """As text encoders do."""
        self.laps.lap("prepare")
        features = self._known(captions) if self.known else super().encode(captions)
        self.laps.lap("text")
        return features

    def learn(self, captions: Sequence[str]) -> None:
        """Keeps the features of these captions on the CPU, from which training will take them."""
        with torch.no_grad():
            for caption in captions:
                features = super().encode([caption])
                self.known[caption] = TextFeatures(features.context.cpu(), features.pooled.cpu())

    def _known(self, captions: Sequence[str]) -> TextFeatures:
        joined = TextFeatures.join([self.known[caption] for caption in captions])
        return TextFeatures(joined.context.to(self.device), joined.pooled.to(self.device))


def _watched(text: TextEncoders, laps: Laps) -> _TextEncoders:
    return _TextEncoders(text.tokenizer_1, text.tokenizer_2, text.text_encoder_1, text.text_encoder_2, laps)


@dataclass(frozen=True)
class _WatchedLoader(Loader):
    """A loader that tells how long the loop waits for it."""

    laps: Laps = field(kw_only=True)

    def steps(self, start: int, stop: int) -> Generator[list[Batch]]:
        """As a loader does."""
        with closing(super().steps(start, stop)) as stream:
            for batches in stream:
                self.laps.lap("data")
                yield batches


class Ours:
    """`training.loop.run_loop`, as a run calls it, without journal and checkpoints."""

    name = "terminus"

    def __init__(self, task: Task) -> None:
        training = task.recipe.training
        self.laps = laps = Laps(task.device, PARTS)
        self.losses: list[float] = []
        components = task.components().to(task.device)
        rows = task.rows(components)
        text_encoders = _watched(components.text_encoders, laps)
        if task.cached_text:
            text_encoders.learn(rows.captions)
        self.components = replace(components, text_encoders=text_encoders)
        # The other drops captions before it starts, and knows neither bands nor further noise.
        plain = {"caption_dropout": 0.0, "offset_noise": 0.0, "input_perturbation": 0.0, "timestep_bands": ()}
        objective = task.objective.model_copy(update=plain)
        self.step = diffusion_step(self.components, objective, training, task.device)
        module = self.step.trained
        trainable(module, task.device)
        store_weights(module, training.weights)
        run_as(module, training.activation_checkpointing, training.compile)
        # Nothing is averaged where the other does not either; then the copy must not count as the device's memory.
        ema = training.ema if task.keep_average else training.ema.model_copy(
            update={"device": "cpu", "every_steps": 2**62}
        )  # fmt: skip
        optimizer = build_optimizer(module, training.optimizer, training.seed)
        self.state = State(RunPosition(0, 0, 0.0), Average(module, ema), optimizer)
        self.average_here = task.keep_average and training.ema.device == "model"
        rate = training.learning_rate.max
        self.training = training.model_copy(update={"learning_rate": LearningRate(max=rate, min=rate)})
        self.loader = _WatchedLoader(rows, task.order(), training.accumulation, training.loader_threads, laps=laps)
        self.hooks = _hooks(laps, self.losses)
        _watch(module, laps)

    def run(self, steps: int) -> object:
        """Runs that many optimizer steps, from where it stands."""
        until = (self.state.position.step + steps) * self.training.global_batch
        settings = self.training.model_copy(update={"images": until})
        run_loop(self.step, self.state, self.loader, settings, self.hooks)
        return self.state.position

    def state_bytes(self) -> int:
        """On the device."""
        text = self.components.text_encoders
        modules = [self.components.unet, self.components.vae.autoencoder, text.text_encoder_1, text.text_encoder_2]
        average = 4 * sum(value.numel() for value in self.state.average.tensors.values()) if self.average_here else 0
        return _bytes(modules, self.state.optimizer) + average


def _watch(module: nn.Module, laps: Laps) -> None:
    def before(*_: object) -> None:
        laps.lap("prepare")

    def after(*_: object) -> None:
        laps.lap("forward")

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _hooks(laps: Laps, losses: list[float]) -> Hooks:
    def validate(position: RunPosition) -> None:
        laps.lap("optimizer")

    def checkpoint(position: RunPosition, now: bool) -> None:
        laps.lap("rest")

    return Hooks(
        validate=validate,
        record=lambda row: losses.append(row.loss),
        checkpoint=checkpoint,
        stop_asked=lambda: False,
        go_back=lambda state: None,
        alive=lambda: laps.lap("backward"),
    )


class _Precomputed(Dataset[dict[str, Any]]):
    """A data set of the entries that the script's mapped one holds of each image."""

    def __init__(self, rows: MadeRows, latents: Tensor, features: Sequence[TextFeatures] | None) -> None:
        self.rows, self.latents, self.features = rows, latents, features

    def __getitem__(self, index: int) -> dict[str, Any]:
        size = self.rows.size
        row: dict[str, Any] = {
            "latents": self.latents[index],
            "caption": self.rows.captions[index],
            "time_ids": torch.tensor([*size.original, *size.crop, *size.target]),
        }
        if self.features:
            row["context"], row["pooled"] = self.features[index].context[0], self.features[index].pooled[0]
        return row


class Theirs:
    """Eager; DDPMScheduler's noise and velocity; min-SNR of `compute_snr`; AdamW; sizes in the networks' format."""

    name = "diffusers"

    def __init__(self, task: Task) -> None:
        training = task.recipe.training
        self.task, self.laps = task, Laps(task.device, PARTS)
        self.losses: list[float] = []
        self.dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
        components = task.components()
        rows = task.rows(components)
        self.unet: UNet = components.unet
        nn.Module.to(self.unet, task.device).requires_grad_(True).train()
        self.scheduler = cast(Any, DDPMScheduler).from_config(_ddpm(components))
        if training.activation_checkpointing != "none":
            self.unet.enable_gradient_checkpointing()
        settings = training.optimizer if isinstance(training.optimizer, AdamW) else AdamW()
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=training.learning_rate.max, betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay, eps=settings.epsilon,
        )  # fmt: skip
        self.clip_norm = settings.clip_norm
        self.average: Any = None
        if task.keep_average:
            self.average = EMAModel(self.unet.parameters(), model_cls=UNet, model_config=self.unet.config)
            self.average.to(task.device)
        self.text_encoders, features = self._text(components, rows)
        latents = components.vae.scale * rows.posterior[:, 0]
        self.stream = _stream(_Precomputed(rows, latents, features), task.order())
        self.noise: Callable[[Tensor], Tensor] = torch.randn_like
        self.timesteps: Callable[[int], Tensor] = self._any_timesteps

    def run(self, steps: int) -> object:
        """Runs that many optimizer steps."""
        training = self.task.recipe.training
        for _ in range(steps):
            loss = sum(self._micro_batch() for _ in range(training.accumulation)) / training.accumulation
            nn.utils.clip_grad_norm_(self.unet.parameters(), self.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.step(self.unet.parameters())
            self.laps.lap("optimizer")
            self.losses.append(loss)
        return self.losses

    def _micro_batch(self) -> float:
        laps, device, to = self.laps, self.task.device, self.scheduler
        laps.lap("rest")
        batch = next(self.stream)
        laps.lap("data")
        latents = batch["latents"].to(device)
        noise, t = self.noise(latents), self.timesteps(len(latents)).to(device)
        noisy = to.add_noise(latents, noise, t).to(self.dtype)
        ids = batch["time_ids"].to(device, self.dtype)
        laps.lap("prepare")
        if self.text_encoders is None:
            context, pooled = (batch[name].to(device, self.dtype) for name in ("context", "pooled"))
        else:
            with torch.no_grad():
                features = self.text_encoders.encode(batch["caption"])
            context, pooled = features.context.to(self.dtype), features.pooled.to(self.dtype)
        laps.lap("text")
        with runtime.autocast(device, self.task.recipe.training.precision):
            call = cast(Callable[..., tuple[Tensor]], self.unet)
            added = {"text_embeds": pooled, "time_ids": ids}
            predicted = call(noisy, t, context, added_cond_kwargs=added, return_dict=False)[0]
        laps.lap("forward")
        velocity = self.task.objective.prediction == "velocity"
        target = to.get_velocity(latents, noise, t) if velocity else noise
        loss = self._weighted(predicted.float(), target.float(), t)
        shown = loss.detach().item()  # for its progress bar, before the backward pass
        (loss / self.task.recipe.training.accumulation).backward()
        laps.lap("backward")
        return shown

    def _weighted(self, predicted: Tensor, target: Tensor, t: Tensor) -> Tensor:
        weighting, velocity = self.task.objective.weighting, self.task.objective.prediction == "velocity"
        if not isinstance(weighting, MinSnr):
            return functional.mse_loss(predicted, target)
        snr = compute_snr(self.scheduler, t)
        weights = snr.clamp(max=weighting.gamma) / (snr + 1 if velocity else snr)
        each = functional.mse_loss(predicted, target, reduction="none")
        return (each.mean(dim=list(range(1, each.ndim))) * weights).mean()

    def _text(self, components: Components, rows: MadeRows) -> tuple[TextEncoders | None, list[TextFeatures] | None]:
        """Text encoders that run in every step, or what they said before the first."""
        text_encoders = components.text_encoders
        for text_encoder in (text_encoders.text_encoder_1, text_encoders.text_encoder_2):
            nn.Module.to(text_encoder, self.task.device, self.dtype)
        if not self.task.cached_text:
            return text_encoders, None
        with torch.no_grad():
            made = [text_encoders.encode([caption]) for caption in rows.captions]
        for text_encoder in (text_encoders.text_encoder_1, text_encoders.text_encoder_2):
            nn.Module.to(text_encoder, "cpu")
        return None, [TextFeatures(one.context.cpu(), one.pooled.cpu()) for one in made]

    def _any_timesteps(self, count: int) -> Tensor:
        return torch.randint(0, self.scheduler.config.num_train_timesteps, (count,))

    def state_bytes(self) -> int:
        """On the device."""
        text_encoders = (
            [] if self.text_encoders is None else [self.text_encoders.text_encoder_1, self.text_encoders.text_encoder_2]
        )
        shadows = [] if self.average is None else self.average.shadow_params
        return _bytes([self.unet, *text_encoders], self.optimizer) + sum(shadow.nbytes for shadow in shadows)


def _ddpm(components: Components) -> dict[str, Any]:
    """The configuration of the model's schedule, as far as this scheduler knows it."""
    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "clip_sample")
    config = scheduler_config(components.record.schedule)
    names = (*known, "rescale_betas_zero_snr", "timestep_spacing")
    return {name: config[name] for name in names}


def _stream(rows: _Precomputed, order: Order) -> Iterator[dict[str, Any]]:
    """Read in the process that trains, as the script does unless told otherwise."""

    def batches() -> Generator[list[int]]:
        index = 0
        while True:
            yield list(order[index].rows)
            index += 1

    return iter(DataLoader(rows, batch_sampler=cast(Any, batches())))


def _bytes(modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> int:
    weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    return weights + sum(value.nbytes for value in states if isinstance(value, Tensor))
