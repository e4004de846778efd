"""Text to image, image to image and inpainting: one task, which differs in where it starts and what it may change.

    start       pure noise, or an image with as much noise on it as the first timestep has
    change      everything, or what a mask says: the rest is what it is at every step

A generator of steps, so that previews, progress and cancelling come for free. What the network predicts and on which
schedule is the checkpoint's own record, never a setting: a model that is sampled as something it is not draws grey fog
without an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from terminus import runtime
from terminus.conditioning import Size
from terminus.diffusion.objective import Network
from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.record import noise_schedule
from terminus.model.vae import to_signal
from terminus.sampling import grid
from terminus.sampling.canvas import Canvas, Mask
from terminus.sampling.controls import LoadedControls
from terminus.sampling.denoiser import Denoiser, Prediction, epsilon_denoiser, velocity_denoiser
from terminus.sampling.masks import cells
from terminus.sampling.network import channels, network
from terminus.sampling.settings import ImageRequest, Settings
from terminus.sampling.solvers import SOLVERS, Noise, Step
from terminus.sampling.tiles import tiled

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
    """Latents step by step, one image per (prompt, seed); the last step's `x` is the image.

    `visited` are timesteps in place of the settings' own; evaluation samples wrongly on purpose.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: one seed per prompt")
    requests = [ImageRequest(prompt, seed, negative) for prompt, seed in zip(prompts, seeds, strict=True)]
    return generate(components, requests, settings, visited=visited)


def generate(
    components: Components,
    requests: Sequence[ImageRequest],
    settings: Settings,
    canvas: Canvas | None = None,
    strength: float = 1.0,
    tile: tuple[int, int] | None = None,
    visited: Sequence[int] | None = None,
    control_inputs: LoadedControls | None = None,
) -> Iterator[Step]:
    """One image per request: from noise, or from `canvas` by `strength` (at 1 only what its mask keeps is used).

    An image depends on its request alone, not on the batch that it is made in: each has its own noise. `tile` is
    (size, overlap) in latents for images larger than the network's. UserError, before the first step, for what this
    model cannot do.
    """
    # Refuse what this model cannot do, before anything is computed.
    masked = canvas is not None and canvas.mask is not None
    _check_tiles(control_inputs, tile)
    _check(components, masked)

    # Timesteps by the checkpoint's own schedule, and the noise that is the start or is put on the start.
    size = settings.size_for(components) if canvas is None else canvas.size
    schedule = noise_schedule(components.record.schedule)
    steps = visited or visited_timesteps(components, settings, strength)
    factor = components.vae.factor
    shape = (components.vae.channels, size.height // factor, size.width // factor)
    noise = _noise(requests, settings.variation, shape, components.text_encoders.device)
    x = start = noise(-1)
    seen = _seen_size(size, tile, factor)

    # Text to image: from pure noise.
    if canvas is None:
        denoise = _denoiser(network(components, requests, settings, seen, None, control_inputs), components, schedule)
        return SOLVERS[settings.solver](denoise, schedule, x, steps, noise)

    # Image to image: x_t = alpha x0 + sigma epsilon at the first timestep. At strength 1 nothing of the image is used.
    original = latents(components, _signal(canvas))
    if strength < 1.0:
        x = float(schedule.alpha[steps[0]]) * original + float(schedule.sigma[steps[0]]) * start

    # Inpainting: a UNet made for it reads mask and image; for any other the part that stays is held at every step.
    reads_image = channels(components) != shape[0]
    known = _known_channels(components, canvas, canvas.mask) if canvas.mask is not None and reads_image else None
    run = network(components, requests, settings, seen, known, control_inputs)
    denoise = _denoiser(run if tile is None else tiled(run, *tile), components, schedule)
    if canvas.mask is not None and not reads_image:
        mask = cells(canvas.mask, factor).to(start.device)
        denoise = keeping(denoise, schedule, original, mask, start)
    return SOLVERS[settings.solver](denoise, schedule, x, steps, noise)


def _check_tiles(control_inputs: LoadedControls | None, tile: tuple[int, int] | None) -> None:
    if control_inputs and tile is not None:
        raise UserError(
            "Control images cannot be combined with upscaling in tiles",
            rule="Every tile would be steered by the whole control image",
            fix="Leave the controls out, or draw in one piece: image to image with a size, or a second pass",
        )


def _seen_size(size: Size, tile: tuple[int, int] | None, factor: int) -> Size:
    """The size that the network sees at once, in pixels: of the image, or of a tile of it."""
    if tile is None:
        return size
    side = tile[0] * factor
    return Size(min(size.height, side), min(size.width, side))


def visited_timesteps(components: Components, settings: Settings, strength: float = 1.0) -> Sequence[int]:
    """The timesteps that a task visits: the later ones, where it starts from an image."""
    schedule = noise_schedule(components.record.schedule)
    return grid.tail(grid.for_solver(settings.solver, settings.spacing, settings.steps, schedule), strength)


def keeping(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    known: Float[Tensor, "1 c h w"],
    mask: Float[Tensor, "1 1 h w"],
    noise: Float[Tensor, "batch c h w"],
) -> Denoiser:
    """A denoiser that is right about the part of the image that stays: mask 0.

    There x is `known` under `noise`, whatever the solver made of it, and x0 and epsilon are those two: so every solver,
    of any order, moves that part along its true path, and ends on it.
    """

    def run(x: Tensor, t: int) -> Prediction:
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        prediction = denoise(torch.lerp(alpha * known + sigma * noise, x, mask), t)
        return Prediction(
            torch.lerp(known.expand_as(x), prediction.x0, mask), torch.lerp(noise, prediction.epsilon, mask)
        )

    return run


def latents(components: Components, signal: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "1 c h w"]:
    """The latent of an image in -1..1: the mean of the VAE's posterior, so that an image has one latent."""
    with torch.no_grad():
        posterior = components.vae.encode(signal)
    return components.vae.latents(posterior, torch.zeros_like(posterior.mean))


def to_bytes(components: Components, latents: Float[Tensor, "batch c h w"]) -> UInt8[Tensor, "batch height width 3"]:
    """Images of these latents, on the CPU."""
    area = latents.shape[-2] * latents.shape[-1] * components.vae.factor**2
    with torch.no_grad():
        parts = [components.vae.decode(part) for part in latents.split(max(1, _DECODED_PIXELS // area))]
    pixels = torch.cat(parts).clamp(-1, 1)
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _known_channels(components: Components, canvas: Canvas, mask: Mask) -> Float[Tensor, "1 c h w"]:
    """Further channels for an inpainting UNet: the mask, and the latent of the image with grey behind the mask."""
    hidden = latents(components, _signal(canvas) * ~mask)
    return torch.cat([cells(mask, components.vae.factor).to(hidden.device), hidden], dim=1)


def _signal(canvas: Canvas) -> Float[Tensor, "1 3 height width"]:
    return to_signal(canvas.pixels.permute(2, 0, 1)[None])


def _denoiser(run: Network, components: Components, schedule: NoiseSchedule) -> Denoiser:
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
    return make(run, schedule)


def _noise(
    requests: Sequence[ImageRequest], variation: float, shape: tuple[int, int, int], device: torch.device
) -> Noise:
    """Noise for a solver's step; the initial latent is step −1. Drawn on the CPU: every device draws the same.

    With a variation v the initial noise is cos(v π/2) of the seed's and sin(v π/2) of another: normal at every v.
    """
    angle = variation * math.pi / 2

    def first(request: ImageRequest) -> Tensor:
        own = torch.randn(shape, generator=runtime.rng(request.seed, 0, "sampling"))
        if not variation:
            return own
        other = torch.randn(shape, generator=runtime.rng(request.seed, request.variation, "variation"))
        return math.cos(angle) * own + math.sin(angle) * other

    def noise(index: int) -> Float[Tensor, "batch c h w"]:
        if index < 0:
            return runtime.sent(torch.stack([first(request) for request in requests]), device)
        # A generator for each image and step, so that the batch decides nothing.
        rows = [torch.randn(shape, generator=runtime.rng(one.seed, index + 1, "sampling")) for one in requests]
        return runtime.sent(torch.stack(rows), device)

    return noise


def _check(components: Components, masked: bool) -> None:
    have, plain = channels(components), components.vae.channels
    if have != plain and not (masked and have == 2 * plain + 1):
        raise UserError(
            f"This UNet reads {have} channels, so it needs more than a prompt",
            rule=f"Text to image needs a UNet of {plain} channels; one of {2 * plain + 1} inpaints: image and mask",
        )
