"""The autoencoder: pixels <-> moments <-> latents. The scale factor lives here and nowhere else.

What is stored on disk are raw moments (mean and log-variance before any scale), so a change of scale factor
costs nothing and each epoch can draw another sample of the same image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from terminus.model.architecture import Architecture
from terminus.model.tiling import Tiling, in_tiles


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over raw latents."""

    mean: Float[Tensor, "batch channels height width"]
    logvar: Float[Tensor, "batch channels height width"]

    def sample(
        self, noise: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Raw latents: mean + std * noise."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class VAE:
    """Pixels are in [-1, 1], RGB, channels first; latents are scaled to about unit variance."""

    def __init__(self, vae: AutoencoderKL, tiling: Tiling | None = None) -> None:
        self.autoencoder = vae
        self.tiling = tiling or Tiling()
        self.device: torch.device | None = None
        """Where it runs; None is where its weights are. (They may wait elsewhere for their turn: `model.execution`.)"""

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis."""
        return 2 ** (len(cast(list[int], self.autoencoder.config["block_out_channels"])) - 1)

    @property
    def channels(self) -> int:
        return cast(int, self.autoencoder.config["latent_channels"])

    @property
    def scale(self) -> float:
        """Multiplies raw latents on their way to the UNet, centred ones where it has a `centre`."""
        return float(self.autoencoder.config["scaling_factor"])

    @property
    def centre(self) -> tuple[Float[Tensor, "channels 1 1"], Float[Tensor, "channels 1 1"]] | None:
        """Mean and standard deviation of each channel of raw latents, for the few VAEs that record them."""
        mean, std = self.autoencoder.config["latents_mean"], self.autoencoder.config["latents_std"]
        if mean is None or std is None:
            return None
        return torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    @property
    def id(self) -> str:
        """16 hex digits of a hash over weights and shape, but not the scale: cached raw moments outlive it."""
        # A list in either case: built in memory it is a tuple, read from JSON a list, and their texts differ.
        shape = list(cast(list[int], self.autoencoder.config["block_out_channels"]))
        digest = hashlib.sha256(repr(shape).encode())
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            # Hashed in half precision: a shipped fp16 file and the fp32 weights it is loaded into are one VAE.
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Posterior:
        """Raw moments in float32; log-variance clamped to [-30, 20] as in the LDM code."""
        factor, tiling = self.factor, self.tiling

        def run(part: Tensor) -> Tensor:
            return cast(Any, self.autoencoder.encode(part)).latent_dist.parameters

        here = self._placed(pixels)
        if pixels.shape[-2] * pixels.shape[-1] > tiling.whole:
            # Tiles begin and end on whole latents.
            tile, overlap = (side // factor * factor for side in (tiling.side, tiling.overlap))
            made = in_tiles(run, _norms(self.autoencoder.encoder), here, tile, overlap, 1 / factor)
        else:
            made = run(here).to(torch.float32)
        mean, logvar = made.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def latents(self, posterior: Posterior, noise: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        """Scaled latents, one sample of the moments: what diffusion calls x0."""
        raw = posterior.sample(noise)
        if self.centre is not None:
            mean, std = (table.to(raw) for table in self.centre)
            raw = (raw - mean) / std
        return raw * self.scale

    def decode(self, latents: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Pixels in about [-1, 1], float32, not clamped."""
        decoder = cast(Callable[..., tuple[Tensor]], self.autoencoder.decode)
        factor, tiling = self.factor, self.tiling

        def run(part: Tensor) -> Tensor:
            return decoder(part, return_dict=False)[0]

        # The inverse of `latents`.
        raw = latents / self.scale
        if self.centre is not None:
            mean, std = (table.to(raw) for table in self.centre)
            raw = raw * std + mean
        raw = self._placed(raw)
        if raw.shape[-2] * raw.shape[-1] * factor**2 > tiling.whole:
            tile, overlap = tiling.side // factor, tiling.overlap // factor
            return in_tiles(run, _norms(self.autoencoder.decoder), raw, tile, overlap, float(factor))
        return run(raw).to(torch.float32)

    def _placed(self, x: Tensor) -> Tensor:
        weight = next(self.autoencoder.parameters())
        return x.to(self.device or weight.device, weight.dtype)


def _norms(network: nn.Module) -> list[nn.GroupNorm]:
    return [module for module in network.modules() if isinstance(module, nn.GroupNorm)]


def to_signal(pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Bytes to the range of the VAE, -1..1."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def build_vae(architecture: Architecture) -> VAE:
    """A VAE with random weights (from the global torch generator) and scale 1."""
    shape = architecture.vae
    levels = len(shape.channels)
    build = cast(Callable[..., AutoencoderKL], AutoencoderKL)  # annotated with one-element tuples
    vae = build(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers_per_level,
        latent_channels=shape.latent_channels,
        norm_num_groups=shape.norm_groups,
        sample_size=shape.pixels,
        scaling_factor=1.0,
        force_upcast=False,
    )
    if shape.isometric:
        keep_lengths(vae)
    return VAE(vae)


def keep_lengths(vae: AutoencoderKL) -> None:
    """Random weights (from the global torch generator) with which training begins at an image instead of at gray.

    Residual and attention blocks begin as the identity, what stands between them is orthogonal, and the posterior
    begins narrow. As torch draws them, each of some fifteen layers in a row shrinks its input to a third of its
    variance, and the posterior's noise is as large as the latents.
    """
    for name, module in vae.named_modules():
        layer = name.rpartition(".")[2]
        if not isinstance(module, nn.Conv2d) and not name.endswith("to_out.0"):
            continue
        if layer == "conv1":
            continue  # the first layer of a residual block: its second one is zero
        if layer in ("conv2", "0"):
            nn.init.zeros_(cast(Tensor, module.weight))
        else:
            # SiLU, in front of the last layer of either half, keeps about a third of the variance.
            nn.init.orthogonal_(cast(Tensor, module.weight), 1.7 if layer == "conv_out" else 1.0)
        nn.init.zeros_(cast(Tensor, module.bias))
    # The log-variance begins at -6, a spread of 0.05.
    posterior = cast(nn.Conv2d, vae.quant_conv)
    logvar = slice(posterior.out_channels // 2, None)
    with torch.no_grad():
        posterior.weight[logvar] *= 0.1
        assert posterior.bias is not None
        posterior.bias[logvar] = -6.0
