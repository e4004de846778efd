"""What several processes hold and send, against the engines themselves in a group of invented processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from terminus import cli, runtime
from terminus.config.load import load
from terminus.errors import UserError
from terminus.model.architecture import NANO
from terminus.model.text import TextFeatures
from terminus.model.unet import UNet, build_unet, predict
from terminus.training.distributed import sharding
from terminus.training.distributed.process_group import World
from terminus.training.distributed.sharded_files import held
from terminus.training.distributed.sharding import Parallel, Replicated, Sharded
from terminus.training.networks.adapter import AdapterConfig
from terminus.training.plan import traffic as division
from terminus.training.plan.cost import Living
from terminus.training.plan.gpus import GPUS
from terminus.training.plan.memory import RESERVE, best_cut, largest, own_cut, refuse_what_cannot_fit
from terminus.training.plan.networks import networks_of
from terminus.training.plan.traffic import Traffic, divide, exchanged, gathered, held_numbers, traffic
from terminus.training.recipe import Recipe

SEVERAL = 4
CPU = torch.device("cpu")


@pytest.fixture
def group() -> Iterator[None]:
    """Of processes that do not exist: what is sent to them is gone, and what they send is made up."""
    distributed.init_process_group("fake", rank=0, world_size=SEVERAL, store=FakeStore())
    yield
    distributed.destroy_process_group()


@pytest.fixture
def nano() -> UNet:
    torch.manual_seed(0)
    return build_unet(NANO).requires_grad_(True).train()


def shapes(unet: UNet) -> list[tuple[int, ...]]:
    return [tuple(one.shape) for one in unet.parameters()]


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run: {{dir: {tmp_path}/run}}\nmodel: {{start: null, architecture: nano}}\n"
        f"data: {{store: {tmp_path}/data, sources: [{{kind: embedded}}]}}\n"
        "training: {micro_batch: 4, accumulation: 24}\n"
    )
    return load(path, Recipe, overrides).value


@pytest.mark.parametrize("processes", [2, 3, 8, 64])
@pytest.mark.parametrize("shard", ["optimizer", "full"])
def test_the_parts_of_all_processes_are_the_whole(nano: UNet, shard: str, processes: int):
    whole = sum(map(prod, shapes(nano)))
    assert sum(held_numbers(shapes(nano), Parallel(shard=shard), processes)) == whole
    if shard == "full" and processes % 2 == 0:
        both = held_numbers(shapes(nano), Parallel(shard="full", replicas=2), processes)
        assert sum(both) == 2 * whole
        assert both[: processes // 2] == both[processes // 2 :]


def test_each_process_owns_what_the_engine_gives_it(nano: UNet):
    expected = held_numbers(shapes(nano), Parallel(), SEVERAL)
    for rank in range(SEVERAL):
        engine = Replicated(nano, World(rank, SEVERAL))
        assert sum(one.numel() for name, one in nano.named_parameters() if engine.mine(name)) == expected[rank]


def test_fsdp_gives_the_first_process_the_rows_that_are_counted(nano: UNet, group: None):
    counted = held_numbers(shapes(nano), Parallel(shard="full"), SEVERAL)
    Sharded(nano, World(0, SEVERAL), 1, CPU)
    assert sum(held(one).local.numel() for one in nano.parameters()) == counted[0] == max(counted)


class Tracker(FSDPMemTracker):
    """torch's own account of FSDP's memory, which keeps the highest sum of what is gathered and sent."""

    highest = 0

    def _update_peak_stats(self, *arguments: Any, **named: Any) -> None:
        super()._update_peak_stats(*arguments, **named)
        kinds = ("Unsharded Param", "Unsharded Grad", "All Gather", "Reduce Scatter")
        for snapshot in self._curr_mem_snap.values():
            parts = [size for kind, size in snapshot.items() if getattr(kind, "value", kind) in kinds]
            assert len(parts) == len(kinds)
            self.highest = max(self.highest, sum(parts))


def test_what_fsdp_gathers_is_what_torch_counts(nano: UNet, group: None, tmp_path: Path):
    """Counted as an upper bound: the largest block and the largest next to it need not be neighbours."""
    [trained] = division._trained(networks_of(recipe(tmp_path)), None)
    assert list(trained.shapes) == shapes(nano)
    Sharded(nano, World(0, SEVERAL), 1, CPU)
    pooled = nano.config["projection_class_embeddings_input_dim"] - 6 * nano.config["addition_time_embed_dim"]
    context = torch.randn(1, NANO.positions, nano.config["cross_attention_dim"])
    tracker = Tracker(nano, torch.optim.SGD(nano.parameters()))
    with tracker:
        with runtime.autocast(CPU, "bf16"):
            text = TextFeatures(context, torch.randn(1, pooled))
            loss = predict(nano, torch.randn(1, 4, 16, 16), torch.zeros(1, dtype=torch.int64), text, torch.randn(1, 6))
        loss.square().mean().backward()
    assert tracker.highest > 4 * (trained.rest + 2 * trained.block)
    assert tracker.highest <= gathered(trained) < 1.2 * tracker.highest


def test_gradients_pass_through_buffers_as_large_as_counted(
    nano: UNet, group: None, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    for module in (sharding, division):
        monkeypatch.setattr(module, "BUCKET_BYTES", 3 << 20)  # nano has few bytes
    for one in nano.parameters():
        one.grad = torch.ones_like(one)
    there = [*nano.parameters(), *(one.grad for one in nano.parameters() if one.grad is not None)]
    with Living(there) as living:
        Replicated(nano, World(0, SEVERAL)).average_gradients()
    assert exchanged(shapes(nano)) == living.peak < 4 * sum(map(prod, shapes(nano)))


def test_the_engine_sends_each_number_as_often_as_counted(nano: UNet, group: None, monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []

    def note(tensor: Tensor, *_: object) -> None:
        sent.append(tensor.nbytes)

    monkeypatch.setattr(distributed, "all_reduce", note)
    monkeypatch.setattr(distributed, "broadcast", note)
    whole = 4 * sum(map(prod, shapes(nano)))
    for one in nano.parameters():
        one.grad = torch.ones_like(one)
    engine = Replicated(nano, World(0, SEVERAL))
    engine.average_gradients()
    assert sum(sent) == whole
    engine.share_weights()
    assert sum(sent) == 2 * whole
    step = traffic(float(whole), whole // 4, Parallel(), SEVERAL, 1.0)
    assert step == Traffic((SEVERAL - 1) / SEVERAL * 3 * whole, 0.0)  # a sum for all goes around twice


def test_rings_leave_a_machine_once():
    """The sum of 1 GB over 64 GPUs in 8 machines, and the same as rows within and sums between machines."""
    whole = traffic(0.0, 250_000_000, Parallel(), 64, 1.0)
    assert whole.inside == pytest.approx(2e9 * 63 / 64)
    assert whole.across == pytest.approx(whole.inside / 8)
    hybrid = traffic(0.0, 250_000_000, Parallel(shard="full", replicas=8), 64, 1.0)
    assert hybrid.inside == pytest.approx(1e9 * 7 / 8)
    assert hybrid.across == pytest.approx(2e9 * 7 / 8 / 8)
    assert traffic(1e9, 250_000_000, Parallel(shard="full"), 8, 3.0) == Traffic(3 * 7 / 8 * 3e9, 0.0)
    assert traffic(1e9, 250_000_000, Parallel(shard="full", replicas=2), 1, 3.0) == Traffic(0.0, 0.0)
    assert Traffic(450e9, 50e9).seconds(GPUS["h100"]) == pytest.approx(2.0)


@pytest.mark.parametrize("shard", ["optimizer", "full"])
def test_memory_is_divided_as_the_recipe_says(tmp_path: Path, shard: str):
    settings = recipe(tmp_path, f"training.parallel.shard={shard}")
    alone, one = own_cut(settings, 1e12).memory, own_cut(settings, 1e12, 8).memory
    assert one.moments == pytest.approx(alone.moments / 8, rel=0.01)
    assert one.average == pytest.approx(alone.average / 8, rel=0.01)
    assert 8 * one.moments >= alone.moments
    part = 1 if shard == "optimizer" else 8
    assert one.weights == pytest.approx(alone.weights / part, rel=0.01)
    assert one.gradients == pytest.approx(alone.gradients / part, rel=0.01)
    # autocast keeps its copies while a micro-batch lasts, whatever is gathered
    assert (one.compute, one.frozen, one.activations) == (alone.compute, alone.frozen, alone.activations)
    assert one.exchange > alone.exchange == 0.0
    assert one.total == one.state + one.compute + one.frozen + one.activations + one.exchange


def test_adapters_and_text_encoders_are_divided(tmp_path: Path, random_nano: Path):
    def share(adapter: AdapterConfig | None, text: str) -> float:
        settings = recipe(
            tmp_path, f"model.start={random_nano}", f"objective={{kind: diffusion, train_text_encoders: {text}}}"
        )
        networks = division._trained(networks_of(settings), adapter)
        assert len(networks) == (3 if text == "both" else 1)
        return divide(networks_of(settings), adapter, Parallel(), 2).state

    lora = AdapterConfig(rank=4)
    for adapter, text in ((None, "both"), (lora, "none"), (lora, "both")):
        assert share(adapter, text) == pytest.approx(0.5, rel=0.01)


def test_cuts_give_each_process_as_many_micro_batches(tmp_path: Path):
    settings = recipe(tmp_path)
    cuts = list(largest(settings, 80e9, 8))
    assert len(cuts) == 4
    assert all(cut.shared and cut.micro_batch * cut.accumulation == 96 for cut in cuts)
    assert max(cut.micro_batch for cut in cuts) == 12
    assert list(largest(settings, 80e9, 64)) == []
    assert best_cut(settings, GPUS["h100"], processes=64) is None


def test_several_processes_fit_where_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings, device = recipe(tmp_path), torch.device("cuda")
    needed = own_cut(settings, 0.0, 8).memory.total
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(needed + RESERVE + 1e6), int(80e9)))
    refuse_what_cannot_fit(settings, device, 8)
    with pytest.raises(UserError, match="of GPU memory"):
        refuse_what_cannot_fit(settings, device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(RESERVE), int(80e9)))
    with pytest.raises(UserError, match=r"a multiple of 64 first"):
        refuse_what_cannot_fit(settings, device, 64)


def test_the_plan_for_several_is_printed_and_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe(tmp_path)
    path = str(tmp_path / "recipe.yaml")
    assert cli.main(["train", path, "--plan", "--gpu", "h100", "--processes", "8"]) == 0
    text = capsys.readouterr().out
    assert "8 × NVIDIA H100" in text
    assert "each GPU sends" in text
    assert "exchange" in text
    assert cli.main(["train", path, "--plan", "--gpu", "h100", "--processes", "7"]) == 0
    text = capsys.readouterr().out
    assert "can NOT be shared: 24 is no multiple of 7" in text
    assert "96 images cannot be divided among 7 processes; 6 of them could" in text
    plans: list[dict[str, Any]] = []
    for processes in (1, 8):
        assert cli.main(["train", path, "--plan", "--gpu", "h100", "--processes", str(processes), "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    one, eight = plans
    assert (one["processes"], eight["processes"], eight["own"]["shared"]) == (1, 8, True)
    assert one["traffic"]["seconds"] == 0.0
    for alone, several in zip(one["bounds"], eight["bounds"], strict=True):
        assert 1.0 < several["images_per_second"] / alone["images_per_second"] < 8.0
        assert several["gpu_hours"] == pytest.approx(8 * several["hours"])
        assert several["kwh"] > alone["kwh"]
    assert one["disk"] == eight["disk"]
    assert cli.main(["train", path, "--processes", "8"]) == 2
    assert "torchrun" in capsys.readouterr().err
    groups = ["training.parallel={shard: full, replicas: 3}", "--plan", "--processes", "8"]
    assert cli.main(["train", path, *groups]) == 2
    assert "3 groups of equal size" in capsys.readouterr().err
