"""The networks with random weights: what the shapes promise, and where training begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from terminus.model.architecture import ARCHITECTURES, NANO, NANO128
from terminus.model.unet import build_unet
from terminus.model.vae import Codec, build_codec


@pytest.mark.parametrize("name", ["nano", "nano128"])
def test_codec_and_unet_fit_each_other(name: str):
    architecture = ARCHITECTURES[name]
    codec, unet = build_codec(architecture), build_unet(architecture)
    pixels = torch.zeros(1, 3, architecture.codec.pixels, architecture.codec.pixels)
    with torch.no_grad():
        moments = codec.encode(pixels)
        decoded = codec.decode(moments.mean)
    size = architecture.unet.latent_size
    assert moments.mean.shape == (1, unet.config["in_channels"], size, size)
    assert unet.config["in_channels"] == unet.config["out_channels"] == codec.channels
    assert decoded.shape == pixels.shape


def test_nano_begins_where_it_did():
    """The shipped nano is repeated from its recipes only while the same seed gives the same weights."""
    torch.manual_seed(0)
    vae = build_codec(NANO).vae
    assert vae.decoder.conv_out.weight.flatten()[:2].tolist() == pytest.approx([0.05312808, 0.04558988])


def test_a_codec_that_keeps_lengths_begins_with_hues_that_can_be_told_apart():
    """As torch draws the weights, the posterior's noise hides the difference between a teal and an orange picture."""
    torch.manual_seed(0)
    assert contrast(build_codec(NANO128)) > 3
    torch.manual_seed(0)
    assert contrast(build_codec(replace(NANO128, codec=replace(NANO128.codec, isometric=False)))) < 0.3


def contrast(codec: Codec) -> float:
    """Root mean square between the latents of two plain pictures, in units of the posterior's mean spread."""
    colors = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.3, -1.0]])
    with torch.no_grad():
        moments = codec.encode(colors[:, :, None, None].expand(2, 3, 128, 128))
    middle = moments.mean[:, :, 4:12, 4:12]
    apart = (middle[0] - middle[1]).square().mean().sqrt()
    return (apart / torch.exp(0.5 * moments.logvar).mean()).item()
