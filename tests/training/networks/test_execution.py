"""What computes again computes the same: gradients bit for bit, names of parameters untouched, fewer bytes kept."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from terminus import runtime
from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.errors import UserError
from terminus.model.architecture import NANO
from terminus.model.text import TextFeatures
from terminus.model.unet import UNet, build_unet, predict
from terminus.model.vae import build_vae
from terminus.training.networks.execution import Checkpointing, compile_for_training, recompute, trainable

CPU = torch.device("cpu")
MODES = [mode for mode in get_args(Checkpointing) if mode != "none"]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_unet(NANO).state_dict()


def network(weights: dict[str, Tensor], mode: Checkpointing = "none") -> UNet:
    unet = build_unet(NANO)
    unet.load_state_dict(weights)
    trainable(unet, CPU)
    recompute(unet, mode)
    return unet.train()


def forward(unet: UNet, precision: runtime.Precision = "fp32") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    text = TextFeatures(
        torch.randn(2, NANO.positions, NANO.context_width, generator=generator),
        torch.randn(2, NANO.text_encoder_2.projection, generator=generator),
    )
    ids = time_ids([MicroConditioning.uncropped(Size(64, 64))] * 2)
    with runtime.autocast(CPU, precision):
        return predict(unet, x, torch.tensor([3, 900]), text, ids).square().mean()


def gradients(unet: UNet, precision: runtime.Precision = "fp32") -> dict[str, Tensor]:
    forward(unet, precision).backward()
    return {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", get_args(runtime.Precision))
def test_gradients_are_those_of_a_run_that_keeps_everything(weights: dict[str, Tensor], precision: runtime.Precision):
    whole = gradients(network(weights), precision)
    assert len(whole) > 100
    for mode in MODES:
        again = gradients(network(weights, mode), precision)
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[name], again[name]) for name in whole), mode


@pytest.mark.parametrize("mode", MODES)
def test_parameters_keep_their_names(weights: dict[str, Tensor], mode: Checkpointing):
    unet = network(weights, mode)
    assert list(unet.state_dict()) == list(weights)


def kept(unet: UNet) -> int:
    """Bytes that autograd keeps beside weights, without those that selective checkpointing hides from it."""
    sizes: dict[int, int] = {}
    there = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in there:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward(unet)
    loss.backward()
    return sum(sizes.values())


def test_full_checkpointing_keeps_little(weights: dict[str, Tensor]):
    assert kept(network(weights)) > 4 * kept(network(weights, "full"))


def test_without_gradients_nothing_is_checkpointed(weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("checkpointed")

    monkeypatch.setattr("terminus.training.networks.execution.checkpoint", never)
    unet = network(weights, "full")
    with torch.no_grad():
        assert torch.equal(forward(unet), forward(network(weights)))
    with pytest.raises(AssertionError, match="checkpointed"):
        forward(unet)


def test_the_vae_has_blocks_too():
    torch.manual_seed(0)
    vae = build_vae(NANO).autoencoder.requires_grad_(True).train()
    pixels = torch.randn(1, 3, 32, 32)

    def gradient() -> Tensor:
        vae.zero_grad()
        vae.decode(vae.encode(pixels).latent_dist.mean, return_dict=False)[0].square().mean().backward()
        first = next(vae.parameters()).grad
        assert first is not None
        return first.clone()

    whole = gradient()
    recompute(vae, "selective")
    assert torch.equal(gradient(), whole)


def test_what_has_no_blocks_is_refused():
    with pytest.raises(UserError, match="no blocks to compute again"):
        recompute(nn.Linear(2, 2), "full")


def test_random_numbers_of_a_block_are_drawn_once():
    class BasicTransformerBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(64, 64), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(torch.tanh(self.linear(x)))

    torch.manual_seed(0)
    module = nn.Sequential(BasicTransformerBlock())
    x = torch.randn(4, 64)

    def gradient() -> Tensor:
        torch.manual_seed(7)
        module.zero_grad()
        module(x).square().sum().backward()
        grad = module[0].linear.weight.grad
        assert grad is not None
        return grad.clone()

    whole = gradient()
    recompute(module, "full")
    assert torch.equal(gradient(), whole)


@pytest.mark.parametrize("mode", ["none", "selective"])
def test_only_the_blocks_are_compiled(weights: dict[str, Tensor], mode: Checkpointing, monkeypatch: pytest.MonkeyPatch):
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    monkeypatch.setattr("terminus.model.execution.compiler_problem", lambda _: None)
    compile_for_training(network(weights, mode), CPU)
    assert set(compiled) == {"BasicTransformerBlock", "ResnetBlock2D"}


def test_without_a_compiler_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"does not work here \(No working C\+\+ compiler found\)"):
        compile_for_training(nn.Identity(), CPU)
