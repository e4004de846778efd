"""What a step costs beside the network, counted at SDXL's real size: 1 × 4 × 128 × 128 latents, guidance on.

Nothing is computed: on the meta device tensors have shapes only, and a dispatch mode writes down each operation. The
network's own work is counted from below (attention is one kernel, copies are none; weights are read once; only layers
with weights move bytes; only products are FLOPs), the step's from above (every operation is a kernel, reads all its
inputs and writes its output). So the true ratios are lower. A second test counts the operations of whole drawings,
inpainting too, on a small model: how many there are does not depend on its size.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from terminus.diffusion.schedule import NoiseSchedule
from terminus.model.architecture import SDXL
from terminus.model.components import Components, load_components
from terminus.model.text import TextFeatures
from terminus.model.unet import build_unet, predict
from terminus.sampling.canvas import Canvas
from terminus.sampling.denoiser import velocity_denoiser
from terminus.sampling.grid import for_solver
from terminus.sampling.guidance import Guidance
from terminus.sampling.settings import ImageRequest, Settings
from terminus.sampling.solvers import SOLVERS
from terminus.sampling.tasks import generate

LATENT = (1, 4, 128, 128)
STEPS = 10
KERNELS = {
    "mm": 1, "addmm": 1, "convolution": 1, "bmm": 0.5, "native_layer_norm": 1, "native_group_norm": 1,
    "gelu": 1, "silu": 1, "add": 1, "mul": 1, "div": 1, "cat": 1,
}  # fmt: skip
"""What the network certainly launches, by operation. Attention on the meta device is spelt out, with two `bmm`."""
LIMIT = 0.02
ZTSNR = NoiseSchedule.scaled_linear().with_zero_terminal_snr()


@dataclass
class Work:
    kernels: float = 0
    bytes: float = 0
    flops: float = 0


class Counter(TorchDispatchMode):
    """Operations on meta tensors as kernels; those on the schedule's tables, which stay on the CPU, by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.host = Work(), 0
        self.operations: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            self.host += 1
        elif not func.is_view:
            if not str(func).endswith(".Scalar"):  # the scale of attention, which its kernel does
                self.operations[str(func.overloadpacket).removeprefix("aten.")] += 1
            self.device.kernels += 1
            self.device.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.device.flops += max(tensor.numel() for tensor in tensors)
        return result


@pytest.fixture(scope="module")
def components(random_nano: Path) -> Components:
    return load_components(random_nano)


@pytest.fixture(scope="module")
def network() -> Work:
    """One call of SDXL's UNet on a conditional and an unconditional latent, in bf16."""
    with torch.device("meta"):
        unet = build_unet(SDXL).to(torch.bfloat16)
        x, t = torch.empty(2, *LATENT[1:], dtype=torch.bfloat16), torch.zeros(2, dtype=torch.long)
        context, pooled = torch.empty(2, 77, 2048, dtype=torch.bfloat16), torch.empty(2, 1280, dtype=torch.bfloat16)
        ids = torch.empty(2, 6)
    work = Work(bytes=sum(p.numel() * p.element_size() for p in unet.parameters()))

    def leaf(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        work.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (inputs[0], output))

    weighted = [module for module in unet.modules() if list(module.parameters(recurse=False))]
    hooks = [module.register_forward_hook(leaf) for module in weighted]
    with FlopCounterMode(display=False) as flops, Counter() as counter, torch.no_grad():
        predict(unet, x, t, TextFeatures(context, pooled), ids)
    for hook in hooks:
        hook.remove()
    work.flops = flops.get_total_flops()
    work.kernels = sum(KERNELS.get(name, 0) * count for name, count in counter.operations.items())
    return work


def test_the_network_is_counted_at_its_known_size(network: Work):
    """A training step, three forward passes of work, is 20.23 TFLOP per latent; 2.57 billion weights of two bytes."""
    assert network.flops == pytest.approx(2 * 20.23e12 / 3, rel=0.01)
    assert network.bytes > 2 * 2.567e9


def beside_the_network(name: str, scale: float = 5.0) -> tuple[Work, float]:
    """Per step: the work on the device, and operations on the schedule's tables."""
    output = torch.empty(2, *LATENT[1:], dtype=torch.bfloat16, device="meta")
    guidance = Guidance(scale, 0.7)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x.repeat(2, 1, 1, 1).to(torch.bfloat16), t.repeat(2)  # what the UNet would be given
        return guidance.combine(*output.float().chunk(2))

    def noise(index: int) -> torch.Tensor:
        return torch.randn(LATENT, device="meta")

    with Counter() as counter:
        x = torch.empty(LATENT, device="meta")
        grid = for_solver(name, "trailing", STEPS, ZTSNR)
        assert len(list(SOLVERS[name](velocity_denoiser(network, ZTSNR), ZTSNR, x, grid, noise))) == STEPS
    work = counter.device
    return Work(work.kernels / STEPS, work.bytes / STEPS, work.flops / STEPS), counter.host / STEPS


def in_a_drawing(components: Components, name: str, canvas: Canvas | None) -> float:
    """Operations per step of `draw` outside the UNet, on tensors other than the float64 tables of the schedule."""
    counted: list[int] = []
    inside = False

    class Outside(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            tables = all(tensor.dtype == torch.float64 or tensor.ndim == 0 for tensor in tensors)
            if not (inside or tables or func.is_view or "_local_scalar" in str(func)):
                counted[-1] += 1
            return result

    def enter(*_: object) -> None:
        nonlocal inside
        inside = True

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    hooks = [components.unet.register_forward_pre_hook(enter), components.unet.register_forward_hook(leave)]
    few, more = 4, 8
    for steps in (few, more):  # what is done once, such as reading the prompts, cancels
        settings = Settings(steps=steps, solver=name, guidance=5.0)
        counted.append(0)
        with Outside():
            assert len(list(generate(components, [ImageRequest("a dog", 0)], settings, canvas))) == steps
    for hook in hooks:
        hook.remove()
    return (counted[1] - counted[0]) / (more - few)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_drawing_does_beside_its_network_is_as_little(
    name: str, masked: bool, network: Work, components: Components
):
    """The whole way of an image on a small model, whose operations outside the network are those of a large one."""
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 8:24] = True
    canvas = Canvas(torch.zeros(32, 32, 3, dtype=torch.uint8), mask, lambda drawn: drawn) if masked else None
    operations = in_a_drawing(components, name, canvas)
    print(f"{name:16s} masked {masked!s:5s} operations {operations:.1f} = {operations / network.kernels:.2%}")
    assert operations >= 15
    assert operations <= LIMIT * network.kernels


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_costs_at_most_two_percent_beside_its_network(name: str, network: Work):
    step, host = beside_the_network(name)
    ratios = step.kernels / network.kernels, step.bytes / network.bytes, step.flops / network.flops
    print(
        f"{name:16s} kernels {step.kernels:5.1f} / {network.kernels:.0f} = {ratios[0]:.2%}   "
        f"MB {step.bytes / 1e6:5.1f} / {network.bytes / 1e6:,.0f} = {ratios[1]:.2%}   "
        f"MFLOP {step.flops / 1e6:4.1f} / {network.flops / 1e6:,.0f} = {ratios[2]:.5%}   host operations {host:.0f}"
    )
    assert step.kernels >= 10  # guidance and conversion were there to be counted
    assert max(ratios) <= LIMIT
