"""The learning rate as a function of images, the optimizers' steps, and what they remember."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from terminus.training.distributed import sharded_files
from terminus.training.distributed.sharded_files import TensorFiles
from terminus.training.optim.low_memory import LowMemoryOptimizer
from terminus.training.optim.moment_formats import levels
from terminus.training.optim.optimizer import (
    Adafactor,
    AdamW,
    LearningRate,
    Muon,
    Optimizer,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
    set_rate,
)
from terminus.training.optim.weight_formats import state_bytes, store_weights
from terminus.training.recipe import Training

KINDS = {
    "fp32": (AdamW(), "fp32"),
    "bf16 moments": (AdamW(moments="bf16"), "fp32"),
    "int8 moments": (AdamW(moments="int8"), "fp32"),
    "bf16 weights": (AdamW(), "bf16"),
    "bf16 both": (AdamW(moments="bf16"), "bf16"),
    "bf16 and int8": (AdamW(moments="int8"), "bf16"),
    "adafactor": (Adafactor(kind="adafactor"), "fp32"),
    "adafactor bf16": (Adafactor(kind="adafactor"), "bf16"),
    "muon": (Muon(kind="muon"), "fp32"),
    "muon bf16": (Muon(kind="muon"), "bf16"),
}
every_kind = pytest.mark.parametrize(("settings", "weights"), KINDS.values(), ids=KINDS.keys())


def network(weights: str = "fp32") -> nn.Module:
    """A kernel, a norm and a matrix; the matrix is large enough for 8 bits."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 64, 16))
    store_weights(module, weights)
    return module


def teach(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, rate: float = 1e-3) -> None:
    """Steps on random images that are a function of the step's number."""
    for step in range(first, last):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16, enabled=next(module.parameters()).dtype == torch.bfloat16):
            loss = (module(x).float() - x.mean()).square().mean()
        loss.backward()
        set_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()


def plain(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    return {name: one.local for name, one in optimizer_tensors(optimizer, names(module)).items()}


def names(module: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one
    )


def test_learning_rate_rises_falls_and_stays():
    settings = LearningRate(max=8e-7, min=4e-7, warmup_images=100, period_images=1000)
    rates = [learning_rate(images, settings, 5000) for images in (0, 50, 99, 100, 600, 1100, 4000)]
    assert rates == pytest.approx([8e-9, 4.08e-7, 8e-7, 8e-7, 6e-7, 4e-7, 4e-7])


def test_without_a_period_the_run_is_the_period():
    settings = LearningRate(max=1.0, min=0.0)
    assert learning_rate(0, settings, 200) == 1.0
    assert learning_rate(100, settings, 200) == pytest.approx(0.5)
    assert learning_rate(200, settings, 200) == 0.0


def test_min_above_max_is_refused():
    with pytest.raises(ValueError, match="above max"):
        LearningRate(max=1e-5, min=1e-4)


def test_a_restored_optimizer_takes_the_same_next_step(tmp_path: Path):
    torch.manual_seed(0)
    one, two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    two.load_state_dict(one.state_dict())
    first, second = (build_optimizer(module, AdamW()) for module in (one, two))
    x = torch.randn(2, 3, 8, 8)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(one, first)
    two.load_state_dict(one.state_dict())
    names = [{p: name for name, p in module.named_parameters()} for module in (one, two)]
    sharded_files.write_shards(tmp_path / "optimizer.safetensors", optimizer_tensors(first, names[0]))
    restore_optimizer(second, names[1], TensorFiles([tmp_path / "optimizer.safetensors"]))
    step(one, first)
    step(two, second)
    torch.testing.assert_close(two.weight, one.weight, rtol=1e-6, atol=1e-7)


def test_biases_and_norms_do_not_decay():
    optimizer = build_optimizer(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), AdamW(weight_decay=0.5))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 1), (0.0, 3)]


@every_kind
def test_a_restart_continues_bit_for_bit(settings: Optimizer, weights: str, tmp_path: Path):
    whole, cut, again = network(weights), network(weights), network(weights)
    optimizer = build_optimizer(whole, settings, seed=5)
    teach(whole, optimizer, 0, 6)
    stopped = build_optimizer(cut, settings, seed=5)
    teach(cut, stopped, 0, 3)
    sharded_files.write_shards(tmp_path / "optimizer.safetensors", optimizer_tensors(stopped, names(cut)))
    continued = build_optimizer(again, settings, seed=5)
    again.load_state_dict(cut.state_dict())
    restore_optimizer(continued, names(again), TensorFiles([tmp_path / "optimizer.safetensors"]))
    assert same(plain(continued, again), plain(stopped, cut))
    teach(again, continued, 3, 6)
    assert same(again.state_dict(), whole.state_dict())
    assert same(plain(continued, again), plain(optimizer, whole))


@every_kind
def test_every_kind_learns(settings: Optimizer, weights: str):
    module = network(weights)
    optimizer = build_optimizer(module, settings)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def error() -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=weights == "bf16"):
            return (module(x).float() - x.mean()).square().mean().item()

    before = error()
    # The root mean square of Muon's step is a fifth of its rate, that of AdamW's first steps is the rate.
    rate = 1.5e-3 if isinstance(settings, Muon) else 3e-4
    for _ in range(40):
        teach(module, optimizer, 0, 1, rate=rate)
    assert error() < 0.1 * before


@every_kind
def test_the_layout_of_weights_does_not_matter(settings: Optimizer, weights: str):
    """Channels last, as on a GPU: the same steps, and the same random bits."""
    one, two = network(weights), network(weights).to(memory_format=torch.channels_last)
    for module in (one, two):
        optimizer = build_optimizer(module, settings, seed=1)
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.grad = torch.empty_like(parameter, dtype=torch.float32).copy_(values)
        set_rate(optimizer, 1e-3)
        optimizer.step()
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6 if left.dtype == torch.float32 else 0.0, atol=1e-9)


@every_kind
def test_bytes_per_parameter_are_what_the_table_says(settings: Optimizer, weights: str):
    module = nn.Linear(1024, 1024, bias=False)
    store_weights(module, weights)
    optimizer = build_optimizer(module, settings)
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(2, 1024)).float().square().mean().backward()
    gradients = module.weight.grad
    assert gradients is not None
    optimizer.step()
    state = sum(value.nbytes for value in optimizer.state[module.weight].values())
    expected = state_bytes(settings, weights)
    assert module.weight.nbytes == expected.weights * 2**20
    assert gradients.nbytes == expected.gradients * 2**20
    assert state == pytest.approx(expected.moments * 2**20, rel=1e-6, abs=2 * 1024 * 4 + 4)  # rows, columns, count


def test_the_layouts_of_the_performance_notes():
    def total(weights: str, **settings: str) -> float:
        return state_bytes(AdamW(**settings), weights).total

    assert total("fp32") == 18
    assert total("fp32", moments="bf16") == 14
    assert total("fp32", moments="int8") == pytest.approx(12.03, abs=0.01)
    assert total("bf16", moments="bf16") == 10
    assert total("bf16", moments="int8") == pytest.approx(8.03, abs=0.01)
    assert state_bytes(AdamW(), "fp32", "fp32").total == 16


def test_the_default_is_torchs_fused_adamw():
    settings = AdamW(beta1=0.8, beta2=0.95, epsilon=1e-7, weight_decay=0.1)
    optimizer = build_optimizer(network(), settings)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    module = network()
    own = build_optimizer(module, settings)
    reference = network()
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95), eps=1e-7, fused=True,
    )  # fmt: skip
    for group in plain.param_groups:
        group["factor"] = 1.0
    teach(module, own, 0, 5)
    teach(reference, plain, 0, 5)
    assert same(module.state_dict(), reference.state_dict())


def lean(module: nn.Module, settings: AdamW, seed: int = 0) -> LowMemoryOptimizer:
    """The optimizer of `settings` for a module whose weights the caller stores in bfloat16."""
    optimizer = build_optimizer(module, settings, seed)
    assert isinstance(optimizer, LowMemoryOptimizer)
    return optimizer


def test_moments_in_bf16_follow_float64_within_their_last_bits():
    """Against torch's AdamW in float64 over 200 steps of noisy gradients."""
    torch.manual_seed(1)
    start = torch.randn(64, 64)
    exact, rounded = nn.Parameter(start.double()), nn.Linear(64, 64, bias=False)
    rounded.weight.data.copy_(start)
    reference = torch.optim.AdamW([exact], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    own = lean(rounded, AdamW(beta2=0.999, moments="bf16"))
    for _ in range(200):
        gradient = torch.randn(64, 64) + 0.5
        exact.grad, rounded.weight.grad = gradient.double(), gradient
        set_rate(own, 1e-3)
        reference.step()
        own.step()
    state, other = own.state[rounded.weight], reference.state[exact]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    # Stochastic rounding leaves noise of about an ulp (2 ** -8), and none of it in the mean.
    ratio = state["exp_avg_sq"].double() / other["exp_avg_sq"]
    assert (ratio - 1).abs().max() < 0.1
    assert abs(ratio.mean().item() - 1) < 2e-3
    moved, wanted = rounded.weight.detach().double() - start, exact.detach() - start
    assert (moved - wanted).norm() / wanted.norm() < 0.01


def test_a_slow_second_moment_falls_in_bf16_where_plain_rounding_stands_still():
    """A decay of 0.999 is a quarter of bfloat16's last bit: rounded to the nearest, it never moves."""
    module = nn.Linear(64, 64, bias=False)
    own = lean(module, AdamW(beta2=0.999, moments="bf16"))
    module.weight.grad = torch.ones(64, 64)
    own.step()
    plain = own.state[module.weight]["exp_avg_sq"].clone()
    for _ in range(500):
        module.weight.grad = torch.zeros(64, 64)
        own.step()
        plain = (plain.float() * 0.999).bfloat16()
    start, end = 0.001, 0.001 * 0.999**500
    assert plain.double().mean().item() == pytest.approx(start, rel=0.01)
    assert own.state[module.weight]["exp_avg_sq"].double().mean().item() == pytest.approx(end, rel=0.01)


def test_moments_in_eight_bits_are_within_a_level():
    module = network()
    own, exact = lean(module, AdamW(moments="int8")), network()
    reference = build_optimizer(exact, AdamW())
    teach(module, own, 0, 1)
    teach(exact, reference, 0, 1)
    kept, wide = plain(own, module), plain(reference, exact)
    assert kept["3.weight/exp_avg"].dtype == torch.uint8
    assert kept["3.weight/exp_avg_scale"].shape == (8 * 64 * 16 // 256,)
    assert kept["0.weight/exp_avg"].dtype == torch.float32  # small ones stay
    for name in ("exp_avg", "exp_avg_sq"):
        table = levels(name == "exp_avg")
        scale = kept[f"3.weight/{name}_scale"].repeat_interleave(256)
        value, true = table[kept[f"3.weight/{name}"].int()].flatten() * scale, wide[f"3.weight/{name}"].flatten()
        widest = (table[1:] - table[:-1]).max() / 2
        assert ((value - true).abs() <= widest * scale * 1.001).all()
        largest = true.abs().view(-1, 256).amax(1)
        assert torch.equal(kept[f"3.weight/{name}_scale"], largest)


def test_levels_are_a_dynamic_tree():
    signed, unsigned = levels(True), levels(False)
    assert len(signed.unique()) == len(unsigned.unique()) == 256
    assert signed[-1] == unsigned[-1] == 1.0
    assert (signed == 0).sum() == (unsigned == 0).sum() == 1
    assert (unsigned >= 0).all()
    assert torch.equal(signed[:127], -signed[128:255].flip(0))
    assert unsigned[1].item() == pytest.approx(3.25e-7)  # the mean of 0.1 and 0.55, six decades down


def test_weights_in_bf16_add_up_updates_below_their_last_bit():
    """At rate 2e-5 a weight of 1 moves by 0.5 % of its last bit at each step."""
    module = nn.Linear(128, 128, bias=False)
    nn.init.ones_(module.weight)
    store_weights(module, "bf16")
    own = lean(module, AdamW(weight_decay=0.0))
    for _ in range(100):
        module.weight.grad = torch.full((128, 128), -1.0)
        set_rate(own, 2e-5)
        own.step()
    assert module.weight.dtype == torch.bfloat16
    moved = (module.weight.detach().double() - 1).mean().item()
    deviation = (100 * 2e-5 * 2**-7 / 128**2) ** 0.5
    assert abs(moved - 100 * 2e-5) < 5 * deviation + 100 * 2**-25  # and float32's own rounding near 1


def test_gradients_of_bf16_weights_add_up_in_float32():
    """Fifteen passes: in bfloat16 the sum would stop at a few hundredths of what it holds."""
    module = nn.Linear(4, 4, bias=False)
    store_weights(module, "bf16")
    parts = [1.0] + [2.0**-10] * 14
    for part in parts:
        module(torch.full((1, 4), part).bfloat16()).sum().backward()
    assert module.weight.dtype == torch.bfloat16
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    assert torch.equal(module.weight.grad, torch.full((4, 4), sum(parts)))


def test_adafactor_is_that_of_the_reference():
    """transformers' with an absolute rate, where a parameter has no more than two dimensions."""
    from transformers.optimization import Adafactor as Reference

    torch.manual_seed(0)
    one, two = nn.Linear(20, 30), nn.Linear(20, 30)
    two.load_state_dict(one.state_dict())
    own = build_optimizer(one, Adafactor(kind="adafactor", weight_decay=0.0))
    theirs = Reference(two.parameters(), lr=1e-2, scale_parameter=False, relative_step=False, warmup_init=False)
    for _ in range(20):
        for mine, other in zip(one.parameters(), two.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape) * torch.logspace(-3, 0, mine.shape[-1])
            other.grad = mine.grad.clone()
        set_rate(own, 1e-2)
        own.step()
        theirs.step()
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.bias, two.bias, rtol=1e-5, atol=1e-6)


def test_adafactor_sees_a_kernel_as_a_matrix():
    module = nn.Conv2d(32, 64, 3)
    optimizer = build_optimizer(module, Adafactor(kind="adafactor"))
    module(torch.randn(1, 32, 4, 4)).square().mean().backward()
    optimizer.step()
    state = optimizer.state[module.weight]
    assert {key: tuple(value.shape) for key, value in state.items()} == {"step": (), "rows": (64,), "columns": (288,)}


def test_adafactor_survives_gradients_of_zero():
    module = nn.Linear(8, 8)
    optimizer = build_optimizer(module, Adafactor(kind="adafactor"))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = module.weight.detach().clone()
    set_rate(optimizer, 0.1)
    optimizer.step()
    torch.testing.assert_close(module.weight, before * (1 - 0.1 * 0.01))


def test_muon_is_that_of_torch():
    """torch's, which knows matrices alone and orthogonalises in bfloat16."""
    torch.manual_seed(0)
    one, two = nn.Linear(20, 30, bias=False), nn.Linear(20, 30, bias=False)
    two.load_state_dict(one.state_dict())
    own = build_optimizer(one, Muon(kind="muon", weight_decay=0.1))
    theirs = torch.optim.Muon(two.parameters(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = one.weight.detach().clone()
    for _ in range(10):
        one.weight.grad = torch.randn(one.weight.shape) * torch.logspace(-3, 0, 20)
        two.weight.grad = one.weight.grad.clone()
        set_rate(own, 1e-2)
        own.step()
        theirs.step()
    moved = (one.weight - start).norm()
    assert (one.weight - two.weight).norm() < 0.02 * moved


def test_muon_takes_a_kernel_as_a_matrix_and_vectors_by_adamw():
    kernel, vector = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)
    vector.load_state_dict(kernel.state_dict())
    optimizer, reference = build_optimizer(kernel, Muon(kind="muon")), build_optimizer(vector, AdamW())
    before = kernel.weight.detach().clone()
    for module, chosen in ((kernel, optimizer), (vector, reference)):
        module(torch.ones(2, 6, 5, 5).cumsum(2)).square().mean().backward()
        set_rate(chosen, 1e-2)
        chosen.step()
    step = (kernel.weight.detach() - before * (1 - 1e-2 * 0.01)).flatten(1) / (1e-2 * 0.2 * 54**0.5)
    # Its gradient has one direction here, since all positions look alike: one singular value is near 1.
    assert 0.6 < torch.linalg.matrix_norm(step, 2) < 1.3
    torch.testing.assert_close(kernel.bias, vector.bias)
    assert set(optimizer.state[kernel.weight]) == {"step", "momentum"}


def test_muon_leaves_rows_of_a_table_that_no_caption_used():
    module = nn.Module()
    module.token_embedding = nn.Embedding(10, 8)
    optimizer = build_optimizer(module, Muon(kind="muon", weight_decay=0.0))
    before = module.token_embedding.weight.detach().clone()
    module.token_embedding(torch.tensor([2, 5])).square().sum().backward()
    set_rate(optimizer, 1e-2)
    optimizer.step()
    moved = (module.token_embedding.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 5]


def test_another_seed_rounds_otherwise():
    ends = []
    for seed in (0, 0, 1):
        module = network("bf16")
        teach(module, build_optimizer(module, AdamW(moments="bf16"), seed), 0, 2)
        ends.append(module.state_dict())
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_a_recipe_need_not_say_adamw():
    training = Training.model_validate_json('{"optimizer": {"weight_decay": 0.5}, "ema": {"ramp": 0.5}}')
    assert training.optimizer == AdamW(weight_decay=0.5)
    chosen = Training.model_validate_json('{"optimizer": {"kind": "adafactor", "clip_update": 2.0}}').optimizer
    assert chosen == Adafactor(kind="adafactor", clip_update=2.0)


def test_weights_in_bf16_are_not_computed_with_in_fp32():
    with pytest.raises(ValueError, match="set precision to bf16"):
        Training(weights="bf16", precision="fp32")
