"""The held-out error by timestep, image by image: before and after are pairs of the same image, noise and timestep.

Training logs means over many draws; here every image has the same noise at the same timesteps for every model, so that
the interval of a difference is that of the pairs and not of the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import hypot

import numpy as np
import torch
from jaxtyping import Float

from terminus import runtime
from terminus.conditioning import Size
from terminus.diffusion.prediction import noised, velocity
from terminus.evaluation.captions import Captions, ImageSource
from terminus.evaluation.luminance import Mean, mean_of
from terminus.model.components import Components
from terminus.model.record import noise_schedule
from terminus.model.vae import to_signal
from terminus.sampling.denoiser import epsilon_denoiser, velocity_denoiser
from terminus.sampling.network import network
from terminus.sampling.requests import ImageRequest
from terminus.sampling.settings import Settings, nearest_size
from terminus.sampling.tasks import latents

BANDS = 10
DEFINITION = (
    "mean squared error of the velocity that a prediction implies, with the caption and without guidance, at the "
    "middle of each tenth of the timesteps and at the last one; the same noise for all, `difference` is of pairs"
)
Errors = Float[np.ndarray, "_ _"]
"""[image, timestep]."""


@dataclass(frozen=True)
class BandError:
    """One timestep."""

    timestep: int
    error: Mean
    before: Mean | None
    """The parent's; null without one that draws the same latents."""
    difference: Mean | None
    """After minus before, over pairs."""


def band_timesteps(T: int) -> list[int]:
    """The middles of ten bands, and the last timestep."""
    return [(2 * band + 1) * T // (2 * BANDS) for band in range(BANDS)] + [T - 1]


def band_errors(
    components: Components, captions: Captions, settings: Settings, advance: Callable[[int], None]
) -> Errors:
    """Of every caption that has a real image, at each of `band_timesteps`."""
    schedule = noise_schedule(components.record.schedule)
    make = epsilon_denoiser if components.record.schedule.prediction == "epsilon" else velocity_denoiser
    plain = Settings(guidance=1.0, precision=settings.precision)
    rows: list[list[float]] = []
    for item, image in zip(captions.items, captions.images, strict=True):
        x0 = _latent(components, image)
        size = Size(*(side * components.vae.factor for side in x0.shape[-2:]))
        run = network(components, [ImageRequest(item.prompt, item.seed)], plain, size)
        denoise = make(run, schedule)
        row: list[float] = []
        for t in band_timesteps(components.record.schedule.timesteps):
            alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
            noise = torch.randn(x0.shape, generator=runtime.rng(item.seed, t, "band")).to(x0.device)
            found = denoise(noised(x0, noise, alpha, sigma), t)
            # A flow's error in the same units: velocity at the same SNR, where alpha² + sigma² = 1.
            scale = hypot(alpha, sigma) if schedule.flow else 1.0
            a, b = alpha / scale, sigma / scale
            wrong = velocity(found.x0, found.epsilon, a, b) - velocity(x0, noise, a, b)
            row.append(float((wrong * wrong).mean()))
        rows.append(row)
        advance(1)
    return np.array(rows)


def compare_bands(T: int, own: Errors, before: Errors | None) -> tuple[BandError, ...]:
    """One row per timestep; the parent's errors only where they are of as many images and timesteps."""
    paired = before if before is not None and before.shape == own.shape else None
    found: list[BandError] = []
    for place, t in enumerate(band_timesteps(T)):
        old = None if paired is None else paired[:, place]
        found.append(
            BandError(
                timestep=t,
                error=mean_of(own[:, place]),
                before=None if old is None else mean_of(old),
                difference=None if old is None else mean_of(own[:, place] - old),
            )
        )
    return tuple(found)


def _latent(components: Components, image: ImageSource) -> torch.Tensor:
    """Of the image, cut to the nearest size that the model draws."""
    size = nearest_size(Size(*image.shape[:2]), components)
    cut = image[: size.height, : size.width]
    pixels = torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1)[None]
    return latents(components, to_signal(pixels)).to(components.text_encoders.device)


def has_bands(captions: Captions | None) -> bool:
    """Whether there are held-out images to measure on."""
    return captions is not None and len(captions.images) > 0
