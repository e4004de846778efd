"""The planner: counts of SDXL against published arithmetic, predictions against real steps, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from terminus import cli, runtime
from terminus.config.load import load
from terminus.errors import UserError
from terminus.model.adapter_files import Algorithm
from terminus.model.architecture import NANO, SDXL, Architecture
from terminus.model.components import load_components
from terminus.model.foreign import sdxl_configs
from terminus.model.parts import TEXT_ENCODERS
from terminus.model.text import TextFeatures
from terminus.model.text_encoders import make_text_encoder
from terminus.model.unet import UNet, build_unet, predict
from terminus.training.networks.adapter import AdapterConfig, inject
from terminus.training.networks.execution import Checkpointing, recompute
from terminus.training.networks.frozen_weights import frozen_weights, store_frozen
from terminus.training.plan.cost import Cost, Living, Shape, config_of, count_cost, run_once
from terminus.training.plan.gpus import GPUS, find_gpu
from terminus.training.plan.memory import (
    MODES,
    RESERVE,
    best_cut,
    largest,
    out_of_memory,
    own_cut,
    refuse_what_cannot_fit,
)
from terminus.training.plan.networks import in_text_encoders, networks_of
from terminus.training.recipe import Recipe

CPU = torch.device("cpu")


def shape(architecture: Architecture, **changes: object) -> Shape:
    with torch.device("meta"):
        config = config_of(build_unet(architecture))
    side = architecture.unet.latent_size
    return replace(Shape(config, side, side, architecture.positions), **changes)


@pytest.fixture(scope="module")
def sdxl() -> dict[Checkpointing, Cost]:
    return {mode: count_cost(shape(SDXL), mode) for mode in MODES}


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run: {{dir: {tmp_path}/run}}\nmodel: {{start: null, architecture: sdxl}}\n"
        f"data: {{store: {tmp_path}/data, sources: [{{kind: embedded}}]}}\n"
        "training: {micro_batch: 24, accumulation: 15, activation_checkpointing: full, "
        "ema: {kind: constant, device: cpu}}\n"
    )
    return load(path, Recipe, overrides).value


def test_sdxl_is_counted_as_published(sdxl: dict[Checkpointing, Cost]):
    """Parameters of stable-diffusion-xl-base-1.0's UNet; FLOPs against the hand count 18 d² N per block and so on."""
    assert {cost.parameters for cost in sdxl.values()} == {2_567_463_684}
    assert [cost.forward for cost in sdxl.values()] == [pytest.approx(6.761e12, rel=0.005)] * len(MODES)
    assert sdxl["none"].total == pytest.approx(20.231e12, rel=0.005)
    assert sdxl["full"].total == pytest.approx(25.443e12, rel=0.005)
    assert sdxl["selective"].total == pytest.approx(sdxl["none"].total, rel=1e-6)
    assert sdxl["selective_ff"].total == pytest.approx(22.11e12, rel=0.005)


def test_sdxl_keeps_what_was_counted_by_hand(sdxl: dict[Checkpointing, Cost]):
    kept = {mode: cost.kept / 1e9 for mode, cost in sdxl.items()}
    assert kept["none"] == pytest.approx(8.64, rel=0.01)
    assert kept["selective"] == pytest.approx(4.3, rel=0.05)
    assert kept["selective_ff"] == pytest.approx(2.6, rel=0.05)
    assert kept["full"] == pytest.approx(0.66, rel=0.05)
    for cost in sdxl.values():
        assert cost.fixed == pytest.approx(2 * cost.parameters, rel=0.005)
        assert cost.kept < cost.peak < cost.kept + 0.1e9


def tensors(unet: UNet, samples: int) -> tuple[Tensor, Tensor, TextFeatures, Tensor]:
    torch.manual_seed(0)
    pooled = unet.config["projection_class_embeddings_input_dim"] - 6 * unet.config["addition_time_embed_dim"]
    context = torch.randn(samples, NANO.positions, unet.config["cross_attention_dim"])
    text = TextFeatures(context, torch.randn(samples, pooled))
    return torch.randn(samples, 4, 16, 16), torch.zeros(samples, dtype=torch.int64), text, torch.randn(samples, 6)


def loss_of(unet: UNet, precision: runtime.Precision) -> Tensor:
    inputs = tensors(unet, 2)
    with runtime.autocast(CPU, precision):
        return predict(unet, *inputs).square().mean()


@pytest.fixture
def nano() -> UNet:
    torch.manual_seed(0)
    return build_unet(NANO).requires_grad_(True).train()


def equal(count: int, precision: runtime.Precision) -> object:
    """To the byte; but the meta device says bfloat16 of statistics that a CPU's group norm keeps in float32."""
    return count if precision == "fp32" else pytest.approx(count, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_bytes_of_a_real_step_are_those_predicted(nano: UNet, precision: runtime.Precision):
    """Every storage that autograd keeps, each once; the weights themselves were there before."""
    there = {parameter.untyped_storage().data_ptr() for parameter in nano.parameters()}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in there:
            saved[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(nano, precision)
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert real > 5e6
    assert run_once(shape(NANO, precision=precision, kind="cpu"), "none", 2).kept == equal(real, precision)


def living_bytes(unet: UNet, precision: runtime.Precision) -> tuple[int, int]:
    """Between the passes of a real step, and at its highest point."""
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    there = [*unet.parameters(), *(parameter.grad for parameter in trained if parameter.grad is not None)]
    with Living(there) as living:
        loss = loss_of(unet, precision)
        kept = living.now - loss.nbytes
        loss.backward()
    return kept, living.peak


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_living_bytes_of_a_real_step_are_those_predicted(nano: UNet, mode: Checkpointing, precision: runtime.Precision):
    """Also what selective checkpointing hides from autograd, and the highest point of both passes."""
    recompute(nano, mode)
    kept, peak = living_bytes(nano, precision)
    predicted = run_once(shape(NANO, precision=precision, kind="cpu"), mode, 2)
    assert predicted.kept == equal(kept, precision)
    assert predicted.peak == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize(
    ("algorithm", "mode", "precision"),
    [("lora", "none", "bf16"), ("lora", "full", "bf16"), ("dora", "none", "bf16"), ("loha", "selective", "bf16"),
     ("lokr", "full", "fp32")],
)  # fmt: skip
def test_a_real_step_of_an_adapter_is_predicted(
    random_nano: Path, algorithm: Algorithm, mode: Checkpointing, precision: runtime.Precision
):
    """With what is frozen stored as it is multiplied."""
    unet = load_components(random_nano).unet.train()
    adapted = Shape(config_of(unet), 16, 16, 32, precision, kind="cpu", adapter=adapter(algorithm))
    inject(unet, "unet", AdapterConfig.model_validate_json(adapter(algorithm)))
    assert bool(store_frozen([unet], precision).originals) == (precision == "bf16")
    recompute(unet, mode)
    kept, peak = living_bytes(unet, precision)
    predicted = run_once(adapted, mode, 2)
    assert predicted.kept == equal(kept, precision)
    assert predicted.peak == pytest.approx(peak, rel=0.02)


def adapter(algorithm: Algorithm) -> str:
    return AdapterConfig(algorithm=algorithm, rank=4, targets="all").model_dump_json()


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_what_an_adapter_makes_of_weights_does_not_grow_with_the_batch(random_nano: Path, algorithm: Algorithm):
    adapted = Shape(config_of(load_components(random_nano).unet), 8, 8, 32, adapter=adapter(algorithm))
    cost = count_cost(adapted, "none")
    assert cost.fixed + 30 * cost.peak == pytest.approx(run_once(adapted, "none", 30).peak, rel=0.005)


@pytest.mark.parametrize("algorithm", [None, "lora"])
def test_flops_are_those_of_torchs_counter(nano: UNet, algorithm: Algorithm | None):
    """But for attention, which torch does not count on a CPU: scores and values, 2 FLOPs each, and twice backwards.

    With an adapter there are no products for the gradients of frozen weights: a third less, and the adapter's own.
    """
    attention: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor | None], _: object) -> None:
        batch, rows, _ = inputs[0].shape
        context = named.get("encoder_hidden_states")
        attention.append(3 * 4 * batch * rows * (rows if context is None else context.shape[1]) * module.inner_dim)

    trained = None if algorithm is None else AdapterConfig(algorithm=algorithm, rank=4).model_dump_json()
    if trained is not None:
        inject(nano, "unet", AdapterConfig.model_validate_json(trained))
    for module in nano.modules():
        if type(module).__name__ == "Attention":
            module.register_forward_hook(note, with_kwargs=True)
    with FlopCounterMode(display=False) as counter:
        loss_of(nano, "fp32").backward()
    assert len(attention) == 14
    both = run_once(shape(NANO, precision="fp32", kind="cpu", adapter=trained), "none", 2)
    assert both.total == counter.get_total_flops() + sum(attention)
    assert both.total / both.forward == pytest.approx(3.0 if trained is None else 1.9, abs=0.1)


def test_the_seeds_settings_fit_80_gb_with_much_computed_again_only(tmp_path: Path):
    room = GPUS["h100"].memory
    for micro, accumulation, expected in ((24, 15, ["full"]), (12, 8, ["selective_ff", "full"])):
        cut = f"training.micro_batch={micro}", f"training.accumulation={accumulation}"
        fitting = [
            mode
            for mode in MODES
            if own_cut(recipe(tmp_path, *cut, f"training.activation_checkpointing={mode}"), room).fits
        ]
        assert fitting == expected
    own = own_cut(recipe(tmp_path), room)
    assert own.memory.total < 76e9
    assert own.memory.state == pytest.approx(41.1e9, rel=0.01)
    assert own.memory.state + own.memory.compute == pytest.approx(46.2e9, rel=0.01)


def test_what_is_chosen_fits_and_the_next_larger_does_not(tmp_path: Path):
    settings, gpu = recipe(tmp_path), GPUS["h100"]
    cuts = list(largest(settings, gpu.memory))
    assert [cut.activation_checkpointing for cut in cuts] == list(MODES)
    for cut in cuts:
        assert cut.micro_batch * cut.accumulation == 360
        assert cut.memory.total + RESERVE <= gpu.memory
        larger = min(size for size in range(cut.micro_batch + 1, 361) if 360 % size == 0)
        assert cut.memory.total + RESERVE + (larger - cut.micro_batch) * cut.cost.peak > gpu.memory
    best = best_cut(settings, gpu)
    assert best is not None
    assert best.activation_checkpointing == "selective"
    assert best_cut(settings, GPUS["4090"]) is None


def test_storing_less_is_planned_as_less(tmp_path: Path):
    nano = "model.architecture=nano"  # for which this takes a tenth of the time
    whole = own_cut(recipe(tmp_path, nano), 0.0).memory
    lean = own_cut(recipe(tmp_path, nano, "training.optimizer.moments=bf16", "training.weights=bf16"), 0.0).memory
    assert lean.moments == whole.moments / 2
    assert lean.weights == whole.weights / 2
    assert lean.compute < whole.compute / 100
    here = own_cut(recipe(tmp_path, nano, "training.ema.device=model"), 0.0).memory
    assert here.average == here.weights


def test_a_cuda_run_that_cannot_fit_is_refused_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(60e9), int(80e9)))
    device = torch.device("cuda")
    with pytest.raises(UserError, match=r"needs 68\.5 GB of GPU memory, and 60\.0 GB are free") as caught:
        refuse_what_cannot_fit(recipe(tmp_path), device)
    assert "training.micro_batch=10 training.accumulation=36 training.activation_checkpointing=full" in str(
        caught.value
    )
    refuse_what_cannot_fit(recipe(tmp_path, "training.micro_batch=10", "training.accumulation=36"), device)
    refuse_what_cannot_fit(recipe(tmp_path), CPU)


def test_out_of_memory_names_the_three_knobs_with_numbers(tmp_path: Path):
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB"
    )
    text = str(out_of_memory(recipe(tmp_path), error))
    for word in (
        "CUDA out of memory",
        "micro-batch 24 × 15",
        "training.activation_checkpointing",
        "micro_batch",
        "data.resolution",
    ):
        assert word in text
    assert "activations 16.6 GB" in text
    assert "\n" not in text
    vae = recipe(tmp_path, "objective={kind: vae}")
    assert "training.micro_batch" in str(out_of_memory(vae, error))


def test_networks_are_read_without_loading_them(random_nano: Path, tmp_path: Path):
    networks = networks_of(recipe(tmp_path, f"model.start={random_nano}"))
    assert (networks.tokens, networks.factor, networks.assumed) == (32, 4, False)
    assert json.loads(networks.unet)["cross_attention_dim"] == 64
    both = networks_of(
        recipe(tmp_path, f"model.start={random_nano}", "objective={kind: diffusion, train_text_encoders: both}")
    )
    assert networks.frozen - both.frozen == both.trained_text > 0
    absent = networks_of(recipe(tmp_path, "model.start=someone/something"))
    assert absent.assumed
    assert absent.text_blocks == sum(map(in_blocks, sdxls_text_encoders()))
    text = load_components(random_nano).text_encoders
    assert networks.text_blocks == in_blocks(text.text_encoder_1) + in_blocks(text.text_encoder_2)
    assert absent.frozen == 123_060_480 + 694_659_840 + 83_653_863


def in_blocks(text_encoder: nn.Module) -> int:
    return sum(weight.numel() for weight in frozen_weights(text_encoder))


def sdxls_text_encoders() -> list[nn.Module]:
    configs = sdxl_configs()
    with torch.device("meta"):
        return [
            make_text_encoder(*TEXT_ENCODERS[name], configs[name], None, name)
            for name in ("text_encoder", "text_encoder_2")
        ]


def test_a_single_file_is_the_same_networks_as_its_folder(random_nano: Path, tmp_path: Path):
    assert cli.main(["convert", str(random_nano), str(tmp_path / "model-vpred.safetensors")]) == 0
    folder = networks_of(recipe(tmp_path, f"model.start={random_nano}"))
    file = networks_of(recipe(tmp_path, f"model.start={tmp_path / 'model-vpred.safetensors'}"))
    assert (file.tokens, file.factor, file.assumed) == (folder.tokens, folder.factor, False)
    assert file.text_blocks == folder.text_blocks > 0
    adapter = AdapterConfig(rank=4, targets="attention_and_feed_forward")
    assert in_text_encoders(file, adapter) == in_text_encoders(folder, adapter) > 0
    assert json.loads(file.unet)["block_out_channels"] == json.loads(folder.unet)["block_out_channels"]


@pytest.mark.parametrize(
    ("name", "key"),
    [("h100", "h100"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"),
     ("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA GeForce RTX 4090", "4090"), ("NVIDIA L40S", "l40s"),
     ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H100 NVL", "h100-nvl"), ("NVIDIA A100 80GB PCIe", "a100-pcie"),
     ("NVIDIA A100-PCIE-40GB", "a100-40-pcie")],
)  # fmt: skip
def test_a_gpu_is_found_by_what_its_driver_calls_it(name: str, key: str):
    assert find_gpu(name) is GPUS[key]


def test_an_unknown_gpu_names_those_there_are():
    with pytest.raises(UserError, match="Known: h100"):
        find_gpu("voodoo 2")


def test_the_plan_is_printed_and_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", "nano", "--plan"]) == 0
    text = capsys.readouterr().out
    assert "nothing here was measured" in text
    assert "bound, products alone at 50% of the peak: " in text  # two speeds, and which is which
    assert "images/s estimated at 50% of the peak with slow small products" in text
    assert "the recipe's micro-batch 32 × 1, checkpointing none fits" in text
    assert cli.main(["train", "nano", "--plan", "--gpu", "4090", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["own"]["fits"] is True
    assert plan["gpu"]["watts"] == 450
    assert not Path("runs/nano").exists()
    assert cli.main(["train", "nano", "--gpu", "4090"]) == 2
    assert "need --plan" in capsys.readouterr().err


def test_the_bound_is_the_bar_of_the_design(tmp_path: Path):
    from terminus.training.plan.planning import bound

    settings = recipe(tmp_path, "training.activation_checkpointing=none")
    own = own_cut(settings, 0.0)
    at = {share: bound(settings, own, GPUS["h100"], share) for share in (0.4, 0.5)}
    assert at[0.4].images_per_second == pytest.approx(15.6, abs=0.05)
    assert at[0.5].images_per_second == pytest.approx(19.5, abs=0.05)
    assert at[0.4].kwh == pytest.approx(0.7 * settings.training.images / at[0.4].images_per_second / 3600)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("unet", {"layers_per_block": 10**6}, "layers_per_block is 1000000"),
        ("unet", {"transformer_layers_per_block": 20}, "transformer_layers_per_block is 20, the weights have 1"),
        ("text_encoder", {"num_hidden_layers": 100}, "num_hidden_layers is 100, the weights have 2 layers"),
        ("vae", {"block_out_channels": 7}, "block_out_channels is 7"),
    ],
)
def test_a_plan_builds_nothing_that_the_weights_are_not(
    random_nano: Path, tmp_path: Path, name: str, values: dict[str, object], words: str
):
    model = shutil.copytree(random_nano, tmp_path / "model")
    config = model / name / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(UserError, match=words):
        networks_of(recipe(tmp_path, f"model.start={model}"))
