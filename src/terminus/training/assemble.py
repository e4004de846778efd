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
from terminus.diffusion.objective import VelocityObjective
from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.model.architecture import ARCHITECTURES
from terminus.model.codec import build_codec, load_codec, to_signal
from terminus.model.components import Components, check_widths, load_components, save_components
from terminus.model.record import Record, Schedule
from terminus.model.text import build_towers, build_vision
from terminus.model.towers import load_tokenizer, load_towers, load_vision, save_towers, save_vision
from terminus.model.unet import build_unet
from terminus.model.weights import resolve, save_module
from terminus.sampling.schedule import noise_schedule
from terminus.training.codec_step import CodecStep
from terminus.training.objectives import Autoencoding, Contrast, Diffusion, MinSnr
from terminus.training.recipe import ModelConfig, Recipe
from terminus.training.step import DiffusionStep, Step
from terminus.training.towers_step import ContrastiveModel, TowersStep

Views = Callable[[str], View]
"""The pinned version of the table "images" or "latents"."""


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
    components = _components(recipe.model, objective).to(device)
    trainable(components.unet, device)
    schedule = noise_schedule(components.record.schedule)
    training = recipe.training
    step = DiffusionStep(
        components=components,
        objective=VelocityObjective(schedule, weights(objective, schedule)),
        seed=training.seed,
        global_batch=training.global_batch,
        stratified=objective.timesteps == "stratified",
        caption_dropout=objective.caption_dropout,
        device=device,
        precision=training.precision,
    )
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
        save_components(replace(components, record=record), folder)

    spec, codec = recipe.data.transform.spec, components.codec.id
    train, held_out = _splits(recipe.data, lambda split: LatentRows(view, codec, spec, split))
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


def trainable(module: torch.nn.Module, device: torch.device) -> None:
    """Turns gradients on, and puts convolutions into the layout that the device computes fastest in."""
    torch.nn.Module.to(module, device).requires_grad_(True)
    if device.type == "cuda":  # on a CPU oneDNN chooses its own blocked layout, and channels last is slower
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def weights(objective: Diffusion, schedule: NoiseSchedule) -> torch.Tensor:
    """The weight of each timestep, float64 [T]."""
    choice = objective.weighting
    if isinstance(choice, MinSnr):
        return weighting.min_snr(schedule.snr, choice.gamma, choice.form, choice.floor)
    return weighting.constant(schedule.snr) if choice.kind == "constant" else weighting.debiased(schedule.snr)


def _components(model: ModelConfig, objective: Diffusion) -> Components:
    if model.start is not None:
        components = load_components(model.start)
        _agree(model.start, components.record.schedule, objective)
        return components
    if model.codec is None or model.text is None:
        raise UserError(
            "A UNet from random weights needs a codec and text towers",
            where="model",
            rule="model.codec and model.text name the folders they come from when model.start is null",
            fix="Set both, or set model.start",
        )
    text_folder = resolve(model.text)
    vision = load_vision(text_folder / "vision") if (text_folder / "vision").is_dir() else None
    record = Record(schedule=Schedule(zero_terminal=objective.zero_terminal_snr))
    unet, text = build_unet(ARCHITECTURES[model.architecture]), load_towers(text_folder)
    check_widths(unet, text, model.text)
    return Components(unet, load_codec(model.codec), text, record, vision)


def _agree(start: str, stored: Schedule, objective: Diffusion) -> None:
    """What trains is what samples: a recipe may not contradict its checkpoint."""
    conflicts = [
        f"{name}: the checkpoint says {have}, the recipe says {want}"
        for name, have, want in (
            ("objective.prediction", stored.prediction, objective.prediction),
            ("objective.zero_terminal_snr", stored.zero_terminal, objective.zero_terminal_snr),
        )
        if have != want
    ]
    if conflicts:
        raise UserError(
            f"The recipe and its checkpoint disagree ({'; '.join(conflicts)})",
            where=start,
            rule="Prediction and schedule are read from the checkpoint and never silently overridden",
            fix="Change the recipe to what the checkpoint is, or start from another model",
        )
