"""`terminus train RECIPE --plan`: what a run will need and how long it should take, before it is begun.

Bytes and FLOPs are counted on the real network; time and energy follow from a stated share of what the GPU's matrix
products reach. Nothing is measured, and the output says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

import torch
from rich.console import Console
from rich.table import Table

from terminus.data import plan as data_plan
from terminus.errors import UserError
from terminus.model.architecture import SDXL
from terminus.progress import waiting
from terminus.training.objectives import Diffusion
from terminus.training.plan.gpus import GPUS, Gpu, find_gpu
from terminus.training.plan.memory import (
    RESERVE,
    BatchSplit,
    Memory,
    best_cut,
    largest,
    own_cut,
    seconds_per_image,
    shape_of,
    spoken,
    traffic_of,
    trained_parameters,
)
from terminus.training.plan.networks import networks_of
from terminus.training.plan.traffic import MACHINE, NETWORK, Traffic
from terminus.training.preflight import cannot_shard
from terminus.training.recipe import Recipe

EFFICIENCIES = (0.4, 0.5)
"""Shares of the peak at which time is stated: the bar and the stretch that we set ourselves."""


@dataclass(frozen=True)
class Bound:
    """Time and energy at one efficiency; an upper bound of the speed, since it counts the UNet's products alone."""

    efficiency: float
    images_per_second: float
    """Of all processes together, what they send taken off."""
    hours: float
    gpu_hours: float
    kwh: float
    """The GPUs' power limit for that long, and nothing of the machines around them."""


@dataclass(frozen=True)
class Disk:
    """Bytes that the run writes, and how many checkpoints."""

    saves: int
    checkpoint: float
    """Bytes of one."""
    most: float
    """Bytes of those on disk at the same time, the finished model included."""


@dataclass(frozen=True)
class TrainingPlan:
    """The recipe on one GPU, or on several with a process each."""

    gpu: Gpu
    processes: int
    own: BatchSplit
    traffic: Traffic
    """What the processes send in a step, as the recipe divides it."""
    choices: tuple[BatchSplit, ...]
    """For each way of checkpointing, the largest micro-batch that fits."""
    best: BatchSplit | None
    bounds: tuple[Bound, ...]
    disk: Disk
    notes: tuple[str, ...]


def plan_training(recipe: Recipe, gpu: Gpu, processes: int = 1) -> TrainingPlan:
    """Counts for up to a minute at the size of SDXL.

    Raises UserError for an objective other than diffusion, and for groups (`replicas`) of unequal size.
    """
    replicas = recipe.training.parallel.replicas
    if recipe.training.parallel.shard == "full" and processes % replicas:
        raise UserError(
            f"{processes} processes cannot form {replicas} groups of equal size",
            where="training.parallel.replicas",
            fix=f"Plan for a multiple of {replicas} processes, or change it",
        )
    own = own_cut(recipe, gpu.memory, processes)
    choices = tuple(largest(recipe, gpu.memory, processes))
    return TrainingPlan(
        gpu, processes, own, traffic_of(recipe, own), choices, best_cut(recipe, gpu, processes=processes),
        tuple(bound(recipe, own, gpu, share) for share in EFFICIENCIES), _disk(recipe, own), _notes(recipe, gpu, own),
    )  # fmt: skip


def bound(recipe: Recipe, cut: BatchSplit, gpu: Gpu, efficiency: float) -> Bound:
    """Speed = efficiency × peak / FLOPs of an image, those that are computed again included, on each GPU.

    To the time that a step takes so comes what the processes send one another in it.
    """
    images = recipe.training.global_batch
    computing = images / cut.processes * cut.cost.total / (efficiency * gpu.peak)
    rate = images / (computing + traffic_of(recipe, cut).seconds(gpu))
    hours = recipe.training.images / rate / 3600
    gpu_hours = hours * cut.processes
    return Bound(efficiency, rate, hours, gpu_hours, gpu_hours * gpu.watts / 1000)


def stage_of(recipe: Recipe, gpu: Gpu) -> data_plan.TrainingEstimate:
    """Training as the last stage of `terminus prepare --plan`, on one GPU; what is not planned is None."""
    images = recipe.training.images
    if not isinstance(recipe.objective, Diffusion):
        stage = data_plan.Stage("train", images, None, 0.0, None, None)
        return data_plan.TrainingEstimate(
            stage, SDXL.vae.factor, f"not known: the objective {recipe.objective.kind}'s time"
        )
    own = own_cut(recipe, gpu.memory)
    at = bound(recipe, own, gpu, EFFICIENCIES[0])
    stage = data_plan.Stage("train", images, _disk(recipe, own).most, 0.0, at.gpu_hours, at.kwh)
    note = f"assumed: training at {at.efficiency:.0%} of the peak; `terminus train RECIPE --plan` has the parts"
    return data_plan.TrainingEstimate(stage, networks_of(recipe).factor, note)


def _disk(recipe: Recipe, own: BatchSplit) -> Disk:
    training, memory = recipe.training, own_cut(recipe, 0.0).memory  # a checkpoint is whole, whoever holds what
    trained = trained_parameters(recipe, own.cost)
    checkpoint = memory.weights + memory.moments + 4.0 * trained
    milestones = (
        training.images // training.checkpoints.milestone_images if training.checkpoints.milestone_images else 0
    )
    # The finished model is in half precision.
    finished = 2.0 * (own.cost.parameters + networks_of(recipe).trained_text + networks_of(recipe).frozen)
    at_once = training.checkpoints.keep + milestones + 1  # the newest is complete before the oldest goes
    return Disk(
        max(1, training.images // training.checkpoints.every_images), checkpoint, at_once * checkpoint + finished
    )


def _notes(recipe: Recipe, gpu: Gpu, own: BatchSplit) -> tuple[str, ...]:
    return (_average_note(recipe, own), *_process_notes(recipe, gpu, own), *_counting_notes(recipe, gpu, own))


def _average_note(recipe: Recipe, own: BatchSplit) -> str:
    if own.memory.average:
        return f"training.ema.device=cpu would free {spoken(own.memory.average)}"
    several = ", divided among the processes" if own.processes > 1 else ""
    return f"the average is kept on the CPU ({spoken(4.0 * trained_parameters(recipe, own.cost))}{several})"


def _process_notes(recipe: Recipe, gpu: Gpu, own: BatchSplit) -> list[str]:
    notes: list[str] = []
    if own.processes == 1:
        return notes
    if recipe.training.parallel.shard == "full" and (problem := cannot_shard(recipe)):
        notes.append(f"training.parallel.shard: full will be refused, since {problem}")
    notes.append(f"taken for sending, as if nothing ran beside it: {_links(own.processes, gpu)}")
    return notes


def _counting_notes(recipe: Recipe, gpu: Gpu, own: BatchSplit) -> list[str]:
    """Notes on what was assumed where the recipe does not decide it, and on what is not counted."""
    notes: list[str] = []
    if gpu.measured is None:
        notes.append(f"no measured peak of {gpu.name}: the share of its sheet that an H100 reaches")
    if networks_of(recipe).assumed:
        notes.append("the model or its text encoders are not on this machine: SDXL's sizes stand in for them")
    if networks_of(recipe).trained_text:
        notes.append("activations and FLOPs of the trained text encoders are not counted")
    if recipe.model.adapter is not None and recipe.training.precision == "bf16":
        notes.append("what is frozen is stored in bf16, and waits on the CPU as it was loaded for the end of the run")
    if recipe.training.compile:
        notes.append("counted as uncompiled; compiled blocks keep less, by how much is not measured")
    elif own.activation_checkpointing.startswith("selective"):
        notes.append("uncompiled, selective checkpointing decides in Python for each operation: set training.compile")
    return notes


def _links(processes: int, gpu: Gpu) -> str:
    inside = f"{gpu.link:.0f} GB/s each way within a machine of up to {MACHINE} GPUs (sheet)"
    return inside if processes <= MACHINE else f"{inside}, {NETWORK:.0f} GB/s for each GPU to others (assumed)"


def show_training_plan(recipe: Recipe, gpu_name: str | None, as_json: bool, processes: int = 1) -> None:
    """Prints the plan: to standard output, as tables or as one JSON object."""
    gpu = chosen_gpu(gpu_name)
    with waiting(Console(stderr=True, highlight=False), "counting memory and FLOPs of every way to divide a step"):
        plan = plan_training(recipe, gpu, processes)
    if as_json:
        print(json.dumps(_object(recipe, plan), indent=1))
        return
    console = Console(highlight=False)
    for part in (
        *_facts(recipe, plan),
        f"\nmemory of {plan.own}{', on the fullest GPU' if processes > 1 else ''}:",
        _memory_table(plan),
        f"\nlargest micro-batches of {recipe.training.global_batch} images that fit; images/s estimated at "
        f"{EFFICIENCIES[-1]:.0%} of the peak with slow small products and memory traffic added, hence below the bound:",
        _cuts_table(recipe, plan),
        *_verdict(plan),
    ):
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def chosen_gpu(name: str | None) -> Gpu:
    """The one named, else the one that is here, else an H100. UserError for a name that is not known."""
    if name is not None:
        return find_gpu(name)
    if torch.cuda.is_available():
        return find_gpu(torch.cuda.get_device_name())
    return GPUS["h100"]


def _facts(recipe: Recipe, plan: TrainingPlan) -> list[str]:
    cost, gpu, shape = plan.own.cost, plan.gpu, shape_of(recipe)
    peak = f"{gpu.peak / 1e12:.0f} TFLOP/s ({'measured' if gpu.measured else 'assumed'}; sheet {gpu.sheet:.0f})"
    name = f"{plan.processes} × {gpu.name}" if plan.processes > 1 else gpu.name
    lines = [
        f"{name}: {spoken(gpu.memory)} usable, {spoken(RESERVE)} of them in reserve, matrix products {peak}",
        f"UNet: {cost.parameters:,} parameters, latents {shape.height} × {shape.width} (largest bucket)",
        f"per image: forward {cost.forward / 1e12:.3f} TFLOP, with backward and what is computed again "
        f"{cost.total / 1e12:.3f} TFLOP",
    ]
    # The bound of matrix products alone, at several shares of the peak.
    for each in plan.bounds:
        lines.append(
            f"bound, products alone at {each.efficiency:.0%} of the peak: {each.images_per_second:.1f} images/s, "
            f"{_time(each.hours)} for {recipe.training.images:,} images, {each.gpu_hours:,.0f} GPU hours, "
            f"{each.kwh:,.1f} kWh"
        )
    if plan.processes > 1:
        # What each GPU sends to the others.
        sent = spoken(plan.traffic.inside) + " within its machine"
        if plan.traffic.across:
            sent += f" and {spoken(plan.traffic.across)} to others"
        seconds = plan.traffic.seconds(gpu)
        lines.append(f"each GPU sends {sent} in a step of {recipe.training.global_batch} images: {seconds:.3f} s")
    disk = plan.disk
    lines.append(
        f"disk: {disk.saves} checkpoints of {spoken(disk.checkpoint)}, at most {spoken(disk.most)} at the same time"
    )
    return lines


def _memory_table(plan: TrainingPlan) -> Table:
    table = Table()
    table.add_column("part")
    table.add_column("", justify="right")
    for part in fields(Memory):
        if size := getattr(plan.own.memory, part.name):
            table.add_row(part.name, spoken(size))
    table.add_section()
    table.add_row("total", spoken(plan.own.memory.total))
    return table


def _cuts_table(recipe: Recipe, plan: TrainingPlan) -> Table:
    table = Table()
    for name in ("activation_checkpointing", "micro-batch", "memory", "per image", "TFLOP", "images/s"):
        table.add_column(name, justify="left" if name == "activation_checkpointing" else "right")
    for cut in plan.choices:
        table.add_row(
            cut.activation_checkpointing,
            f"{cut.micro_batch} × {cut.accumulation}",
            spoken(cut.memory.total),
            spoken(cut.cost.peak),
            f"{cut.cost.total / 1e12:.2f}",
            f"{1 / seconds_per_image(recipe, cut, plan.gpu):.1f}",
        )
    return table


def _verdict(plan: TrainingPlan) -> list[str]:
    own = plan.own
    first = f"the recipe's {own} {'fits' if own.fits else 'does NOT fit'}"
    if not own.shared:
        first += f" and can NOT be shared: {own.accumulation} is no multiple of {own.processes}"
    notes = [f"note: {note}" for note in plan.notes]
    return [first, _best(own, plan.best), *notes, "counted and computed; nothing here was measured"]


def _best(own: BatchSplit, best: BatchSplit | None) -> str:
    whole = own.micro_batch * own.accumulation
    if best is None and whole % own.processes:
        fewer = max(number for number in range(1, own.processes) if whole % number == 0)
        return f"{whole} images cannot be divided among {own.processes} processes; {fewer} of them could"
    if best is None:
        return "nothing fits: lower data.resolution, or store less (training.optimizer.moments, training.weights)"
    if (best.micro_batch, best.activation_checkpointing) == (own.micro_batch, own.activation_checkpointing):
        return "it is the fastest by the estimate, too"
    return (
        f"fastest by the estimate: training.micro_batch={best.micro_batch} "
        f"training.accumulation={best.accumulation} "
        f"training.activation_checkpointing={best.activation_checkpointing}"
    )


def _object(recipe: Recipe, plan: TrainingPlan) -> dict[str, object]:
    def cut(value: BatchSplit) -> dict[str, object]:
        modelled = 1 / seconds_per_image(recipe, value, plan.gpu)
        return {
            **asdict(value),
            "shared": value.shared,
            "total_bytes": value.memory.total,
            "modelled_images_per_second": modelled,
        }

    shape = shape_of(recipe)
    return {
        "measured": False,
        "gpu": asdict(plan.gpu) | {"peak_flops": plan.gpu.peak},
        "processes": plan.processes,
        "traffic": asdict(plan.traffic) | {"seconds": plan.traffic.seconds(plan.gpu)},
        "latents": [shape.height, shape.width],
        "own": cut(plan.own),
        "best": None if plan.best is None else cut(plan.best),
        "choices": [cut(value) for value in plan.choices],
        "bounds": [asdict(value) for value in plan.bounds],
        "disk": asdict(plan.disk),
        "reserve_bytes": RESERVE,
        "notes": list(plan.notes),
    }


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.1f} min"
