"""The networks with random weights: what the shapes promise, and where training begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from terminus.model.architecture import ARCHITECTURES, NANO, NANO128
from terminus.model.unet import build_unet
from terminus.model.vae import VAE, build_vae


@pytest.mark.parametrize("name", ["nano", "nano-small", "nano128"])
def test_vae_and_unet_fit_each_other(name: str):
    architecture = ARCHITECTURES[name]
    vae, unet = build_vae(architecture), build_unet(architecture)
    pixels = torch.zeros(1, 3, architecture.vae.pixels, architecture.vae.pixels)
    with torch.no_grad():
        moments = vae.encode(pixels)
        decoded = vae.decode(moments.mean)
    size = architecture.unet.latent_size
    assert moments.mean.shape == (1, unet.config["in_channels"], size, size)
    assert unet.config["in_channels"] == unet.config["out_channels"] == vae.channels
    assert decoded.shape == pixels.shape


def test_nano_begins_where_it_did():
    """The shipped nano is repeated from its recipes only while the same seed gives the same weights."""
    torch.manual_seed(0)
    vae = build_vae(NANO).autoencoder
    assert vae.decoder.conv_out.weight.flatten()[:2].tolist() == pytest.approx([0.05312808, 0.04558988])


def test_a_vae_that_keeps_lengths_begins_with_hues_that_can_be_told_apart():
    """As torch draws the weights, the posterior's noise hides the difference between a teal and an orange image."""
    torch.manual_seed(0)
    assert contrast(build_vae(NANO128)) > 3
    torch.manual_seed(0)
    assert contrast(build_vae(replace(NANO128, vae=replace(NANO128.vae, isometric=False)))) < 0.3


def contrast(vae: VAE) -> float:
    """Root mean square between the latents of two plain images, in units of the posterior's mean spread."""
    colors = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.3, -1.0]])
    with torch.no_grad():
        moments = vae.encode(colors[:, :, None, None].expand(2, 3, 128, 128))
    middle = moments.mean[:, :, 4:12, 4:12]
    apart = (middle[0] - middle[1]).square().mean().sqrt()
    return (apart / torch.exp(0.5 * moments.logvar).mean()).item()
