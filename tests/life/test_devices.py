"""Everything that draws and trains, on a GPU that is not there (`pretend`): where tensors are, in which number format,
and when the program would wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.task import Task
from benchmarks.train import recipe_of
from benchmarks.trainers import Ours
from terminus import Terminus, cli
from terminus.conditioning import Crop, MicroConditioning, Size
from terminus.config.load import Loaded
from terminus.model.components import load_components
from terminus.model.control import ControlInterval
from terminus.model.execution import Running
from terminus.model.tiling import Tiling
from terminus.sampling.canvas import Repaint
from terminus.sampling.controls import ControlInput
from terminus.sampling.metadata import read_image_metadata, save_image, settings_of
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img
from terminus.training import run
from terminus.training.recipe import Recipe

from .conftest import losses
from .pretend import GPU, PretendGPU, pretend

__all__ = ["pretend"]

EXACT = Running(precision="fp32", channels_last=False)
"""As on the CPU, so that an image is the same bit for bit."""
TILED = Running(precision="fp32", channels_last=False, tiling=Tiling(whole=0, side=16, overlap=8))
OFFLOADED = Running(precision="fp32", channels_last=False, offload="model")


def noise(side: int = 32) -> Image.Image:
    pixels = torch.rand(side, side, 3, generator=torch.Generator().manual_seed(0))
    return Image.fromarray((255 * pixels).to(torch.uint8).numpy())


def hole() -> Image.Image:
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 24))
    return mask


def guided(model: Terminus, steering: Path) -> list[Image.Image]:
    control_inputs = [
        ControlInput("controlnet", steering / "edges", noise(), span=ControlInterval(0.0, 0.5)),
        ControlInput("t2i", steering / "sketch", noise()),
        ControlInput("ip", steering / "likeness.safetensors", noise()),
    ]
    return model.text2img("a dog", steps=2, control_inputs=control_inputs)


def adapted(model: Terminus, steering: Path) -> list[Image.Image]:
    """With an adapter, and without it again, which must leave no trace on either device."""
    model.adapters.attach(steering / "ink.safetensors", 0.7)
    with_it = model.text2img("a dog", steps=1)
    model.adapters.weigh("ink", 0.2)
    weaker = model.text2img("a dog", steps=1)
    model.adapters.clear()
    return [*with_it, *weaker, *model.text2img("a dog", steps=1)]


def adapted_midway(model: Terminus, steering: Path) -> list[Image.Image]:
    """Put on while the UNet is on the device, which it leaves and comes back to before the next image."""
    next(model.stream("a dog", settings=Settings(steps=2)))
    model.adapters.attach(steering / "ink.safetensors", 0.7)
    drawn = model.text2img("a dog", steps=1)
    model.adapters.clear()
    return [*drawn, *model.text2img("a dog", steps=1)]


TASKS: dict[str, tuple[Running, Callable[[Terminus, Path], list[Image.Image]]]] = {
    "text": (EXACT, lambda model, _: model.text2img("a (red:1.3) apple", steps=2, count=2, hires=1.5)),
    "text, random solver": (EXACT, lambda model, _: model.text2img("a dog", steps=3, solver="dpmpp_2m_sde")),
    "image": (EXACT, lambda model, _: model.img2img("a dog", noise(), steps=3, interval=(0.2, 0.8))),
    "inpainting": (
        EXACT, lambda model, _: model.inpaint("a dog", noise(), hole(), steps=2, repaint=Repaint(feather=2, padding=4)),
    ),
    "upscaling in tiles": (EXACT, lambda model, _: model.upscale(noise(), 2.0, "a dog", steps=4)),
    "VAE in tiles": (TILED, lambda model, _: model.img2img("a dog", noise(), steps=2)),
    "control_inputs": (EXACT, guided),
    "adapter": (EXACT, adapted),
    "offloading": (OFFLOADED, lambda model, _: model.img2img("a dog", noise(), steps=3)),
    "offloading, guides": (OFFLOADED, guided),
    "offloading, adapter": (OFFLOADED, adapted),
    "offloading, adapter midway": (OFFLOADED, adapted_midway),
}  # fmt: skip


Load = Callable[[Running], Terminus]


@pytest.fixture(scope="module")
def there(pretend: PretendGPU, random_nano: Path) -> Load:
    """The model on the GPU; loaded once for each way to run, which no test may change for good."""

    @cache
    def load(how: Running) -> Terminus:
        with pretend.there():
            return Terminus.load(random_nano, device="cuda", running=how)

    return load


@pytest.fixture(scope="module")
def here(random_nano: Path) -> Load:
    """The same on the CPU."""
    return cache(lambda how: Terminus.load(random_nano, device="cpu", running=Running(tiling=how.tiling)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", TASKS)
def test_every_task_draws_on_the_device(name: str, pretend: PretendGPU, there: Load, here: Load, steering: Path):
    how, task = TASKS[name]
    with pretend.there():
        model = there(how)
        assert model.components.text_encoders.device.type == "cuda"
        drawn = task(model, steering)
    for one, other in zip(drawn, task(here(how), steering), strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


# --- the machinery can see what it is for ----------------------------------------------------------------------------


PLANTED: dict[str, tuple[str, Any, str]] = {
    "nothing is sent": ("terminus.runtime.sent", lambda tensor, device: tensor, "same device"),
    "sizes stay on the CPU": (
        "terminus.sampling.network.time_ids", lambda sizes, device: torch.ones(len(sizes), 6), "same device",
    ),
    "a CPU's generator": (
        "terminus.sampling.tasks.runtime.sent",
        lambda tensor, device: torch.randn(tensor.shape, generator=torch.Generator(), device=device), "generator",
    ),
    "an image not fetched": (
        "terminus.sampling.api.to_bytes", lambda components, x0: (x0[:, :3].permute(0, 2, 3, 1) * 9).byte(), "numpy",
    ),
}  # fmt: skip
"""Mistakes that no CPU notices, and what CUDA says of them."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str, pretend: PretendGPU, there: Load, monkeypatch: pytest.MonkeyPatch):
    place, wrong, message = PLANTED[name]
    model = there(EXACT)
    monkeypatch.setattr(place, wrong)
    with pretend.there(), pytest.raises((RuntimeError, TypeError), match=message):
        model.text2img("a dog", steps=1)


def test_tensors_know_where_they_are(pretend: PretendGPU):
    with pretend.there():
        weight, x = nn.Parameter(torch.ones(2, 2)), torch.ones(2, device="cuda")
        layer = nn.Linear(2, 2).to("cuda")
        assert {layer.weight.device, layer(x).device, x[0].device, torch.zeros_like(x).device} == {GPU}
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.device == layer.weight.data.device == GPU
        assert {x.cpu().device, torch.empty_like(x, device="cpu").device, weight.device} == {torch.device("cpu")}
        assert pretend.where(x.to("meta")).type == "meta"
        x * torch.tensor(2.0)  # a number of the CPU may meet a GPU's tensors
        for wrong in (
            lambda: x + torch.ones(2), lambda: torch.cat([x, x.cpu()]), lambda: nn.functional.linear(x, weight),
            lambda: torch.ones(2) * x.sum(), lambda: torch.where(x > 0, x, torch.ones(2)), lambda: x.cpu()[x.long()],
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="same device"):
                wrong()


def test_a_wait_is_counted(pretend: PretendGPU):
    with pretend.there():
        x = torch.ones(2, device="cuda")
        for waiting in (
            x.sum().item, x.cpu, x.tolist, x.nonzero, lambda: bool(x[0]), lambda: x[x > 0],
            lambda: x[torch.tensor([1])], lambda: torch.ones(2).to("cuda"), lambda: torch.tensor([1.0], device="cuda"),
            lambda: torch.ones(2**15).to("cuda", non_blocking=True), lambda: x.copy_(torch.ones(2)),
        ):  # fmt: skip
            pretend.waits.clear()
            waiting()
            assert pretend.waits.total() == 1
        pretend.waits.clear()
        torch.ones(2).to("cuda", non_blocking=True)
        torch.ones(2**15).pin_memory().to("cuda", non_blocking=True)
        assert not pretend.waits


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "tcd"])
def test_no_step_of_a_solver_waits_for_the_gpu(solver: str, pretend: PretendGPU, there: Load):
    settings = Settings(steps=4, solver=solver, size=Size(32, 32))
    with pretend.there():
        steps = text2img(there(Running()).components, ["a dog"], [1], settings)
        next(steps)
        pretend.waits.clear()
        assert len(list(steps)) == 3
    assert not pretend.waits


def test_no_step_that_looks_at_its_timestep_waits_for_the_gpu(pretend: PretendGPU, there: Load, steering: Path):
    """Guidance for a part of the way, and guides that come and go: each of the steps behaves differently."""
    settings = Settings(steps=4, size=Size(32, 32), interval=(0.3, 0.8))
    control_inputs = [
        ControlInput("controlnet", steering / "edges", noise(), span=ControlInterval(0.0, 0.5)),
        ControlInput("t2i", steering / "sketch", noise(), span=ControlInterval(0.5, 0.75)),
    ]
    with pretend.there():
        steps = there(Running()).stream("a dog", settings=settings, control_inputs=control_inputs)
        next(steps)
        pretend.waits.clear()
        for _ in range(3):
            next(steps)
    assert not pretend.waits


def test_no_step_in_tiles_waits_for_the_gpu(pretend: PretendGPU, there: Load):
    from terminus.sampling.edits import inpainting, upscaling

    with pretend.there():
        model, settings = there(Running()), Settings(steps=3)
        for edit in (
            upscaling(noise(), 2.0, 1.0, settings, model.components),
            inpainting(noise(), hole(), 1.0, Repaint(), settings, model.components),
        ):
            steps = model.stream("a dog", settings=settings, edit=edit)
            next(steps)
            pretend.waits.clear()
            next(steps)
            assert not pretend.waits


def test_a_training_step_waits_once_for_its_loss(pretend: PretendGPU, random_nano: Path):
    """To see whether the step is sound; until then, micro-batch after micro-batch is handed over without looking."""
    overrides = [
        f"model.start={random_nano}", "data.resolution=32", "training.micro_batch=2", "training.accumulation=3",
        "training.loader_threads=0", "training.precision=bf16", "run.device=cuda",
    ]  # fmt: skip
    task = Task(recipe_of("nano", overrides), partial(load_components, random_nano), GPU, False, True)
    with pretend.there():
        trainer = Ours(task)
        trainer.run(1)
        pretend.waits.clear()
        trainer.run(1)
    of_loss = {"training/step.py on_cpu: a copy from the GPU": 3 * 3}
    assert pretend.waits == {"training/optim/clipping.py clip_gradient_norm: _local_scalar_dense": 1, **of_loss}


def test_leaving_the_device_copies_nothing_back(pretend: PretendGPU, there: Load, steering: Path):
    model = there(OFFLOADED)
    with pretend.there():
        model.text2img("a dog", steps=1)
        pretend.waits.clear()
        model.text2img("a dog", steps=1)
        back = {place: count for place, count in pretend.waits.items() if place.endswith("from the GPU")}
    position_ids = {"model/execution.py _send_home: a copy from the GPU": 2}  # of the text encoders: no weights
    assert back == {"sampling/tasks.py to_bytes: a copy from the GPU": 1, **position_ids}


def test_an_image_in_fp32_is_drawn_again_in_fp32(
    pretend: PretendGPU, random_nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """On a GPU networks are held in bf16 unless asked otherwise, and no option of the command line asks."""
    (drawn,) = Terminus.load(random_nano, "cpu").text2img("a dog", steps=1, size="16x16")
    save_image(drawn, tmp_path / "a.png")
    again = ["sample", str(random_nano), "--again", str(tmp_path / "a.png"), "--device", "cuda", "--out", str(tmp_path)]
    with pretend.there():
        assert cli.main(again) == 0
    assert settings_of(read_image_metadata(tmp_path / "00001-0.png")).precision == "fp32"
    assert "pixel" in capsys.readouterr().err


# --- number formats --------------------------------------------------------------------------------------------------


class Given:
    """What a UNet was given, and what it made of the sizes."""

    def __init__(self, unet: nn.Module) -> None:
        self.calls: list[dict[str, Tensor]] = []
        unet.register_forward_pre_hook(self._keep, with_kwargs=True)
        unet.get_submodule("add_time_proj").register_forward_hook(self._waves)

    def _keep(self, _: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        x, t, context = given[:3]
        self.calls.append({"x": x, "t": t, "context": context, "ids": named["added_cond_kwargs"]["time_ids"]})

    def _waves(self, _: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        self.calls[-1] |= {"flat ids": given[0], "waves": made}


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
def test_a_bf16_network_does_not_round_latents_noise_and_sizes(solver: str, pretend: PretendGPU, there: Load):
    sizes = MicroConditioning(Size(1023, 1025), Crop(0, 257), Size(1023, 1025))  # bfloat16 has none of these numbers
    settings = Settings(steps=3, solver=solver, size=Size(32, 32), conditioning=sizes)
    with pretend.there():
        model = there(Running())
        seen = Given(model.components.unet)
        steps = list(text2img(model.components, ["a dog"], [1], settings))
    assert model.components.unet.dtype == torch.bfloat16
    assert {state.dtype for step in steps for state in (step.x, step.x0)} == {torch.float32}
    # a state that had been rounded would be what bfloat16 can say
    assert all((step.x != step.x.bfloat16().float()).float().mean() > 0.9 for step in steps)
    for call in seen.calls:
        assert (call["x"].dtype, call["context"].dtype, call["t"].dtype) == (torch.bfloat16, torch.bfloat16, torch.long)
        assert (call["ids"].dtype, call["flat ids"].dtype, call["waves"].dtype) == (torch.float32,) * 3
        assert call["ids"][0].tolist() == [1023, 1025, 0, 257, 1023, 1025]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Given]:
    """What the UNets of runs are given."""
    given: list[Given] = []
    real = run.assemble

    def assemble(settings: Recipe, view: Any) -> Any:
        parts = real(settings, view)
        assert parts.components is not None
        given.append(Given(parts.components.unet))
        return parts

    monkeypatch.setattr(run, "assemble", assemble)
    return given


# --- training --------------------------------------------------------------------------------------------------------

SHORT = (
    "run.device=cuda", "training.images=4", "training.micro_batch=2", "training.loader_threads=0",
    "training.checkpoints.every_images=4", "training.validation={every_images: 4, images: 2}",
    "training.preview={every_images: 4, prompts: [a dog], steps: 1}",
    "training.learning_rate={max: 1.0e-3, min: 1.0e-4, warmup_images: 4, period_images: 4}",
)  # fmt: skip
KINDS = {
    "lean": (
        "training.precision=bf16", "training.weights=bf16", "training.optimizer.moments=bf16",
        "training.ema={kind: power, device: cpu}", "training.activation_checkpointing=selective",
    ),
    "adapter": (
        "training.precision=bf16", "model.adapter={algorithm: dora, rank: 2}", "objective.train_text_encoders=both",
        "training.optimizer.moments=int8", "objective.offset_noise=0.1",
    ),
}  # fmt: skip


def test_a_run_on_the_device_has_the_losses_of_one_on_the_cpu(
    pretend: PretendGPU, recipe: Callable[..., Loaded[Recipe]], tmp_path: Path
):
    with pretend.there():
        run.train(recipe(*SHORT, "training.precision=fp32"))
    run.train(recipe(*SHORT, "training.precision=fp32", "run.device=cpu", f"run.dir={tmp_path / 'here'}"))
    there, here = (dict(losses(folder)[0]) for folder in (tmp_path / "run", tmp_path / "here"))
    for name in ("loss", "gradient_norm"):  # the layout of convolutions differs, and so their rounding
        assert float(str(there[name])) == pytest.approx(float(str(here[name])), rel=1e-4)


@pytest.mark.parametrize("kind", ["lean", pytest.param("adapter", marks=pytest.mark.slow)])
def test_a_run_trains_on_the_device_and_continues(
    kind: str, pretend: PretendGPU, recipe: Callable[..., Loaded[Recipe]], tmp_path: Path, seen: list[Given]
):
    """A step with validation, average, preview, checkpoint and finished model; an adapter's goes on from that.

    In bfloat16 nothing rounds latents, noise and sizes on their way to the network.
    """
    pieces = (4, 8) if kind == "adapter" else (4,)
    with pretend.there():
        for images in pieces:
            run.train(recipe(*SHORT, *KINDS[kind], f"training.images={images}"))
    assert len(losses(tmp_path / "run")) == len(seen) == len(pieces)
    assert len(list((tmp_path / "run" / "previews").glob("*.png"))) == len(pieces)
    for call in [call for given in seen for call in given.calls]:
        assert (call["x"].dtype, call["ids"].dtype, call["waves"].dtype) == (torch.float32,) * 3
        assert (call["x"] != call["x"].bfloat16().float()).float().mean() > 0.9
