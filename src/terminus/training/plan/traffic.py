"""The share of a training that each of several processes holds, and what they send: counted before any is started.

Sizes come from the real networks on the meta device, divided by the rules of `sharding`. The fullest process counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from math import prod
from typing import cast

import torch
from torch import nn

from terminus.model.adapter_keys import Part
from terminus.model.foreign import sdxl_configs
from terminus.model.parts import TEXT_ENCODERS
from terminus.model.text_encoders import make_text_encoder
from terminus.model.unet import UNet
from terminus.model.weights import make_module
from terminus.training.distributed.sharding import BUCKET_BYTES, Parallel, owners
from terminus.training.networks.adapter import AdapterConfig, inject
from terminus.training.networks.execution import BLOCKS
from terminus.training.plan.gpus import Gpu
from terminus.training.plan.networks import Networks

MACHINE = 8
"""GPUs that one machine holds: our assumption. Those of one machine send at `Gpu.link`."""
NETWORK = 50.0
"""GB/s that each GPU sends between machines, one way: our assumption, a network card of 400 Gb/s for each."""


@dataclass(frozen=True)
class Network:
    """The trained parameters of one network, in their order."""

    shapes: tuple[tuple[int, ...], ...]
    block: int
    """Numbers in its largest block, of those that FSDP gathers one by one (`networks.execution.BLOCKS`)."""
    rest: int
    """Numbers outside of all blocks, which FSDP keeps gathered while the network computes."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in an optimizer step; it receives as many."""

    inside: float
    """To another GPU of the machine."""
    across: float
    """To another machine. Rings that leave a machine do so once, each at another of its GPUs."""

    def seconds(self, gpu: Gpu) -> float:
        """Seconds of sending in a step at the speeds of `Gpu.link` and `NETWORK`, as if nothing ran beside it."""
        return self.inside / (1e9 * gpu.link) + self.across / (1e9 * NETWORK)


@dataclass(frozen=True)
class Division:
    """One of several processes: the fullest."""

    state: float
    """Its share of moments and average, up to 1."""
    weights: float
    """Its share of weights and gradients: 1 where each process has all of them."""
    exchange: float
    """Bytes of what is on its way to or from other processes, at most at one time."""


ALONE = Division(1.0, 1.0, 0.0)
"""One process, which has everything."""


def divide(networks: Networks, adapter: AdapterConfig | None, settings: Parallel, processes: int) -> Division:
    """The share that the fullest of so many processes holds."""
    if processes == 1:
        return ALONE
    trained = _trained(networks, adapter)
    shapes = [*chain.from_iterable(network.shapes for network in trained)]
    share = max(held_numbers(shapes, settings, processes)) / sum(map(prod, shapes))
    if settings.shard == "optimizer":
        return Division(share, 1.0, exchanged(shapes))
    return Division(share, share, max(map(gathered, trained)))


def held_numbers(shapes: Iterable[tuple[int, ...]], settings: Parallel, processes: int) -> list[int]:
    """The number of values that each process has moments of: whole parameters, or rows of each (torch's `chunk`)."""
    if settings.shard == "optimizer":
        sizes = {f"{place:06}": prod(shape) for place, shape in enumerate(shapes)}
        held = [0] * processes
        for name, owner in owners(sizes, processes).items():
            held[owner] += sizes[name]
        return held
    group, held = processes // settings.replicas, [0] * processes
    for shape in shapes:
        rows = shape[0] if shape else 1
        # As torch's `chunk` cuts: equal shares, rounded up, so that the last processes get less or none.
        each = -(-rows // group)
        for process in range(processes):
            here = max(0, min(each, rows - process % group * each))
            held[process] += here * prod(shape) // max(1, rows)
    return held


def exchanged(shapes: Iterable[tuple[int, ...]]) -> float:
    """Bytes of the buffers in which `Replicated` sends gradients: the next one is filled before the last one goes.

    They come after the backward pass and may use its room; they are counted beside it, since what an allocator has
    cut into pieces it cannot always join.
    """
    filled, buffers = 0, [0]
    for shape in shapes:
        filled += 4 * prod(shape)
        if filled >= BUCKET_BYTES:
            buffers.append(filled)
            filled = 0
    return float(max(one + two for one, two in pairwise([*buffers, filled])))


def gathered(network: Network) -> float:
    """Bytes that FSDP holds whole, in float32: what is outside of blocks, a block and the next, and their gradients
    as they are made and as they are sent; or at the end what is outside of blocks, its gradients, and those sent."""
    return 4.0 * max(network.rest + 4 * network.block, 3 * network.rest)


def traffic(weights: float, trained: int, settings: Parallel, processes: int, micro_batches: float) -> Traffic:
    """The traffic of a step with so many micro-batches on each process; `weights` are the bytes of all that is trained.

    Around a ring of n, n-1 of n parts pass each process when something is sent to all, or summed in parts; twice
    that when all get the sum. Gradients are float32.
    """
    if processes == 1:
        return Traffic(0.0, 0.0)
    gradients = 4.0 * trained
    if settings.shard == "optimizer":  # once per step: the gradients' sum, then each owner's weights
        sent = _ring(processes) * (2 * gradients + weights)
        return Traffic(sent, sent / MACHINE if processes > MACHINE else 0.0)
    group = processes // settings.replicas
    # Each micro-batch: blocks are gathered in both passes, and gradients summed to where their rows are.
    sharded = micro_batches * _ring(group) * (2 * weights + gradients)
    # Then each share's gradients are summed over the groups that have it.
    summed = micro_batches * 2 * _ring(settings.replicas) * gradients / group
    # Groups as large as a machine lie on different ones.
    inside = sharded + (summed if group < MACHINE else 0.0)
    if processes <= MACHINE:
        return Traffic(inside, 0.0)
    return Traffic(inside, (sharded / MACHINE if group > MACHINE else 0.0) + summed * min(group, MACHINE) / MACHINE)


def _ring(processes: int) -> float:
    return (processes - 1) / processes


def _trained(networks: Networks, adapter: AdapterConfig | None) -> tuple[Network, ...]:
    text_encoders: tuple[str, str] | None = None
    if networks.trained_text:
        whole = sdxl_configs()
        text_encoders = networks.text_encoders or (
            json.dumps(whole["text_encoder"]),
            json.dumps(whole["text_encoder_2"]),
        )
    return _networks(networks.unet, text_encoders, adapter.model_dump_json() if adapter else None)


@lru_cache(maxsize=16)
def _networks(unet: str, text_encoders: tuple[str, str] | None, adapter: str | None) -> tuple[Network, ...]:
    """On the meta device, where they take no memory."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"unet": make_module(UNet, json.loads(unet), "the network to be counted")}
        for place, (name, config) in enumerate(zip(TEXT_ENCODERS, text_encoders or (), strict=False), start=1):
            modules[f"text_encoder_{place}"] = make_text_encoder(
                *TEXT_ENCODERS[name], json.loads(config), None, "the text encoder to be counted"
            )
        for part, module in modules.items():
            module.requires_grad_(True)
            if adapter is not None:
                inject(module, cast(Part, part), AdapterConfig.model_validate_json(adapter))
    return tuple(map(_network, modules.values()))


def _network(module: nn.Module) -> Network:
    shapes = tuple(tuple(one.shape) for one in module.parameters() if one.requires_grad)
    blocks = [_trained_numbers(block) for block in module.modules() if type(block).__name__ in BLOCKS]
    return Network(shapes, max(blocks, default=0), _trained_numbers(module) - sum(blocks))


def _trained_numbers(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters() if one.requires_grad)
