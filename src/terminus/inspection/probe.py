"""`terminus inspect --probe`: what a network predicts, asked of the network and not of its labels.

It is shown pure noise at the last timestep, with an empty caption, and two numbers are read off its answers.

The slope of the answer on the noise tells the target. Epsilon is the noise itself: 1. Velocity is
alpha epsilon - sigma x0 (Salimans & Ho 2202.00512), hence -x0 where alpha is 0, of which the noise says nothing: 0.
A rectified flow is epsilon - x0, so its slope is 1 as well: these two the labels must tell apart.
Where alpha is 0.068, as at the end of SDXL's own schedule, it is that at most. A correlation would divide by the size
of the answer, which is small for velocity, and so make much of little.

The leak tells the schedule of a velocity network. Under a schedule that ends at alpha > 0 the last latent of a white
image is brighter than that of a black one, by 2 alpha times half their difference d, and a network learns to answer
with that brightness (Lin et al. 2305.08891, section 3.1). So alpha d is added to the noise and taken from it: the
answer moves by d where the network has learned so, and not at all where it was trained on pure noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.inspection.findings import Probe
from terminus.model.components import Components, load_components
from terminus.model.detect import read_evidence, weigh
from terminus.model.record import Prediction, Schedule, noise_schedule
from terminus.model.unet import predict
from terminus.model.vae import to_signal
from terminus.model.weights import resolve
from terminus.runtime import pick_device, rng

Answer = Callable[[Float[Tensor, "1 c h w"]], Float[Tensor, "1 c h w"]]
SEEDS = 4
_LARGEST = 512
"""Pixels of a side; more would only take longer."""
_EPSILON, _VELOCITY = 0.8, 0.2
_LEAKS, _TIGHT = 0.3, 0.2
"""Above the first and below the second something is said, between them nothing."""
_VELOCITY_ENDINGS = {
    True: ", trained on pure noise (zero terminal SNR)",
    False: ", trained on noise that hides an image's brightness (no zero terminal SNR)",
    None: "; whether at zero terminal SNR cannot be told",
}


def probe(model: str) -> Probe:
    """Loads a model and asks it; UserError for what is no model. It takes 8 calls of the UNet."""
    # The labels decide how the network is run, and are then compared with what it answers.
    path = resolve(model)
    labelled = weigh(*read_evidence(path)).schedule
    components = load_components(model, labelled).to(pick_device())
    answer, brightness = seam_probe(components, labelled.timesteps - 1)
    shape = (1, *brightness.shape)
    noises = [torch.randn(shape, generator=rng(seed, 0, "probe")).to(brightness.device) for seed in range(SEEDS)]
    return conclude(str(path), *measure_leak(answer, noises, brightness), labelled)


def measure_leak(
    answer: Answer, noises: list[Float[Tensor, "1 c h w"]], brightness: Float[Tensor, "c h w"]
) -> tuple[list[float], float]:
    """The slope of each noise, and the mean leak; `brightness` is half the way from black to white in latents."""
    slopes: list[float] = []
    leaks: list[float] = []
    shift = float(NoiseSchedule.scaled_linear().alpha[-1]) * brightness
    # The mean of both answers has the slope, and their difference the leak.
    for noise in noises:
        above, below = answer(noise + shift), answer(noise - shift)
        middle = _centred(above + below) / 2
        slopes.append(float((middle * _centred(noise)).sum() / _centred(noise).square().sum()))
        leaks.append(float((below - above).mul(brightness).sum() / (2 * brightness.square().sum())))
    return slopes, sum(leaks) / len(leaks)


def conclude(path: str, slopes: list[float], leak: float, labelled: Schedule) -> Probe:
    """The finding in words, which say no more than the numbers do."""
    prediction: Prediction | None = None
    zero_terminal: bool | None = None
    looks_like = "neither epsilon nor velocity"
    # Every seed must agree; between the bounds nothing is said.
    if min(slopes) > _EPSILON and labelled.prediction == "flow":
        looks_like = "flow, or another target that holds the noise, such as epsilon"
    elif min(slopes) > _EPSILON:
        prediction, zero_terminal = "epsilon", False
        looks_like = "epsilon, or another target that holds the noise, such as flow matching"
    elif max(map(abs, slopes)) < _VELOCITY:
        prediction, zero_terminal = "velocity", _ends_in_noise(leak)
        looks_like = f"velocity{_VELOCITY_ENDINGS[zero_terminal]}"
    conflicts = _conflicts(prediction, zero_terminal, labelled)
    return Probe(
        "probe", path, looks_like, sum(slopes) / len(slopes), tuple(slopes),
        leak if prediction == "velocity" else None, prediction, zero_terminal, conflicts,
    )  # fmt: skip


def _ends_in_noise(leak: float) -> bool | None:
    """Whether a velocity network was trained at zero terminal SNR; None where the leak lies between."""
    if leak > _LEAKS:
        return False
    return True if abs(leak) < _TIGHT else None


def _conflicts(prediction: Prediction | None, zero_terminal: bool | None, labelled: Schedule) -> tuple[str, ...]:
    if prediction not in (None, labelled.prediction):
        return (f"the labels say {labelled.prediction}, the network's answers look like {prediction}",)
    if zero_terminal not in (None, labelled.zero_terminal):
        words = {True: "zero terminal SNR", False: "no zero terminal SNR"}
        answer = "that" if zero_terminal else "none"
        return (f"the labels say {words[labelled.zero_terminal]}, the network's answers look like {answer}",)
    return ()


def _centred(x: Tensor) -> Tensor:
    """Without the mean of each channel, which is the image's and not the noise's."""
    return x - x.mean((-2, -1), keepdim=True)


def seam_probe(components: Components, timestep: int) -> tuple[Answer, Float[Tensor, "c h w"]]:
    """The network at one timestep as a function of the latent, and half the way from black to white in latents."""
    # Sides of whole steps of 8 latents, so that the UNet can halve them three times.
    vae, unet, device = components.vae, components.unet, components.text_encoders.device
    side = min(components.native_pixels, _LARGEST) // (8 * vae.factor) * 8 * vae.factor
    channels = unet.config["in_channels"]
    if side == 0 or channels < vae.channels:
        raise UserError(f"A UNet with {channels} input channels and images of {side} pixels cannot be probed")
    # Half the way from black to white, and the empty caption.
    with torch.no_grad():
        black, white = (
            vae.encode(to_signal(torch.full((1, 3, side, side), level, dtype=torch.uint8)).to(device))
            for level in (0, 255)
        )
        half = [vae.latents(moments, torch.zeros_like(moments.mean))[0] / 2 for moments in (white, black)]
        brightness = half[0] - half[1]
        text = components.text_encoders.encode([""])
    # Inpainting is asked to repaint everything: the mask is 1, and nothing is known.
    more = torch.zeros(1, channels - vae.channels, *brightness.shape[1:], device=device)
    more[:, :1] = 1
    ids = time_ids([MicroConditioning.uncropped(Size(side, side))], device)
    t = noise_schedule(components.record.schedule).network_time(torch.tensor([timestep], device=device))

    def answer(x: Tensor) -> Tensor:
        with torch.no_grad():
            return predict(unet, torch.cat([x, more], dim=1), t, text, ids)

    return answer, brightness
