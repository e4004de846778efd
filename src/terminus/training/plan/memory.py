"""The memory that a recipe needs, by part, and which cut of the global batch fits a GPU.

Bytes and FLOPs are counted (`cost`) and those of the state follow from the recipe; nothing here is measured on a
GPU. What a step costs in time stands in `planning`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch

from terminus.data.geometry import buckets
from terminus.errors import UserError
from terminus.training.networks.execution import Checkpointing
from terminus.training.objectives import Diffusion
from terminus.training.optim.weight_formats import state_bytes
from terminus.training.plan.cost import Cost, Shape, count_cost
from terminus.training.plan.gpus import Gpu
from terminus.training.plan.networks import Networks, in_text_encoders, networks_of
from terminus.training.plan.traffic import Traffic, divide, traffic
from terminus.training.recipe import Recipe

RESERVE = 3.5e9
"""Bytes left for kernels' workspaces and for what the allocator cannot join together."""
FEW_ROWS = 1024
"""Rows at which a matrix product reaches half of its speed: our assumption, so that 8 images of SDXL reach 89 %."""
MODES: tuple[Checkpointing, ...] = get_args(Checkpointing)


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU at the highest point of a step, by what holds them."""

    weights: float
    gradients: float
    moments: float
    average: float
    """0 where it is kept on the CPU."""
    compute: float
    """The copy of the weights in the format of the arithmetic, and what an adapter computes from weights alone."""
    frozen: float
    """What is used and not trained: VAE, text encoders, and the network under an adapter."""
    activations: float
    exchange: float = 0.0
    """What is on its way between several processes."""

    @property
    def total(self) -> float:
        """Bytes of all parts together."""
        return self.state + self.compute + self.frozen + self.activations + self.exchange

    @property
    def state(self) -> float:
        """Bytes that live as long as the run."""
        return self.weights + self.gradients + self.moments + self.average


@dataclass(frozen=True)
class BatchSplit:
    """One way to compute a global batch."""

    micro_batch: int
    accumulation: int
    """Micro-batches of a step, of all processes together."""
    activation_checkpointing: Checkpointing
    memory: Memory
    """Of the fullest process."""
    cost: Cost
    fits: bool
    processes: int = 1

    @property
    def shared(self) -> bool:
        """Whether each process gets as many micro-batches, as it must."""
        return self.accumulation % self.processes == 0

    def __str__(self) -> str:
        several = f" on {self.processes} processes" if self.processes > 1 else ""
        return (
            f"micro-batch {self.micro_batch} × {self.accumulation}{several}, "
            f"checkpointing {self.activation_checkpointing}"
        )


def own_cut(recipe: Recipe, room: float, processes: int = 1) -> BatchSplit:
    """The recipe's own choice, on GPUs with `room` bytes."""
    training = recipe.training
    return _cut(recipe, networks_of(recipe), training.activation_checkpointing, training.micro_batch, room, processes)


def largest(recipe: Recipe, room: float, processes: int = 1) -> Iterator[BatchSplit]:
    """The largest micro-batch that fits and divides the global batch, if any does, for each way of checkpointing.

    Several processes get as many micro-batches each.
    """
    networks = networks_of(recipe)
    whole = recipe.training.global_batch
    sizes = [number for number in range(1, whole + 1) if whole % (number * processes) == 0]
    for mode in MODES:
        fitting = [cut for size in sizes if (cut := _cut(recipe, networks, mode, size, room, processes)).fits]
        # Sizes rise, so the last one that fits is the largest.
        if fitting:
            yield fitting[-1]


def best_cut(recipe: Recipe, gpu: Gpu, room: float | None = None, processes: int = 1) -> BatchSplit | None:
    """The cut of the recipe's global batch that should be fastest among those that fit; None if none does."""
    cuts = list(largest(recipe, gpu.memory if room is None else room, processes))
    return min(cuts, key=lambda cut: seconds_per_image(recipe, cut, gpu), default=None)


def traffic_of(recipe: Recipe, cut: BatchSplit) -> Traffic:
    """The bytes that each process sends in a step."""
    training = recipe.training
    trained = trained_parameters(recipe, cut.cost)
    weights = state_bytes(training.optimizer, training.weights, training.precision).weights * trained
    return traffic(weights, trained, training.parallel, cut.processes, cut.accumulation / cut.processes)


def seconds_per_image(recipe: Recipe, cut: BatchSplit, gpu: Gpu, efficiency: float = 0.5) -> float:
    """A model to compare cuts by, of assumptions and not of measurements: of all processes together.

    Products run at a share of the peak that falls with the rows of the smallest matrices. What costs no products goes
    at full bandwidth: activations that are made again (written and read once more), and what each micro-batch does to
    all weights: gradients are added (read, read, written) and weights cast.
    """
    shape = shape_of(recipe)
    rows = cut.micro_batch * shape.deepest
    products = cut.cost.total / (efficiency * gpu.peak) * (rows + FEW_ROWS) / rows
    again = 2 * (_cost(recipe, "none").kept - cut.cost.kept)
    # Bytes per weight: 12 for a float32 gradient (read, read, written), 6 for reading a weight and writing its cast.
    weights = cut.cost.parameters * (12 + (6 if cut.memory.compute else 0)) / cut.micro_batch
    alone = products + (again + weights) / (1e12 * gpu.bandwidth)
    return alone / cut.processes + traffic_of(recipe, cut).seconds(gpu) / recipe.training.global_batch


def refuse_what_cannot_fit(recipe: Recipe, device: torch.device, processes: int = 1) -> None:
    """UserError, before anything is loaded, for a recipe that does not fit into what is free on a CUDA device.

    `processes` is how many train together, each on a device of its own.
    """
    if device.type != "cuda" or not isinstance(recipe.objective, Diffusion):
        return
    free, _ = torch.cuda.mem_get_info(device)
    own = own_cut(recipe, float(free), processes)
    if own.fits:
        return
    raise UserError(
        f"This needs {spoken(own.memory.total + RESERVE)} of GPU memory, and {spoken(float(free))} are free",
        where=f"training ({own})",
        rule=_parts(own.memory),
        fix=_advice(recipe, float(free), processes),
    )


def out_of_memory(recipe: Recipe, error: torch.OutOfMemoryError, processes: int = 1) -> UserError:
    """The error for a GPU that ran out of memory all the same: which settings help, with the planner's numbers."""
    # torch's first sentence says what was asked for; what follows is about its allocator.
    first = str(error).split(". ")[0].rstrip(".")
    if not isinstance(recipe.objective, Diffusion):
        return UserError(
            f"The GPU's memory is full ({first})",
            where="training",
            rule=f"The micro-batch is {recipe.training.micro_batch} at {recipe.data.resolution} pixels",
            fix="Lower training.micro_batch and raise training.accumulation by as much, or lower data.resolution",
        )
    # The whole device: what this process holds of it is free at the next start.
    room = float(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else 0.0
    own = own_cut(recipe, room, processes)
    per_sample = own.cost.peak
    return UserError(
        f"The GPU's memory is full ({first})",
        where=f"training ({own})",
        rule=f"Planned were {spoken(own.memory.total)}: {_parts(own.memory)}. Each image of a micro-batch takes "
        f"{spoken(per_sample)} at {recipe.data.resolution} pixels, in proportion to their number",
        fix=_advice(recipe, room, processes) if room else _knobs(recipe, processes),
    )


def _advice(recipe: Recipe, room: float, processes: int) -> str:
    """The three knobs; the first two with the largest values that fit."""
    fitting = [
        f"training.micro_batch={cut.micro_batch} training.accumulation={cut.accumulation} "
        f"training.activation_checkpointing={cut.activation_checkpointing} ({spoken(cut.memory.total)})"
        for cut in largest(recipe, room, processes)
    ]
    if not fitting:
        whole = recipe.training.global_batch
        if whole % processes:
            return f"Make training.micro_batch times training.accumulation ({whole}) a multiple of {processes} first"
        return (
            "Nothing fits at this resolution and state: lower data.resolution, keep the average on the CPU "
            "(training.ema.device=cpu), or store less (training.optimizer.moments, training.weights)"
        )
    return f"Set {' or '.join(fitting)}, or lower data.resolution and prepare again"


def _knobs(recipe: Recipe, processes: int) -> str:
    networks = networks_of(recipe)
    size = recipe.training.micro_batch
    cuts = [_cut(recipe, networks, mode, size, 0.0, processes) for mode in MODES]
    modes = [f"{cut.activation_checkpointing} {spoken(cut.memory.total)}" for cut in cuts]
    return (
        f"Set training.activation_checkpointing ({', '.join(modes)}), or lower training.micro_batch and raise "
        "training.accumulation by as much, or lower data.resolution and prepare again"
    )


def _cut(
    recipe: Recipe, networks: Networks, mode: Checkpointing, micro_batch: int, room: float, processes: int
) -> BatchSplit:  # fmt: skip
    cost = _cost(recipe, mode)
    training = recipe.training
    each = state_bytes(training.optimizer, training.weights, training.precision)
    trained = trained_parameters(recipe, cost)
    # All networks but what is trained in them; an adapter's factors are beside them.
    held = cost.parameters + networks.trained_text + networks.frozen - (0 if recipe.model.adapter else trained)
    # Two bytes and not four: frozen weights of blocks, those of text encoders unless they are trained.
    narrow = cost.narrow
    if training.precision == "bf16" and (recipe.model.adapter or not networks.trained_text):
        narrow += networks.text_blocks
    part = divide(networks, recipe.model.adapter, training.parallel, processes)
    memory = Memory(
        weights=part.weights * each.weights * trained,
        gradients=part.weights * each.gradients * trained,
        moments=part.state * each.moments * trained,
        average=part.state * 4.0 * trained if training.ema.device == "model" else 0.0,
        compute=cost.fixed,
        frozen=4.0 * held - 2.0 * narrow,
        activations=cost.peak * micro_batch,
        exchange=part.exchange,
    )
    accumulation = training.global_batch // micro_batch
    return BatchSplit(micro_batch, accumulation, mode, memory, cost, memory.total + RESERVE <= room, processes)


def trained_parameters(recipe: Recipe, cost: Cost) -> int:
    """Number of trained parameters: those of the networks, or of an adapter in them."""
    networks, adapter = networks_of(recipe), recipe.model.adapter
    if adapter is None or not networks.trained_text:
        return cost.trained + networks.trained_text
    return cost.trained + in_text_encoders(networks, adapter)


def _cost(recipe: Recipe, mode: Checkpointing) -> Cost:
    return count_cost(shape_of(recipe), mode)


def flop_per_image(recipe: Recipe) -> float:
    """FLOPs of the UNet for one image of the largest bucket, what is computed a second time included."""
    return _cost(recipe, recipe.training.activation_checkpointing).total


def shape_of(recipe: Recipe) -> Shape:
    """The UNet's case to count for one sample of the largest bucket."""
    networks = networks_of(recipe)
    transform = recipe.data.transform
    size = max(buckets(transform.resolution, transform.step), key=lambda size: size.height * size.width)
    factor = networks.factor
    training = recipe.training
    return Shape(
        networks.unet, size.height // factor, size.width // factor, networks.tokens,
        training.precision, training.weights, "cuda",
        recipe.model.adapter.model_dump_json() if recipe.model.adapter else None,
    )  # fmt: skip


def _parts(memory: Memory) -> str:
    named = (
        ("weights", memory.weights), ("gradients", memory.gradients), ("moments", memory.moments),
        ("average", memory.average), ("compute copy", memory.compute), ("frozen networks", memory.frozen),
        ("activations", memory.activations), ("exchange", memory.exchange),
    )  # fmt: skip
    return ", ".join(f"{name} {spoken(size)}" for name, size in named if size)


def spoken(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
