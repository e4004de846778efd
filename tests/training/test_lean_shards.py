"""Shards of a parameter are updated and rounded as the whole would be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from terminus.errors import UserError
from terminus.training.optim.clipping import clip_gradient_norm
from terminus.training.optim.optimizer import Adafactor, AdamW, build_optimizer, set_rate
from terminus.training.optim.weight_formats import store_weights

SHAPE = (33, 16)  # does not divide by two: the shards differ in size
STEPS = 3


def module(weights: Tensor) -> nn.Module:
    holder = nn.Module()
    holder.register_parameter("weight", nn.Parameter(weights))
    return holder


def gradient(step: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))


def whole() -> tuple[Tensor, float]:
    """The weights after some steps in one process, and the last norm of the gradient."""
    one = module(torch.ones(SHAPE))
    store_weights(one, "bf16")
    optimizer, norm = build_optimizer(one, AdamW(moments="bf16"), seed=3), 0.0
    for step in range(STEPS):
        next(one.parameters()).grad = gradient(step)
        norm = clip_gradient_norm(one.parameters(), 1.0)
        set_rate(optimizer, 1e-2)
        optimizer.step()
    return next(one.parameters()).detach(), norm


def in_a_process(rank: int, port: int, out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    one = module(distribute_tensor(torch.ones(SHAPE).bfloat16(), mesh, [Shard(0)]))
    parameter = next(one.parameters())
    parameter.grad_dtype = torch.float32
    optimizer, norm = build_optimizer(one, AdamW(moments="bf16"), seed=3), 0.0
    for step in range(STEPS):
        parameter.grad = distribute_tensor(gradient(step), mesh, [Shard(0)])
        norm = clip_gradient_norm(one.parameters(), 1.0)
        set_rate(optimizer, 1e-2)
        optimizer.step()
    assert isinstance(parameter, DTensor)
    found, (expected, expected_norm) = parameter.full_tensor(), whole()
    same = torch.equal(found, expected) and abs(norm - expected_norm) < 1e-5 * expected_norm
    replicated = module(distribute_tensor(torch.ones(SHAPE), mesh, [Replicate()]))
    refused = ""
    for held, placement in ((one, Shard(0)), (replicated, Replicate())):
        next(held.parameters()).grad = distribute_tensor(gradient(0), mesh, [placement])
        try:
            build_optimizer(held, Adafactor(kind="adafactor")).step()
            refused += "taken "
        except UserError as error:
            refused += "refused " if "shard: optimizer" in str(error) else ""
    (out / str(rank)).write_text(f"{same} {refused}")
    destroy_process_group()
    # gloo's threads may still let go of the last tensors; one that does so while Python ends aborts the process.
    os._exit(0)


@pytest.mark.timeout(120)
def test_two_processes_round_as_one_does(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(in_a_process, (port, tmp_path), nprocs=2)
    assert [(tmp_path / str(rank)).read_text().split() for rank in (0, 1)] == [["True", "refused", "taken"]] * 2
