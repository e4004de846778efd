"""Tiles of the autoencoder: as good as whole images, away from seams and at them, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from terminus.model.components import load_vae
from terminus.model.tiling import Tiling, in_tiles, slope, starts
from terminus.model.vae import VAE


@pytest.fixture(scope="module")
def vae() -> VAE:
    """nano's, trained: 4 pixels per latent."""
    return load_vae("nano")


@pytest.fixture(scope="module")
def image() -> Tensor:
    """384 pixels, uneven on purpose: a black half, a white quarter, and a quarter of soft colours."""
    wave = torch.linspace(0, 20, 192).sin()
    image = torch.full((1, 3, 384, 384), -1.0)
    image[..., :192, 192:] = 1.0
    image[..., 192:, 192:] = torch.stack([wave[:, None] * wave, wave.expand(192, 192), wave[:, None].expand(192, 192)])
    return image


def tiled(vae: VAE, side: int = 256, overlap: int = 64) -> VAE:
    return VAE(vae.autoencoder, Tiling(whole=side * side, side=side, overlap=overlap))


def apart(a: Tensor, b: Tensor) -> Tensor:
    """In levels of 255."""
    return (a.clamp(-1, 1) - b.clamp(-1, 1)).abs() * 127.5


def test_decoding_in_tiles_is_decoding(vae: VAE, image: Tensor):
    with torch.no_grad():
        latents = vae.encode(image).mean * vae.scale
        whole, made = vae.decode(latents), tiled(vae).decode(latents)
        alone = in_tiles(vae.decode, [], latents, 64, 16, 4.0)  # each by its own contrast
    assert apart(whole, made).mean() < 1.0
    assert apart(whole, made).mean() < 0.6 * apart(whole, alone).mean()
    black = made[..., 40:, 40:150].clamp(-1, 1)
    assert (black + 1).mean() * 127.5 < (whole[..., 40:, 40:150].clamp(-1, 1) + 1).mean() * 127.5 + 2.0


def test_encoding_in_tiles_is_encoding(vae: VAE, image: Tensor):
    with torch.no_grad():
        whole, made = vae.encode(image), tiled(vae).encode(image)
    assert made.mean.shape == whole.mean.shape
    assert (made.mean - whole.mean).abs().mean() < 0.1 * whole.mean.std()


def test_small_images_pass_whole_bit_by_bit(vae: VAE):
    latents = torch.randn(2, 4, 16, 24)
    with torch.no_grad():
        expected = vae.autoencoder.decode(latents / vae.scale, return_dict=False)[0]
        assert torch.equal(vae.decode(latents), expected)


def test_norms_are_what_they_were_afterwards(vae: VAE, image: Tensor):
    with torch.no_grad():
        small = torch.randn(1, 4, 16, 16)
        before = vae.decode(small)
        tiled(vae).decode(torch.randn(1, 4, 96, 96))
        assert torch.equal(vae.decode(small), before)
    assert not any("forward" in vars(module) for module in vae.autoencoder.modules())


def test_no_seams_no_norm_no_difference():
    """A network of one pixel's reach without norms: tiles change nothing but rounding."""
    conv = nn.Conv2d(2, 3, 1)
    x = torch.randn(2, 2, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(in_tiles(conv, [], x, 16, 4, 1.0), conv(x))


def test_equal_tiles_have_the_whole_images_statistics():
    """Where every tile has the same content, norms by the tiles' statistics are norms by the whole image's."""
    norm = nn.GroupNorm(2, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 16, 16).repeat(1, 1, 3, 2)
    with torch.no_grad():
        torch.testing.assert_close(in_tiles(norm, [norm], x, 16, 0, 1.0), norm(x), rtol=1e-4, atol=1e-5)


def largest(vae: VAE, run: Callable[[], object]) -> int:
    """Numbers in the largest tensor that any layer gives."""
    sizes: list[int] = []
    layers = [module for module in vae.autoencoder.modules() if not list(module.children())]
    handles = [layer.register_forward_hook(lambda _, __, out: sizes.append(out.numel())) for layer in layers]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return max(sizes)


def test_activations_do_not_grow_with_the_image(vae: VAE):
    small = tiled(vae, 64, 16)
    of_a_tile = largest(vae, lambda: vae.decode(torch.randn(1, 4, 16, 16)))
    assert largest(vae, lambda: small.decode(torch.randn(1, 4, 80, 48))) == of_a_tile
    assert largest(vae, lambda: vae.decode(torch.randn(1, 4, 80, 48))) == 15 * of_a_tile
    encoded = largest(vae, lambda: vae.encode(torch.randn(1, 3, 64, 64)))
    assert largest(vae, lambda: small.encode(torch.randn(1, 3, 320, 192))) == encoded


@pytest.mark.parametrize(("length", "tile", "overlap"), [(512, 128, 32), (129, 128, 32), (100, 128, 32), (96, 64, 0)])
def test_tiles_cover_everything_and_share_enough(length: int, tile: int, overlap: int):
    begins = starts(length, tile, overlap)
    assert begins[0] == 0
    assert max(begins) + tile >= length
    assert all(b - a <= tile - overlap for a, b in pairwise(begins))


def test_weights_rise_over_the_overlap():
    weights = slope(10, 3)
    assert weights.tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    with pytest.raises(ValueError, match="overlap"):
        replace(Tiling(), overlap=1024)
