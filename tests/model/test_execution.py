"""Another way to run draws the same image, up to rounding; who is on the device when; what needs a compiler."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import Components, load_components
from terminus.model.execution import Running, Turns, prepare_for_inference
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img, to_bytes

CPU = torch.device("cpu")


def latents(components: Components, precision: str | None = None, batch: int = 2) -> Tensor:
    settings = Settings(steps=3, size=Size(32, 32), solver="euler", precision=precision)
    *_, last = text2img(components, ["a red apple", "a dog"][:batch], [1, 2][:batch], settings)
    return last.x


@pytest.fixture(scope="module")
def plain(random_nano: Path) -> Tensor:
    return latents(load_components(random_nano))


def test_the_default_on_a_cpu_changes_no_bit(random_nano: Path, plain: Tensor):
    assert torch.equal(latents(prepare_for_inference(load_components(random_nano), CPU)), plain)


def test_channels_last_is_the_same_image(random_nano: Path, plain: Tensor):
    components = prepare_for_inference(load_components(random_nano), CPU, Running(channels_last=True))
    assert components.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(latents(components), plain, rtol=1e-4, atol=1e-4)


def test_bf16_is_held_once_and_the_vae_keeps_fp32_where_it_must(random_nano: Path, plain: Tensor):
    components = load_components(random_nano)
    components.vae.autoencoder.register_to_config(force_upcast=True)
    components = prepare_for_inference(components, CPU, Running(precision="bf16"))
    dtypes = {
        p.dtype for module in (components.unet, components.text_encoders.text_encoder_1) for p in module.parameters()
    }
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in components.vae.autoencoder.parameters()} == {torch.float32}
    drawn = latents(components)
    assert drawn.dtype == torch.float32
    difference = (drawn - plain).square().mean().sqrt()
    assert 0 < difference < 0.05 * plain.std()
    with pytest.raises(UserError, match="held in bf16"):
        latents(components, precision="fp32")


def test_a_vae_that_need_not_upcast_follows_the_precision(random_nano: Path):
    components = prepare_for_inference(load_components(random_nano), CPU, Running(precision="bf16"))
    assert components.vae.autoencoder.dtype == torch.bfloat16
    decoded = components.vae.decode(torch.randn(1, 4, 8, 8))
    assert decoded.dtype == torch.float32
    assert components.vae.encode(decoded).mean.dtype == torch.float32


def test_every_none_is_decided_by_the_device():
    assert Running().on(CPU) == Running("fp32", False, tiling=Running().on(CPU).tiling)
    assert (Running().on(torch.device("cuda")).precision, Running().on(torch.device("cuda")).channels_last) == (
        "bf16",
        True,
    )
    with pytest.raises(UserError, match="graphs"):
        Running(compile="graphs").on(CPU)
    with pytest.raises(UserError, match="offloading"):
        Running(compile="graphs", offload="model").on(torch.device("cuda"))


# --- offloading ------------------------------------------------------------------------------------------------------


class _Watched(nn.Module):
    """A module that writes down, whenever it runs, which modules are where."""

    def __init__(self, seen: list[list[str]], everyone: list[nn.Module]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.seen, self.everyone = seen, everyone
        everyone.append(self)

    def to(self, device: torch.device) -> _Watched:
        """Tensors leave the meta device only as new ones."""
        self.weight = nn.Parameter(torch.ones(2, device=device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        assert x.device == self.weight.device
        self.seen.append([p.device.type for module in [*self.everyone] for p in module.parameters(recurse=False)])
        return x * self.weight


def test_one_group_at_a_time_is_on_the_device():
    """Between the CPU and the meta device, which is real enough: a tensor is on one of the two."""
    seen: list[list[str]] = []
    everyone: list[nn.Module] = []
    first, second, third = (_Watched(seen, everyone) for _ in range(3))
    everyone[:] = [first, second, third]
    turns = Turns(torch.device("meta"))
    turns.add([first, second], [first, second])
    turns.add([third], [third])
    for module in (first, second, third, third, first):
        assert module(torch.ones(2)).device.type == "meta"  # the call's tensors go along
        for one in turns.resident:
            assert one.weight.is_meta
    here, there = "meta", "cpu"
    assert seen == [
        [here, here, there],
        [here, here, there],
        [there, there, here],
        [there, there, here],
        [here, here, there],
    ]


@pytest.fixture
def residents(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the classes that come to the device, in order."""
    came: list[str] = []
    bring = Turns._bring

    def watched(self: Turns, modules: list[nn.Module]) -> None:
        if self.resident is not modules:
            came.append("+".join(type(module).__name__ for module in modules))
        bring(self, modules)

    monkeypatch.setattr(Turns, "_bring", watched)
    return came


def test_a_drawing_takes_text_then_unet_then_vae(random_nano: Path, plain: Tensor, residents: list[str]):
    components = prepare_for_inference(load_components(random_nano), CPU, Running(offload="model"))
    assert components.text_encoders.device == CPU
    drawn = latents(components)
    assert torch.equal(drawn, plain)
    to_bytes(components, drawn)
    text = "CLIPTextModel+CLIPTextModelWithProjection"
    assert residents == [text, "UNet2DConditionModel", "AutoencoderKL"]
    components.vae.encode(torch.zeros(1, 3, 32, 32))  # still there
    latents(components)
    assert residents[3:] == [text, "UNet2DConditionModel"]


# --- compiling -------------------------------------------------------------------------------------------------------


def test_without_a_compiler_one_warning_and_the_same_image(
    random_nano: Path, plain: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("Failed to find C compiler.\nMore words.")

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING, "terminus"):
        components = prepare_for_inference(load_components(random_nano), CPU, Running(compile="blocks"))
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile does not work here, so the networks run uncompiled: Failed to find C compiler."
    ]
    assert torch.equal(latents(components), plain)


def test_blocks_are_compiled_and_the_rest_is_not(random_nano: Path, monkeypatch: pytest.MonkeyPatch):
    """Which modules: by a compiler that only counts. That the compiled image is the same is in the slow test."""
    compiled: list[str] = []
    monkeypatch.setattr("terminus.model.execution.compiler_problem", lambda _: None)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled.append(type(self).__name__))
    components = prepare_for_inference(load_components(random_nano), CPU, Running(compile="blocks"))
    blocks = [type(module).__name__ for module in components.unet.modules()]
    assert set(compiled) == {"BasicTransformerBlock", "ResnetBlock2D"}
    assert all(compiled.count(name) == blocks.count(name) for name in set(compiled))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_draw_the_same_image(random_nano: Path, plain: Tensor):
    components = prepare_for_inference(load_components(random_nano), CPU, Running(compile="blocks"))
    torch.testing.assert_close(latents(components), plain, rtol=1e-3, atol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 4
