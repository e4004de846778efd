"""The GPU does what the CPU does, up to the rounding of each, and is not waited for in between."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.task import Task
from benchmarks.train import recipe_of
from benchmarks.trainers import Ours
from terminus import Terminus
from terminus.conditioning import Size
from terminus.config.load import Loaded
from terminus.model.components import load_components
from terminus.model.execution import Running
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img
from terminus.training import run
from terminus.training.recipe import Recipe

from ..life.conftest import losses
from ..life.test_devices import TASKS


@contextmanager
def waiting_forbidden() -> Generator[None]:
    """An operation that makes the program wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def latents(model: Terminus) -> Tensor:
    settings = Settings(steps=4, size=Size(32, 32))
    *_, last = text2img(model.components, ["a red apple", "a dog"], [1, 2], settings)
    return last.x.cpu()


@pytest.fixture(scope="module")
def plain(random_nano: Path) -> Tensor:
    return latents(Terminus.load(random_nano, device="cpu"))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", TASKS)
def test_every_task_draws_the_image_of_the_cpu(name: str, random_nano: Path, steering: Path):
    how, task = TASKS[name]
    drawn = task(Terminus.load(random_nano, device="cuda", running=how), steering)
    wanted = task(Terminus.load(random_nano, device="cpu", running=Running(tiling=how.tiling)), steering)
    for one, other in zip(drawn, wanted, strict=True):
        apart = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
        assert apart.max() <= 2  # levels of 255


def test_bf16_is_near(random_nano: Path, plain: Tensor):
    model = Terminus.load(random_nano, device="cuda")
    assert model.components.unet.dtype == torch.bfloat16
    assert 0 < (latents(model) - plain).square().mean().sqrt() < 0.05 * plain.std()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blocks", "graphs"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_it_is_the_same_image(how: str, random_nano: Path, plain: Tensor):
    model = Terminus.load(random_nano, device="cuda", running=Running(precision="fp32", compile=how))
    for _ in range(3):  # a graph is recorded at the second call and replayed from the third
        torch.testing.assert_close(latents(model), plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_no_step_of_a_solver_waits(solver: str, random_nano: Path):
    components = Terminus.load(random_nano, device="cuda").components
    steps = text2img(components, ["a dog"], [1], Settings(steps=4, solver=solver, size=Size(32, 32)))
    next(steps)
    with waiting_forbidden():
        assert len(list(steps)) == 3


def test_no_micro_batch_waits(random_nano: Path, gpu: torch.device):
    overrides = [
        f"model.start={random_nano}", "data.resolution=32", "training.micro_batch=2", "training.accumulation=1",
        "training.precision=bf16", "run.device=cuda",
    ]  # fmt: skip
    trainer = Ours(Task(recipe_of("nano", overrides), partial(load_components, random_nano), gpu, False, True))
    trainer.run(2)
    batch = trainer.loader.batch(0)
    with waiting_forbidden():
        trainer.step.loss(batch, 0).weighted.mean().backward()


TWENTY = (
    "training.images=160", "training.micro_batch=4", "training.accumulation=2", "training.validation.every_images=160",
    "training.preview={every_images: 160, prompts: [a dog], steps: 2}", "training.checkpoints.every_images=160",
    "training.learning_rate={max: 1.0e-4, min: 1.0e-4, warmup_images: 16, period_images: 144}",
)  # fmt: skip


def series(folder: Path, name: str) -> list[float]:
    return [float(str(dict(row)[name])) for row in losses(folder)]


@pytest.mark.parametrize(("precision", "first", "all_of_them"), [("fp32", 1e-4, 1e-2), ("bf16", 1e-2, 5e-2)])
def test_a_run_has_the_losses_of_the_cpu(
    precision: str, first: float, all_of_them: float, recipe: Callable[..., Loaded[Recipe]], tmp_path: Path
):
    """Twenty steps: of equal weights the first, of weights that drift apart by rounding the others."""
    folders = {device: tmp_path / device for device in ("cuda", "cpu")}
    for device, folder in folders.items():
        run.train(recipe(*TWENTY, f"training.precision={precision}", f"run.device={device}", f"run.dir={folder}"))
    there, here = (series(folder, "loss") for folder in folders.values())
    assert len(there) == 20
    assert there[0] == pytest.approx(here[0], rel=first)
    assert there == pytest.approx(here, rel=all_of_them)


def test_an_average_on_the_cpu_is_that_on_the_gpu(recipe: Callable[..., Loaded[Recipe]], tmp_path: Path):
    """It moves in a thread, by copies that nobody waits for."""
    averages: list[dict[str, Tensor]] = []
    for device in ("model", "cpu"):
        folder = tmp_path / device
        ema = f"training.ema={{kind: constant, half_life_images: 40, device: {device}}}"
        run.train(recipe(*TWENTY, ema, "run.device=cuda", f"run.dir={folder}"))
        (file,) = folder.glob("checkpoints/*/average.safetensors")
        averages.append(load_file(file))
    one, other = averages
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
