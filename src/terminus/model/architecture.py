"""The shapes of the networks: `sdxl` as published, and `nano` and its kin, the same classes small enough for a laptop.

Two invariants tie the parts together and are derived, never typed twice: the UNet's cross-attention width is
the sum of the text encoders' widths, and its `text_time` input is six embedded numbers next to the pooled text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class UNetShape:
    """One entry per resolution level; the first level has no attention, as in SDXL."""

    channels: tuple[int, ...]
    transformer_layers: tuple[int, ...]
    heads: tuple[int, ...]
    layers_per_level: int
    norm_groups: int
    size_embedding: int
    """Width of the sinusoidal embedding of each of the six micro-conditioning numbers."""
    latent_size: int
    in_channels: int = 4


@dataclass(frozen=True)
class VAEShape:
    """The autoencoder: its spatial factor is 2 ** (levels - 1)."""

    channels: tuple[int, ...]
    layers_per_level: int
    norm_groups: int
    latent_channels: int
    pixels: int
    isometric: bool = False
    """Whether random weights begin as `vae.keep_lengths` makes them, or as torch draws them."""

    @property
    def factor(self) -> int:
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextEncoderShape:
    """A CLIP text encoder. `projection` is the width of the shared image-text space."""

    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    projection: int


@dataclass(frozen=True)
class VisionShape:
    """A CLIP vision encoder, kept for evaluation."""

    width: int
    layers: int
    heads: int
    patch: int
    pixels: int


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the networks with random weights."""

    unet: UNetShape
    vae: VAEShape
    text_encoder_1: TextEncoderShape
    text_encoder_2: TextEncoderShape
    vision: VisionShape | None
    positions: int
    """Tokens a prompt may have, begin and end included."""

    @property
    def context_width(self) -> int:
        return self.text_encoder_1.width + self.text_encoder_2.width

    @property
    def text_time_width(self) -> int:
        return 6 * self.unet.size_embedding + self.text_encoder_2.projection


SDXL = Architecture(
    unet=UNetShape(
        channels=(320, 640, 1280),
        transformer_layers=(1, 2, 10),
        heads=(5, 10, 20),
        layers_per_level=2,
        norm_groups=32,
        size_embedding=256,
        latent_size=128,
    ),
    vae=VAEShape(channels=(128, 256, 512, 512), layers_per_level=2, norm_groups=32, latent_channels=4, pixels=1024),
    text_encoder_1=TextEncoderShape(
        width=768, layers=12, heads=12, hidden=3072, activation="quick_gelu", projection=768
    ),
    text_encoder_2=TextEncoderShape(width=1280, layers=32, heads=20, hidden=5120, activation="gelu", projection=1280),
    vision=None,
    positions=77,
)

NANO = Architecture(
    unet=UNetShape(
        channels=(64, 128, 160),
        transformer_layers=(1, 1, 1),
        heads=(2, 4, 5),
        layers_per_level=1,
        norm_groups=16,
        size_embedding=32,
        latent_size=16,
    ),
    vae=VAEShape(channels=(24, 48, 64), layers_per_level=1, norm_groups=8, latent_channels=4, pixels=64),
    text_encoder_1=TextEncoderShape(width=128, layers=3, heads=4, hidden=384, activation="quick_gelu", projection=128),
    text_encoder_2=TextEncoderShape(width=128, layers=3, heads=4, hidden=384, activation="gelu", projection=128),
    vision=VisionShape(width=128, layers=4, heads=4, patch=8, pixels=64),
    positions=32,
)

NANO128 = replace(
    NANO,
    unet=replace(NANO.unet, in_channels=16),
    # One group in each norm: with two channels to a group a norm takes away the hue of a plain image.
    vae=VAEShape(
        channels=(8, 16, 48, 96), layers_per_level=1, norm_groups=1, latent_channels=16, pixels=128, isometric=True
    ),
)
"""128 pixels on nano's 16 x 16 latents, with four times as many channels in them."""

NANO_SMALL = replace(NANO, unet=replace(NANO.unet, channels=(32, 64, 96), heads=(1, 2, 3)))
"""nano's latents and text encoders with a third of its UNet's parameters: for experiments of many runs."""

ARCHITECTURES = {"sdxl": SDXL, "nano": NANO, "nano-small": NANO_SMALL, "nano128": NANO128}
