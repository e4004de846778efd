"""Several processes that share one training: what each holds, and when they exchange it.

Every process computes other micro-batches of the same step (`data.loader`), so the global batches, their order and all
randomness are those of one process; what is added in another order differs in its last bits. Two ways:

- `optimizer`: each has all weights. Gradients are averaged once per step, after the accumulation; each process then
  moves the parameters that it owns, of which it alone has moments and average (Rajbhandari et al. 1910.02054, stage 1),
  and sends them to the others.
- `full`: FSDP2. Each has a share of the rows of every tensor, and blocks are gathered while they compute (stage 3);
  with `replicas`, processes are divided into that many groups, each with all of the model (HSDP).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from terminus.config.base import Config
from terminus.training.distributed.process_group import World
from terminus.training.networks.execution import BLOCKS
from terminus.training.networks.joint import JointModel

BUCKET_BYTES = 256 << 20
"""Tensors are sent together up to this size."""


class Parallel(Config):
    """The settings by which several processes (torchrun) share a run; no effect on a single one."""

    shard: Literal["optimizer", "full"] = "optimizer"
    """What is sharded: optimizer state and average, or with `full` (FSDP2) weights and gradients as well."""
    replicas: int = Field(default=1, gt=0)
    """With `full`: groups that each hold the whole model, one per machine where the network between them is slow."""


@runtime_checkable
class Engine(Protocol):
    """The exchange of gradients and weights between processes, whatever this one holds of the trained module."""

    @property
    def writes(self) -> bool:
        """Whether this process saves what it holds; a replica of what another one saves does not."""
        ...

    def mine(self, name: str) -> bool:
        """Whether this process moves and averages (its rows of) the parameter."""
        ...

    def average_gradients(self) -> None:
        """After the backward passes of a step: their mean over processes, where it is not that yet."""
        ...

    def share_weights(self) -> None:
        """After weights changed where they are owned: everywhere else as well."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Within it the first process has every parameter whole, as a plain tensor."""
        ...


class Alone:
    """One process, which has everything."""

    writes = True

    def mine(self, name: str) -> bool:
        """True: every parameter belongs to this process."""
        return True

    def average_gradients(self) -> None:
        """Does nothing: there are no other processes."""

    def share_weights(self) -> None:
        """Does nothing: there are no other processes."""

    def whole(self) -> AbstractContextManager[None]:
        """The weights are whole at any time."""
        return nullcontext()


class Replicated:
    """All weights everywhere; each parameter is owned by one process."""

    writes = True

    def __init__(self, module: nn.Module, world: World) -> None:
        self._world = world
        self._parameters = {name: one for name, one in module.named_parameters() if one.requires_grad}
        self._owner = owners({name: one.numel() for name, one in self._parameters.items()}, world.size)

    def mine(self, name: str) -> bool:
        """Whether this process owns the parameter."""
        return self._owner[name] == self._world.rank

    def average_gradients(self) -> None:
        """One sum over all processes, in the gradients' own format (float32)."""
        gradients = [one.grad for one in self._parameters.values() if one.grad is not None]
        for flat, pieces in _buckets(gradients):
            distributed.all_reduce(flat)
            _unpack(flat.div_(self._world.size), pieces)

    @torch.no_grad()
    def share_weights(self) -> None:
        """Each owner sends what it owns."""
        for owner in range(self._world.size):
            owned = [one.detach() for name, one in self._parameters.items() if self._owner[name] == owner]
            for flat, pieces in _buckets(owned):
                distributed.broadcast(flat, owner)
                if owner != self._world.rank:
                    _unpack(flat, pieces)

    def whole(self) -> AbstractContextManager[None]:
        """The weights are whole at any time."""
        return nullcontext()


class Sharded:
    """FSDP2: rows of every tensor are divided, and a block's are gathered in float32 while it computes."""

    def __init__(self, module: nn.Module, world: World, replicas: int, device: torch.device) -> None:
        # One group that shares everything, or several that each do (HSDP).
        shape, names = (world.size,), ("shard",)
        if replicas > 1:
            shape, names = (replicas, world.size // replicas), ("replicate", "shard")
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        # Ranks count along the last dimension, so the first group has the lowest.
        self.writes = world.rank < shape[-1]
        # The networks, not what ties them together: that is never called, and FSDP acts on calls.
        networks = [*module.children()] if isinstance(module, JointModel) else [module]
        for network in networks:
            _shard(network, mesh)
        _keep_class_names(module)
        self._module, self._first = module, world.first

    def mine(self, name: str) -> bool:
        """True: some rows of every parameter belong to this process."""
        return True

    def average_gradients(self) -> None:
        """Does nothing: FSDP has averaged them block by block."""

    def share_weights(self) -> None:
        """Does nothing: every block is gathered anew when it computes."""

    @contextmanager
    def whole(self) -> Generator[None]:
        """Gathers the weights one by one, for the first process alone, into its machine's memory."""
        # All shards are listed before any is replaced.
        shards: list[tuple[nn.Module, str, nn.Parameter]] = []
        for module in self._module.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(parameter, DTensor):
                    shards.append((module, name, parameter))
        # A gather needs every process; the first alone keeps what comes of it.
        for module, name, parameter in shards:
            full = cast(DTensor, parameter.detach()).full_tensor()
            if self._first:
                module.register_parameter(name, nn.Parameter(full.cpu()))
        try:
            yield
        finally:
            # The shards again: the optimizer holds these very parameters.
            for module, name, parameter in shards:
                module.register_parameter(name, parameter)


def _shard(network: nn.Module, mesh: DeviceMesh) -> None:
    for parameter in network.parameters():
        if parameter.requires_grad:  # FSDP cuts plain memory alone, and channels last is not that
            parameter.data = parameter.data.contiguous()
    # What is not trained stays whole; it may be stored in another format, and a group has one.
    frozen = {parameter for parameter in network.parameters() if not parameter.requires_grad}
    blocks = [block for block in network.modules() if type(block).__name__ in BLOCKS]
    # The network comes last, and like its blocks gives the gathered weights back: shards are looked at between steps.
    for unit in (*blocks, network):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)


def _keep_class_names(module: nn.Module) -> None:
    """Undoes FSDP's renaming: transformers finds what it records by the class's name, and configurations hold it."""
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            shell, plain = type(unit), type(unit).__bases__[1]
            shell.__module__ = plain.__module__
            shell.__name__ = plain.__name__
            shell.__qualname__ = plain.__qualname__


def engage(module: nn.Module, settings: Parallel, world: World, device: torch.device) -> Engine:
    """Prepares the trained module, whose blocks are checkpointed and compiled by now, and its exchange."""
    if world.size == 1:
        return Alone()
    if settings.shard == "full":
        return Sharded(module, world, settings.replicas, device)
    return Replicated(module, world)


def owners(sizes: Mapping[str, int], processes: int) -> dict[str, int]:
    """Who owns which parameter: the largest first, each to the process that has least so far."""
    loads = [0] * processes
    owner: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += sizes[name]
    return owner


def _buckets(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The tensors in one piece after the other, by format: one large message is faster than many small ones."""
    waiting: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        some = waiting.setdefault(tensor.dtype, [])
        some.append(tensor)
        if sum(one.nbytes for one in some) >= BUCKET_BYTES:
            yield _flat(waiting.pop(tensor.dtype))
    for some in waiting.values():
        yield _flat(some)


def _flat(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]), tensors


def _unpack(flat: Tensor, tensors: list[Tensor]) -> None:
    for tensor, piece in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
        tensor.copy_(piece.view(tensor.shape))
