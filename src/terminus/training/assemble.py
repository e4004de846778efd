"""From a recipe to the parts of a run: the step, the rows it reads, and the model that will be written.

One function per objective; each checks the recipe against the checkpoint before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from terminus import runtime
from terminus.data.loader import LatentRows, Rows
from terminus.data.pixels import PixelRows
from terminus.data.settings import DataConfig
from terminus.data.store import View
from terminus.diffusion import weighting
from terminus.diffusion.objective import EpsilonObjective, Objective, VelocityObjective, huber_widths
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.timesteps import density
from terminus.errors import UserError
from terminus.model.architecture import ARCHITECTURES
from terminus.model.codec import build_codec, load_codec, to_signal
from terminus.model.components import Components, save_components
from terminus.model.text import build_towers, build_vision
from terminus.model.towers import load_tokenizer, load_towers, load_vision, save_towers, save_vision
from terminus.model.weights import resolve, save_module
from terminus.sampling.schedule import noise_schedule
from terminus.training.adapting import TrainedAdapter, attach
from terminus.training.begin import begin
from terminus.training.codec_step import CodecStep
from terminus.training.objectives import (
    Autoencoding,
    Constant,
    Contrast,
    Debiased,
    Diffusion,
    Huber,
    MinSnr,
    SoftMinSnr,
)
from terminus.training.recipe import Recipe
from terminus.training.speed import trainable
from terminus.training.step import DiffusionStep, Step
from terminus.training.together import Together
from terminus.training.towers_step import ContrastiveModel, TowersStep


@dataclass(frozen=True)
class Parts:
    """What the loop and its hooks need."""

    step: Step
    train: Rows
    held_out: Rows
    table: str
    """The table that the rows come from: "latents" or "images"."""
    export: Callable[[Path, int], None]
    """Writes the finished model into a folder, told how many images this run has seen."""
    components: Components | None = None
    """The whole model, where there is one to preview."""


def table_of(recipe: Recipe) -> str:
    """The table that this objective reads."""
    return "latents" if isinstance(recipe.objective, Diffusion) else "images"


def assemble(recipe: Recipe, view: View) -> Parts:
    """Builds or loads everything; `view` is the pinned version of the objective's table."""
    torch.manual_seed(runtime.key(recipe.training.seed, 0, "initial weights"))
    device = runtime.pick_device(recipe.run.device)
    match recipe.objective:
        case Diffusion() as objective:
            return _diffusion(recipe, objective, view, device)
        case Autoencoding() as objective:
            return _codec(recipe, objective, view, device)
        case Contrast() as objective:
            return _towers(recipe, objective, view, device)


def _diffusion(recipe: Recipe, objective: Diffusion, view: View, device: torch.device) -> Parts:
    components = begin(recipe.model, objective)
    adapter = _adapter(recipe, objective, components)
    components = components.to(device)
    trainable(components.unet, device)
    schedule = noise_schedule(components.record.schedule)
    training = recipe.training
    step = DiffusionStep(
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
        together=_together(components, objective),
    )
    if adapter is not None:
        adapter.freeze()
    before = components.record
    parent = (recipe.model.start,) if recipe.model.start else ()

    def export(folder: Path, images: int) -> None:
        record = replace(
            before,
            weighting=objective.weighting.model_dump(),
            caption_dropout=objective.caption_dropout,
            images_seen=before.images_seen + images,
            parents=before.parents + parent,
            licence=recipe.run.licence,
            native_pixels=recipe.data.resolution,
        )
        whole = replace(components, record=record)
        if adapter is None:
            save_components(whole, folder)
            return
        with adapter.merged():
            save_components(whole, folder)
        adapter.write(whole, folder / "adapter", recipe.run.name)

    spec, codec = recipe.data.transform.spec, components.codec.id
    train, held_out = _splits(recipe.data, lambda split: LatentRows(view, codec, spec, split, recipe.data.crops))
    return Parts(step, train, held_out, "latents", export, components)


def _codec(recipe: Recipe, objective: Autoencoding, view: View, device: torch.device) -> Parts:
    model = recipe.model
    codec = load_codec(model.start) if model.start else build_codec(ARCHITECTURES[model.architecture])
    trainable(codec.vae, device)
    step = CodecStep(
        codec=codec,
        squared_weight=objective.squared_weight,
        edge_weight=objective.edge_weight,
        kl_weight=objective.kl_weight,
        seed=recipe.training.seed,
        device=device,
        precision=recipe.training.precision,
    )
    train, held_out = _splits(recipe.data, lambda split: PixelRows(view, recipe.data.transform.spec, split))

    def export(folder: Path, images: int) -> None:
        # The scale that gives latents unit variance over data the codec has not learned by heart.
        batch = held_out.read(0, range(min(256, held_out.sizes[0])), range(256), 0)
        with torch.no_grad():
            latents = codec.encode(to_signal(batch.values)).mean
        codec.vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
        save_module(codec.vae, folder / "vae", torch.float16)

    return Parts(step, train, held_out, "images", export)


def _towers(recipe: Recipe, objective: Contrast, view: View, device: torch.device) -> Parts:
    architecture = ARCHITECTURES[recipe.model.architecture]
    folder = resolve(objective.tokenizers)
    if recipe.model.start:
        start = resolve(recipe.model.start)
        text, vision = load_towers(start), load_vision(start / "vision")
    else:
        text = build_towers(
            architecture, (load_tokenizer(folder / "tokenizer"), load_tokenizer(folder / "tokenizer_2"))
        )
        if architecture.vision is None:
            raise UserError(
                f"The architecture {recipe.model.architecture} has no vision tower to train text towers against",
                where="model.architecture",
                fix="Set model.start to a folder with text towers and a vision tower, or build nano",
            )
        vision = build_vision(architecture)
    model = (
        ContrastiveModel(text, vision, cast(int, text.tower_2.config.projection_dim)).to(device).requires_grad_(True)
    )
    train, held_out = _splits(recipe.data, lambda split: PixelRows(view, recipe.data.transform.spec, split))

    def export(folder: Path, images: int) -> None:
        save_towers(text, folder, torch.float16)
        save_vision(vision, folder / "vision", torch.float16)

    step = TowersStep(model, recipe.training.seed, device, recipe.training.precision)
    return Parts(step, train, held_out, "images", export)


def _splits(data: DataConfig, rows: Callable[[str], Rows]) -> tuple[Rows, Rows]:
    """The rows to train on and those held out; neither may be empty."""
    train, held_out = rows("train"), rows("validation")
    if not train.sizes:
        raise UserError(
            f"There are no train rows for this codec and transform ({data.transform.spec})",
            where=data.store,
            rule="Latents are tied to the codec and the geometry that made them; others are never used in their place",
            fix="Run `terminus prepare` with this recipe",
        )
    if not held_out.sizes:
        raise UserError(
            f"No image is held out of training (data.validation_fraction is {data.validation_fraction})",
            where=data.store,
            rule="Every run is measured on images that it does not learn",
            fix="Raise data.validation_fraction and run `terminus prepare` with this recipe",
        )
    return train, held_out


def _adapter(recipe: Recipe, objective: Diffusion, components: Components) -> TrainedAdapter | None:
    settings = recipe.model.adapter
    if settings is None:
        return None
    return attach(components, settings, objective.train_text == "both", recipe.training.seed)


def _together(components: Components, objective: Diffusion) -> Together | None:
    text = components.text
    if objective.train_text == "none":
        return None
    return Together(components.unet, text.tower_1, text.tower_2, objective.text_rate)


def build_objective(settings: Diffusion, schedule: NoiseSchedule) -> Objective:
    """The loss that these settings describe, on this schedule."""
    build = EpsilonObjective if settings.prediction == "epsilon" else VelocityObjective
    huber = None
    if isinstance(settings.loss, Huber):
        huber = huber_widths(schedule, settings.loss.c, settings.loss.schedule)
    return build(schedule, weights(settings, schedule), huber)


def weights(settings: Diffusion, schedule: NoiseSchedule) -> torch.Tensor:
    """The weight of each timestep, float64 [T]."""
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


def _density(settings: Diffusion, schedule: NoiseSchedule) -> torch.Tensor | None:
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
