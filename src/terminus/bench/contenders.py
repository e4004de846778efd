"""Who draws: Terminus, and diffusers' pipeline with the same weights, scheduler and settings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from torch import nn

from terminus.bench.measure import NetworkProbes
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.architecture import ARCHITECTURES
from terminus.model.components import Components, load_components
from terminus.model.execution import Running, prepare_for_inference
from terminus.model.record import Record, scheduler_config
from terminus.model.text import build_text_encoders
from terminus.model.text_encoders import load_tokenizer
from terminus.model.unet import build_unet
from terminus.model.vae import build_vae
from terminus.model.vocabulary import clip_tokenizers
from terminus.model.weights import SHIPPED, resolve
from terminus.sampling.api import Terminus
from terminus.sampling.settings import Settings

PROMPT = "a 3d render of a red apple on a white background"
RANDOM = "random:"
"""random:sdxl is a model of SDXL's shapes with random weights: as fast as a real one, and no download."""


@dataclass(frozen=True)
class Work:
    """One run: `batch` images of one prompt, with guidance, by Euler."""

    size: Size
    steps: int = 28
    batch: int = 1
    guidance: float = 4.0
    rescale: float = 0.7
    solver: str = "euler"


@dataclass(frozen=True)
class Contender:
    """A way to draw the work: `run` returns when the images are there."""

    name: str
    run: Callable[[], object]
    networks: NetworkProbes


def components_of(model: str, device: torch.device) -> Components:
    """A model's components, in float32, or random ones, made on the device."""
    if not model.startswith(RANDOM):
        return load_components(model)
    name = model.removeprefix(RANDOM)
    if name not in ARCHITECTURES:
        raise UserError(f"There is no architecture {name!r}", rule=f"Known: {', '.join(sorted(ARCHITECTURES))}")
    architecture, folder = ARCHITECTURES[name], SHIPPED["nano"]
    short = (load_tokenizer(folder / "tokenizer"), load_tokenizer(folder / "tokenizer_2"))
    tokenizers = short if architecture.positions < 77 else clip_tokenizers()
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        unet, vae, text = (
            build_unet(architecture),
            build_vae(architecture),
            build_text_encoders(architecture, tokenizers),
        )
    for module in (unet, vae.autoencoder, text.text_encoder_1, text.text_encoder_2):
        cast(Any, module).eval().requires_grad_(False)
    return Components(unet, vae, text, Record())


def ours(model: str, components: Components, work: Work, device: torch.device, running: Running) -> Contender:
    """Terminus, as its users call it: images with metadata at the end."""
    networks = NetworkProbes(
        [components.text_encoders.text_encoder_1, components.text_encoders.text_encoder_2],
        components.unet,
        components.vae.autoencoder,
    )
    prepared = prepare_for_inference(components, device, running)
    terminus = Terminus(prepared, Path(model) if model.startswith(RANDOM) else resolve(model))
    settings = Settings(
        steps=work.steps,
        guidance=work.guidance,
        rescale=work.rescale,
        solver=work.solver,
        size=work.size,
        precision=running.on(device).precision,
    )

    def run() -> object:
        drawings = terminus.stream(PROMPT, count=work.batch, settings=settings)
        return [drawing.images() for drawing in drawings if drawing.finished]

    return Contender("terminus", run, networks)


def diffusers(model: str, components: Components, work: Work, device: torch.device, running: Running) -> Contender:
    """diffusers' pipeline as its manual says, on weights of its own, in the same number format."""
    dtype = torch.bfloat16 if running.on(device).precision == "bf16" else torch.float32
    pipeline: Any = _pipeline(model, components, dtype)
    pipeline.set_progress_bar_config(disable=True)
    if running.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if running.compile == "blocks":
        pipeline.unet.compile_repeated_blocks(dynamic=False)
    elif running.compile == "graphs":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.unet.forward = torch.compile(pipeline.unet.forward, mode="reduce-overhead", dynamic=False)

    def run() -> object:
        return pipeline(
            [PROMPT] * work.batch,
            negative_prompt=[""] * work.batch,
            width=work.size.width,
            height=work.size.height,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance,
            guidance_rescale=work.rescale,
            generator=[torch.Generator().manual_seed(seed) for seed in range(work.batch)],
        ).images

    networks = NetworkProbes([pipeline.text_encoder, pipeline.text_encoder_2], pipeline.unet, pipeline.vae)
    return Contender("diffusers", run, networks)


def _pipeline(model: str, components: Components, dtype: torch.dtype) -> object:
    """From the folder, where there is one; else of copies of our networks, before they are prepared."""
    if not model.startswith(RANDOM) and (folder := resolve(model)).is_dir():
        return StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype)
    text = components.text_encoders
    vae, unet, first, second = (
        nn.Module.to(copy.deepcopy(cast(nn.Module, module)), dtype=dtype)
        for module in (components.vae.autoencoder, components.unet, text.text_encoder_1, text.text_encoder_2)
    )
    schedule = components.record.schedule
    kind = DPMSolverMultistepScheduler if schedule.prediction == "flow" else EulerDiscreteScheduler
    scheduler = kind.from_config(scheduler_config(schedule))
    return StableDiffusionXLPipeline(
        vae=cast(Any, vae),
        text_encoder=cast(Any, first),
        text_encoder_2=cast(Any, second),
        tokenizer=text.tokenizer_1,
        tokenizer_2=text.tokenizer_2,
        unet=cast(Any, unet),
        scheduler=cast(Any, scheduler),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
