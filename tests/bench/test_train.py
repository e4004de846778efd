"""Both ways to train do the same: the same inputs, the same loss, the same weights after two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.task import PARTS, Task
from benchmarks.train import bench_train, recipe_of
from benchmarks.trainers import Ours, Theirs
from terminus import runtime
from terminus.bench.measure import Laps, peak_above, product_peak, timed
from terminus.errors import UserError
from terminus.model.components import load_components

CPU = torch.device("cpu")


def settings(folder: Path, *more: str) -> list[str]:
    return [
        f"model.start={folder}", "data.resolution=32", "run.device=cpu", "training.precision=fp32",
        "training.micro_batch=3", "training.accumulation=2", "training.loader_threads=0", *more,
    ]  # fmt: skip


def task(folder: Path, *more: str, cached: bool = True, average: bool = True) -> Task:
    recipe = recipe_of("nano", settings(folder, *more))
    return Task(recipe, lambda: load_components(folder), CPU, cached, average)


class Seen:
    """What a UNet was given, call by call."""

    def __init__(self, unet: nn.Module) -> None:
        self.calls: list[list[Tensor]] = []
        unet.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, _: nn.Module, given: tuple[Tensor, ...], named: dict[str, dict[str, Tensor]]) -> None:
        added = named["added_cond_kwargs"]
        self.calls.append([*given[:3], added["text_embeds"], added["time_ids"]])


def same_noise(theirs: Theirs, given: Seen, micro_batch: int, seed: int) -> None:
    """Lets diffusers' loop draw what ours has drawn, for the samples in their order."""
    drawn = iter(range(1 << 20))
    used = iter(given.calls)

    def noise(latents: Tensor) -> Tensor:
        rows = [runtime.rng(seed, next(drawn), "noise") for _ in range(micro_batch)]
        return torch.stack([torch.randn(latents.shape[1:], generator=row) for row in rows])

    theirs.noise = noise
    theirs.timesteps = lambda count: next(used)[1]


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "online"])
@pytest.mark.parametrize("prediction", ["velocity", "epsilon"])
def test_the_same_training_in_both_ways(random_nano: Path, cached: bool, prediction: str):
    more = [
        f"objective.prediction={prediction}", f"objective.zero_terminal_snr={str(prediction == 'velocity').lower()}",
        "objective.weighting={kind: min_snr, form: paper}", "training.optimizer.weight_decay=0",
    ]  # fmt: skip
    work = task(random_nano, *more, cached=cached)
    ours, theirs = Ours(work), Theirs(work)
    weights = [parameter.detach().clone() for parameter in theirs.unet.parameters()]
    for mine, other in zip(ours.components.unet.parameters(), weights, strict=True):
        assert torch.equal(mine, other)
    seen = [Seen(ours.components.unet), Seen(theirs.unet)]
    ours.run(2)
    same_noise(theirs, seen[0], 3, work.recipe.training.seed)
    theirs.run(2)
    assert len(seen[0].calls) == len(seen[1].calls) == 4
    for mine, other in zip(seen[0].calls, seen[1].calls, strict=True):
        for a, b in zip(mine, other, strict=True):
            torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5)
    # the loss of the first step is that of equal weights, and that of the second of equal gradients
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    assert ours.losses[1] == pytest.approx(theirs.losses[1], rel=1e-4)
    moved = [(p - w).abs().max().item() for p, w in zip(theirs.unet.parameters(), weights, strict=True)]
    assert max(moved) > 1e-4
    apart = [p - q for p, q in zip(ours.components.unet.parameters(), theirs.unet.parameters(), strict=True)]
    # AdamW divides by the gradient's size, so where a gradient is rounding alone the two may step apart
    assert torch.cat([one.abs().flatten() for one in apart]).quantile(0.99).item() < 1e-6


def test_our_form_of_min_snr_is_another_loss(random_nano: Path):
    """The comparison above can fail: with the other form it does."""
    work = task(random_nano, "objective.weighting={kind: min_snr, form: augmented}")
    ours, theirs = Ours(work), Theirs(work)
    seen = Seen(ours.components.unet)
    ours.run(1)
    same_noise(theirs, seen, 3, work.recipe.training.seed)
    theirs.run(1)
    assert ours.losses[0] != pytest.approx(theirs.losses[0], rel=1e-2)


def test_the_table_is_printed_and_written(random_nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "result.json"
    results = bench_train("nano", settings(random_nano), "diffusers", steps=1, runs=2, out=out)
    assert [one.name for one in results] == ["terminus", "diffusers"]
    for one in results:
        assert one.step.low <= one.step.median <= one.step.high
        assert one.images_per_second == pytest.approx(6 / one.step.median)
        assert 0 < one.mfu == one.hfu
        assert 0 < one.processor.low <= one.processor.high
        assert set(one.parts) == set(PARTS)
        assert min(one.parts[name] for name in ("data", "prepare", "forward", "backward", "optimizer")) > 0
    written = json.loads(out.read_text())
    assert written["training"]["micro_batch"] == 3
    assert written["turns"] == {"steps": 1, "runs": 2, "together": True}
    assert written["ratio"] == pytest.approx(results[0].images_per_second / results[1].images_per_second)
    assert written["results"][1]["parts"]["forward"] == results[1].parts["forward"]
    assert {"date", "environment", "load_average", "product_tflops", "tflop_per_image"} <= set(written)
    assert "ratio" in capsys.readouterr().out.splitlines()[1]


def test_alone_in_bf16_with_what_is_computed_twice(random_nano: Path, capsys: pytest.CaptureFixture[str]):
    chosen = settings(random_nano, "training.precision=bf16", "training.activation_checkpointing=full")
    (result,) = bench_train("nano", chosen, steps=1, runs=1, text="online", average="none")
    assert result.hfu > 1.1 * result.mfu
    assert result.parts["text"] > 0
    assert "bf16, checkpointing full, text online and no average" in capsys.readouterr().out


def test_random_weights_need_no_files():
    small = ["run.device=cpu", "training.micro_batch=1", "training.precision=fp32"]
    (result,) = bench_train("random:nano", small, steps=1, runs=1)
    assert result.loss > 0
    assert recipe_of("random:sdxl", []).data.resolution == 1024


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("nano", {"steps": 0}), ("nano", {"runs": 0}), ("nano", {"against": "kohya"}), ("nano", {"text": "none"}),
        ("nano", {"average": "theirs"}), ("random:flux", {}), ("nano-vae", {}),
        ("nano", {"overrides": ["objective.train_text_encoders=both"]}),
    ],
)  # fmt: skip
def test_wrong_input_is_answered(what: str, named: dict[str, object]):
    with pytest.raises(UserError):
        bench_train(what, **named)


# --- the measures themselves -----------------------------------------------------------------------------------------


def test_parts_are_all_of_a_step(random_nano: Path):
    work = task(random_nano)
    for trainer in (Ours(work), Theirs(work)):
        trainer.run(1)
        assert not any(trainer.laps.seconds.values())  # off

        def measured(one: Ours | Theirs = trainer) -> None:
            with one.laps.on():
                one.run(2)

        took = timed(measured, CPU)
        assert 0.9 * took < sum(trainer.laps.seconds.values()) <= took
        with trainer.laps.on():
            pass
        assert not any(trainer.laps.seconds.values())


def test_averages_can_be_left_out(random_nano: Path):
    kept, left = (task(random_nano, average=average) for average in (True, False))
    for kind in (Ours, Theirs):
        with_average, without = kind(kept), kind(left)
        parameters = sum(p.numel() for p in load_components(random_nano).unet.parameters())
        assert with_average.state_bytes() - without.state_bytes() == 4 * parameters
    ours = Ours(left)
    before = {name: tensor.clone() for name, tensor in ours.state.average.tensors.items()}
    ours.run(2)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state.average.tensors.items())


def test_a_lap_belongs_to_what_came_before_it():
    laps = Laps(CPU, ("one", "two"))
    with laps.on():
        torch.ones(64, 64) @ torch.ones(64, 64)
        laps.lap("two")
    assert laps.seconds["one"] == 0 < laps.seconds["two"]
    laps.lap("one")
    assert laps.seconds["one"] == 0


def test_the_peak_of_products_and_of_memory():
    assert product_peak(CPU, torch.float32, repeats=1) > 1e9
    above = peak_above(lambda: torch.ones(64, 1024, 1024).sum(), CPU)
    if above is None:
        pytest.skip("this system does not tell")
    assert above == pytest.approx(2**28, rel=0.25)
