"""What a GPU's memory holds at SDXL's size: what the planner says, and with offloading one part at a time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.task import Task
from benchmarks.train import recipe_of
from benchmarks.trainers import Ours
from terminus.bench.contenders import components_of
from terminus.bench.measure import peak_above
from terminus.conditioning import Size
from terminus.model.execution import Running, prepare_for_inference
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img, to_bytes
from terminus.training.plan.memory import RESERVE, own_cut

SDXL = "random:sdxl"


def room(gpu: torch.device, needed: float) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(gpu)
    if free < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of the GPU's memory, {free / 1e9:.0f} are free")


def held(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def test_offloading_frees_what_has_had_its_turn(gpu: torch.device):
    room(gpu, 20e9)
    before = torch.cuda.memory_allocated(gpu)
    components = prepare_for_inference(components_of(SDXL, gpu), gpu, Running(offload="model"))
    assert torch.cuda.memory_allocated(gpu) - before < 1e6  # all of them wait
    unet, vae = held(components.unet), held(components.vae.autoencoder)
    settings = Settings(steps=2, size=Size(1024, 1024))

    def draw() -> None:
        *_, last = text2img(components, ["a dog"], [1], settings)
        to_bytes(components, last.x)

    peak = peak_above(draw, gpu)
    assert peak is not None
    # the UNet with its activations, or the VAE with its own, never both
    assert unet < peak < unet + 4e9
    assert torch.cuda.memory_allocated(gpu) - before < vae + 50e6
    draw()
    assert torch.cuda.memory_allocated(gpu) - before < vae + 50e6


@pytest.mark.parametrize("activation_checkpointing", ["full", "selective", "none"])
def test_a_training_step_takes_what_was_planned(activation_checkpointing: str, gpu: torch.device):
    overrides = [
        f"training.activation_checkpointing={activation_checkpointing}", 
        "training.micro_batch=2", "training.accumulation=2",
        "training.weights=bf16", "training.optimizer.moments=bf16", "training.precision=bf16", "run.device=cuda",
    ]  # fmt: skip
    recipe = recipe_of(SDXL, overrides)
    planned = own_cut(recipe, float("inf")).memory.total
    room(gpu, planned + RESERVE)
    trainer = Ours(Task(recipe, partial(components_of, SDXL, gpu), gpu, False, True))
    trainer.run(1)
    peak = peak_above(lambda: trainer.run(1), gpu)
    assert peak is not None
    assert peak + trainer.state_bytes() == pytest.approx(planned, rel=0.1)
