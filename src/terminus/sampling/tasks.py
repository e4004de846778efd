"""Text to image. A generator, so that previews, progress and cancelling come for free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from terminus import runtime
from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.model.components import Components
from terminus.model.text import TextFeatures
from terminus.model.unet import predict
from terminus.sampling import grid
from terminus.sampling.denoiser import velocity_denoiser
from terminus.sampling.guidance import classifier_free, rescaled
from terminus.sampling.schedule import noise_schedule
from terminus.sampling.solvers import SOLVERS, Step


@dataclass(frozen=True)
class Settings:
    """How pictures are made; the defaults are those of the command line and the Python API."""

    steps: int = 28
    guidance: float = 4.0
    rescale: float = 0.7
    """Guidance rescale (Lin et al., section 3.4)."""
    solver: str = "dpmpp_2m"
    size: Size | None = None
    """Pixels; None is the size that the model was trained on."""
    precision: runtime.Precision = "fp32"


def text2img(
    components: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    negative: str = "",
) -> Iterator[Step]:
    """Latents step by step, one picture per (prompt, seed).

    A picture depends on its prompt and seed alone, not on the batch that it is made in: each has its own noise.
    """
    device = components.text.device
    side = components.native_pixels
    size = settings.size or Size(side, side)
    factor = components.codec.factor
    shape = (components.codec.channels, size.height // factor, size.width // factor)

    def noise(index: int) -> Float[Tensor, "batch c h w"]:
        """Fresh noise for solver step `index`; the initial latent is step -1."""
        rows = [torch.randn(shape, generator=runtime.rng(seed, index + 1, "sampling")) for seed in seeds]
        return torch.stack(rows).to(device)

    with torch.no_grad(), runtime.autocast(device, settings.precision):
        text = TextFeatures.join([components.text.encode(prompts), components.text.encode([negative] * len(prompts))])
    ids = time_ids([MicroConditioning.uncropped(size)] * (2 * len(prompts)), device)

    def network(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad(), runtime.autocast(device, settings.precision):
            both = predict(components.unet, x.repeat(2, 1, 1, 1), t.repeat(2), text, ids)
        conditional, unconditional = both.chunk(2)
        guided = classifier_free(conditional, unconditional, settings.guidance)
        return rescaled(guided, conditional, settings.rescale)

    schedule = noise_schedule(components.record.schedule)
    denoise = velocity_denoiser(network, schedule)
    steps = grid.timesteps(settings.steps, schedule.timesteps)
    return SOLVERS[settings.solver](denoise, schedule, noise(-1), steps, noise)


def to_bytes(components: Components, latents: Float[Tensor, "batch c h w"]) -> Tensor:
    """Latents to pictures: uint8 [batch, height, width, 3]."""
    with torch.no_grad():
        pixels = components.codec.decode(latents)
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
