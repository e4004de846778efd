"""From a recipe to the parts of a run: the step, the rows it reads, and the model that will be written.

One function per objective; each checks the recipe against the checkpoint before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from terminus import runtime
from terminus.data.batch import Rows
from terminus.data.latent_rows import LatentRows
from terminus.data.pixels import PixelRows
from terminus.data.settings import DataConfig
from terminus.data.store import View
from terminus.errors import UserError
from terminus.model.adapter_keys import networks
from terminus.model.architecture import ARCHITECTURES
from terminus.model.components import Components, load_text_encoders, load_vae, save_components
from terminus.model.text import build_text_encoders, build_vision
from terminus.model.text_encoders import load_tokenizer, load_vision, save_text_encoders, save_vision
from terminus.model.vae import build_vae, to_signal
from terminus.model.weights import resolve, save_module
from terminus.training.initial_model import begin
from terminus.training.networks.adapter import TrainedAdapter, attach_adapter
from terminus.training.networks.execution import trainable
from terminus.training.networks.frozen_weights import store_frozen
from terminus.training.objectives import Autoencoding, Contrastive, Diffusion
from terminus.training.recipe import Recipe
from terminus.training.step import TrainingStep
from terminus.training.steps.diffusion import diffusion_step
from terminus.training.steps.text_encoders import ContrastiveModel, TextEncodersStep
from terminus.training.steps.vae import VAEStep


@dataclass(frozen=True)
class TrainingSetup:
    """The parts of a run that the loop and its hooks need."""

    step: TrainingStep
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


def assemble(recipe: Recipe, view: View) -> TrainingSetup:
    """Builds or loads everything; `view` is the pinned version of the objective's table."""
    # Before anything is built: random initial weights follow from the recipe's seed.
    torch.manual_seed(runtime.key(recipe.training.seed, 0, "initial weights"))
    device = runtime.pick_device(recipe.run.device)
    match recipe.objective:
        case Diffusion() as objective:
            return _diffusion(recipe, objective, view, device)
        case Autoencoding() as objective:
            return _vae(recipe, objective, view, device)
        case Contrastive() as objective:
            return _text_encoders(recipe, objective, view, device)


def _diffusion(recipe: Recipe, objective: Diffusion, view: View, device: torch.device) -> TrainingSetup:
    # The networks, with an adapter in them if one is trained.
    components = begin(recipe.model, objective)
    adapter = _adapter(recipe, objective, components)
    components = components.to(device)

    # Gradients of all networks that are trained; an adapter's run takes them back from all but the adapter.
    trainable(components.unet, device)
    step = diffusion_step(components, objective, recipe.training, device)
    if adapter is not None:
        adapter.freeze()
    # What is not trained is stored as autocast multiplies it; the export puts back what was loaded.
    frozen = store_frozen(networks(components).values(), recipe.training.precision)
    before = components.record
    parent = (recipe.model.start,) if recipe.model.start else ()

    def export(folder: Path, images: int) -> None:
        # The finished model's record: that of the model it began from, with what this run adds.
        record = replace(
            before,
            weighting=objective.weighting.model_dump(),
            caption_dropout=objective.caption_dropout,
            images_seen=before.images_seen + images,
            parents=before.parents + parent,
            licence=recipe.run.licence or before.licence,
            native_pixels=recipe.data.resolution,
        )
        # The whole model: weights as they were loaded, with the adapter's change worked into them.
        whole = replace(components, record=record)
        with frozen.as_loaded(), adapter.merged() if adapter else nullcontext():
            save_components(whole, folder)
        # The adapter alone, for other programs.
        if adapter is not None:
            adapter.write(whole, folder / "adapter", recipe.run.name)

    spec, vae = recipe.data.transform.spec, components.vae.id
    train, held_out = _splits(recipe.data, lambda split: LatentRows(view, vae, spec, split, recipe.data.crops))
    return TrainingSetup(step, train, held_out, "latents", export, components)


def _vae(recipe: Recipe, objective: Autoencoding, view: View, device: torch.device) -> TrainingSetup:
    model = recipe.model
    vae = load_vae(model.start) if model.start else build_vae(ARCHITECTURES[model.architecture])
    trainable(vae.autoencoder, device)
    step = VAEStep(
        vae=vae,
        squared_weight=objective.squared_weight,
        edge_weight=objective.edge_weight,
        kl_weight=objective.kl_weight,
        seed=recipe.training.seed,
        device=device,
        precision=recipe.training.precision,
    )
    train, held_out = _splits(recipe.data, _pixels(recipe.data, view))

    def export(folder: Path, images: int) -> None:
        # The scale that gives latents unit variance over data the VAE has not learned by heart.
        batch = held_out.read(0, range(min(256, held_out.sizes[0])), range(256), 0)
        with torch.no_grad():
            latents = vae.encode(to_signal(batch.values)).mean
        scale = round(1.0 / latents.std().item(), 5)
        # One factor for all channels: what the configuration said of each channel was of the weights before.
        vae.autoencoder.register_to_config(scaling_factor=scale, latents_mean=None, latents_std=None)
        save_module(vae.autoencoder, folder / "vae", torch.float16)

    return TrainingSetup(step, train, held_out, "images", export)


def _text_encoders(recipe: Recipe, objective: Contrastive, view: View, device: torch.device) -> TrainingSetup:
    architecture = ARCHITECTURES[recipe.model.architecture]
    # Text encoders and vision encoder: a checkpoint's, or random weights beside tokenizers from a folder.
    if recipe.model.start:
        start = _folder(recipe.model.start, "model.start", "text encoders and vision encoder")
        text, vision = load_text_encoders(start), load_vision(start / "vision")
    else:
        folder = _folder(objective.tokenizers, "objective.tokenizers", "tokenizer and tokenizer_2")
        text = build_text_encoders(
            architecture, (load_tokenizer(folder / "tokenizer"), load_tokenizer(folder / "tokenizer_2"))
        )
        if architecture.vision is None:
            raise UserError(
                f"The architecture {recipe.model.architecture} has no vision encoder to train text encoders against",
                where="model.architecture",
                fix="Set model.start to a folder with text encoders and a vision encoder, or build nano",
            )
        vision = build_vision(architecture)
    model = (
        ContrastiveModel(text, vision, cast(int, text.text_encoder_2.config.projection_dim))
        .to(device)
        .requires_grad_(True)
    )
    train, held_out = _splits(recipe.data, _pixels(recipe.data, view))

    def export(folder: Path, images: int) -> None:
        save_text_encoders(text, folder, torch.float16)
        save_vision(vision, folder / "vision", torch.float16)

    step = TextEncodersStep(model, recipe.training.seed, device, recipe.training.precision)
    return TrainingSetup(step, train, held_out, "images", export)


def _pixels(data: DataConfig, view: View) -> Callable[[str], Rows]:
    """The pixels of each split: one cut of each image."""
    if data.crops > 1:
        raise UserError(
            f"data.crops is {data.crops}, and this objective reads pixels",
            where="data.crops",
            rule="Several crops of an image are made for latents only; a VAE and text encoders train on one of each",
            fix="Set data.crops to 1.",
        )
    return lambda split: PixelRows(view, data.transform.spec, split)


def _folder(name: str, where: str, parts: str) -> Path:
    folder = resolve(name)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a single file",
            where=where,
            rule=f"{parts} are read from a folder",
            fix="Name a model's folder, or make one of the file with `terminus convert`",
        )
    return folder


def _splits(data: DataConfig, rows: Callable[[str], Rows]) -> tuple[Rows, Rows]:
    """The rows to train on and those held out; neither may be empty."""
    train, held_out = rows("train"), rows("validation")
    if not train.sizes:
        raise UserError(
            f"There are no train rows for this VAE and transform ({data.transform.spec})",
            where=data.store,
            rule="Latents are tied to the VAE and the geometry that made them; others are never used in their place",
            fix="Run `terminus prepare` with this recipe",
        )
    if not held_out.sizes:
        raise UserError(
            f"No image is held out of training (data.validation_fraction is {data.validation_fraction})",
            where=data.store,
            rule="Every run measures its loss on images that it does not train on",
            fix="Raise data.validation_fraction and run `terminus prepare` with this recipe",
        )
    return train, held_out


def _adapter(recipe: Recipe, objective: Diffusion, components: Components) -> TrainedAdapter | None:
    settings = recipe.model.adapter
    if settings is None:
        return None
    return attach_adapter(components, settings, objective.train_text_encoders == "both", recipe.training.seed)
