"""Text to image. A generator, so that previews, progress and cancelling come for free.

What the network predicts and on which schedule is the checkpoint's own record, never a setting: a model that is
sampled as something it is not draws grey fog without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from terminus import runtime
from terminus.conditioning import MicroConditioning, time_ids
from terminus.diffusion.objective import Network
from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.text import TextFeatures
from terminus.model.unet import predict
from terminus.sampling import grid
from terminus.sampling.denoiser import Denoiser, epsilon_denoiser, velocity_denoiser
from terminus.sampling.guidance import classifier_free, rescaled
from terminus.sampling.schedule import noise_schedule
from terminus.sampling.settings import SEEDS, Settings
from terminus.sampling.solvers import SOLVERS, Noise, Step

_DECODED_PIXELS = 2**20
"""Pixels decoded at once: the autoencoder needs far more memory per pixel than the UNet."""


def text2img(
    components: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    negative: str = "",
    visited: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Latents step by step, one picture per (prompt, seed); the last step's `x` is the picture.

    A picture depends on its prompt and seed alone, not on the batch that it is made in: each has its own noise.
    `visited` are timesteps in place of `grid.timesteps`; evaluation samples wrongly on purpose.
    UserError, before the first step, for what this model cannot do.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: one seed per prompt")
    _check_inputs(components, [*prompts, negative], seeds)
    size = settings.size_for(components)
    schedule = noise_schedule(components.record.schedule)
    steps = visited or grid.timesteps(settings.steps, schedule.timesteps)
    denoise = _denoiser(_guided(components, prompts, negative, settings), components, schedule)
    factor = components.codec.factor
    shape = (components.codec.channels, size.height // factor, size.width // factor)
    noise = _noise(seeds, shape, components.text.device)
    return SOLVERS[settings.solver](denoise, schedule, noise(-1), steps, noise)


def to_bytes(components: Components, latents: Float[Tensor, "batch c h w"]) -> UInt8[Tensor, "batch height width 3"]:
    """Latents to pictures, on the CPU."""
    area = latents.shape[-2] * latents.shape[-1] * components.codec.factor**2
    with torch.no_grad():
        parts = [components.codec.decode(part) for part in latents.split(max(1, _DECODED_PIXELS // area))]
    pixels = torch.cat(parts).clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _guided(components: Components, prompts: Sequence[str], negative: str, settings: Settings) -> Network:
    """The UNet with its prompts and guidance inside: (x, t) → one prediction per picture."""
    device, precision = components.text.device, settings.precision_for(components)
    guided, rescale = settings.guidance != 1.0, settings.rescale_for(components)
    captions = [*prompts, *[negative] * (len(prompts) if guided else 0)]
    with torch.no_grad(), runtime.autocast(device, precision):
        distinct = list(dict.fromkeys(captions))
        encoded, rows = components.text.encode(distinct), [distinct.index(caption) for caption in captions]
    text = TextFeatures(encoded.context[rows], encoded.pooled[rows])
    ids = time_ids([MicroConditioning.uncropped(settings.size_for(components))] * len(captions), device)

    def network(x: Tensor, t: Tensor) -> Tensor:
        copies = 2 if guided else 1
        with torch.no_grad(), runtime.autocast(device, precision):
            output = predict(components.unet, x.repeat(copies, 1, 1, 1), t.repeat(copies), text, ids)
        if not guided:
            return output
        conditional, unconditional = output.chunk(2)
        return rescaled(classifier_free(conditional, unconditional, settings.guidance), conditional, rescale)

    return network


def _denoiser(network: Network, components: Components, schedule: NoiseSchedule) -> Denoiser:
    make: Callable[[Network, NoiseSchedule], Denoiser] = velocity_denoiser
    if components.record.schedule.prediction == "epsilon":
        if schedule.is_zero_terminal:
            raise UserError(
                "This model says that it predicts epsilon on a zero-terminal-SNR schedule",
                where="scheduler/scheduler_config.json",
                rule="At the last timestep there is no signal to recover from epsilon, so one of the two is wrong",
                fix="Set prediction_type to v_prediction, or rescale_betas_zero_snr to false, as it was trained",
            )
        make = epsilon_denoiser
    return make(network, schedule)


def _noise(seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> Noise:
    """Noise for a solver's step; the initial latent is step −1. Drawn on the CPU: every device draws the same."""

    def noise(index: int) -> Float[Tensor, "batch c h w"]:
        rows = [torch.randn(shape, generator=runtime.rng(seed, index + 1, "sampling")) for seed in seeds]
        return torch.stack(rows).to(device)

    return noise


def _check_inputs(components: Components, captions: Sequence[str], seeds: Sequence[int]) -> None:
    channels = cast(int, components.unet.config["in_channels"])
    if channels != components.codec.channels:
        raise UserError(
            f"This UNet reads {channels} channels, so it needs more than a prompt",
            rule=f"Text to image needs a UNet of {components.codec.channels} channels",
        )
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise UserError(f"seed {seed}", rule="A seed is a whole number from 0 to 2^63 - 1")
    for caption in captions:
        if not caption.isascii() and any("\ud800" <= char <= "\udfff" for char in caption):
            raise UserError(f"{caption!r} is not valid text", rule="Prompts are Unicode; write them in UTF-8")
