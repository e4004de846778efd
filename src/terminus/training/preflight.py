"""Checks before several processes train together: recipe, weights, data and the shared folder."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from terminus.errors import UserError
from terminus.model.adapter_keys import networks
from terminus.training.assemble import TrainingSetup
from terminus.training.distributed.process_group import World
from terminus.training.objectives import Diffusion
from terminus.training.optim.optimizer import AdamW
from terminus.training.recipe import Recipe

FOLDER_SECONDS = 30.0
"""How long a network file system may take to show a new file on another machine."""


def check_multi_process(recipe: Recipe, world: World) -> None:
    """UserError where this recipe cannot be shared by that many processes; alone, everything can."""
    if world.size > 1:
        world.once(lambda: _check(recipe, world))


def _check(recipe: Recipe, world: World) -> None:
    training = recipe.training
    if training.accumulation % world.size:
        raise UserError(
            f"training.accumulation is {training.accumulation}, and {world.size} processes were started",
            rule="A step's micro-batches are divided equally, so that results do not depend on the number of processes",
            fix=f"Make it a multiple of {world.size} (and micro_batch smaller by as much), or start fewer processes",
        )
    parallel = training.parallel
    if parallel.replicas > 1 and (parallel.shard != "full" or world.size % parallel.replicas):
        raise UserError(
            f"replicas is {parallel.replicas}, shard is {parallel.shard}, and processes are {world.size}",
            where="training.parallel",
            rule="Groups of equal size each hold one sharded model",
            fix="Set shard: full, and replicas to a divisor of the number of processes",
        )
    if parallel.shard == "full" and (problem := cannot_shard(recipe)):
        raise UserError(
            f"training.parallel.shard is full, and {problem}",
            rule="FSDP2 divides the rows of float32 weights, and acts when the UNet is called",
            fix="Set training.parallel.shard: optimizer, or change that setting",
        )


def cannot_shard(recipe: Recipe) -> str | None:
    """Why FSDP2 cannot divide this recipe's training; None if it can."""
    training = recipe.training
    if not isinstance(recipe.objective, Diffusion):
        return f"the objective is {recipe.objective.kind}"
    if recipe.model.adapter is not None:
        return "an adapter is trained, which is too small to need it"
    if training.weights != "fp32":
        return f"training.weights is {training.weights}"
    if not isinstance(training.optimizer, AdamW):
        return f"the optimizer is {training.optimizer.kind}, which needs whole matrices"
    if training.optimizer.moments == "int8":
        return "the moments are int8, in blocks that would be cut apart"
    return None


def check_agreement(world: World, parts: TrainingSetup) -> None:
    """UserError where processes loaded other weights or other rows: a model or store that differs between machines."""
    if world.size == 1:
        return
    rows = repr((parts.train.sizes, parts.held_out.sizes))
    # Digests travel, never the weights.
    for what, mine in (("weights", _digest(parts)), ("rows", rows)):
        all_of = world.gather(mine)
        odd = [rank for rank, one in enumerate(all_of) if one != all_of[0]]
        if odd:
            error = UserError(
                f"Process {odd[0]} of {world.size} loaded other {what} than process 0",
                rule="All processes begin with the same model and the same data",
                fix="Give every machine the same model.start and data.store: a shared folder, or equal copies",
            )
            error.told = not world.first
            raise error


def _digest(parts: TrainingSetup) -> str:
    """Digest of all weights that take part: of their sums, and of the sums of their squares."""
    modules = [parts.step.trained]
    if parts.components is not None:
        modules += [*networks(parts.components).values(), parts.components.vae.autoencoder]
    sums: list[tuple[str, float, float]] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            exact = parameter.detach().double()
            sums.append((name, float(exact.sum()), float(exact.square().sum())))
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def check_shared(folder: Path, world: World, wait: float = FOLDER_SECONDS) -> None:
    """UserError unless every process sees the run's folder that the first one writes."""
    if world.size == 1:
        return
    name = world.once(lambda: (folder / "recipe.yaml").read_text(encoding="utf-8"))

    def look() -> None:
        # A shared file system may show a new file only after a while.
        deadline = time.monotonic() + wait
        while True:
            try:
                if (folder / "recipe.yaml").read_text(encoding="utf-8") == name:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise UserError(
                    f"Process {world.rank} does not see what process 0 writes",
                    where=str(folder),
                    rule="run.dir is one folder for all machines: each writes its part of every checkpoint there",
                    fix="Put run.dir on a file system that all machines share",
                )
            time.sleep(0.2)

    world.together(look)
