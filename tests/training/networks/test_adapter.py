"""A trained adapter: what is written is what was trained, for us, for peft and for diffusers."""

from __future__ import annotations

import copy
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from terminus.conditioning import time_ids
from terminus.config.load import load
from terminus.diffusion.objective import Objective
from terminus.diffusion.weighting import min_snr
from terminus.errors import UserError
from terminus.model.adapter_files import DIFFUSERS_FILE, PEFT_FILE
from terminus.model.adapter_keys import networks
from terminus.model.adapters import Adapters, read_adapter
from terminus.model.components import Components, load_components, save_components
from terminus.model.header import read_header
from terminus.model.record import noise_schedule
from terminus.model.unet import predict
from terminus.runtime import Precision
from terminus.training.networks.adapter import AdapterConfig, TrainedAdapter, attach_adapter, is_adapter_parameter
from terminus.training.networks.frozen_weights import store_frozen
from terminus.training.networks.joint import JointModel
from terminus.training.optim.optimizer import AdamW, build_optimizer, set_rate
from terminus.training.plan.cost import Shape, config_of, count_cost
from terminus.training.plan.memory import BatchSplit, own_cut
from terminus.training.recipe import Recipe
from terminus.training.steps.diffusion import DiffusionStep
from tests.training.test_step import batch

ALGORITHMS = ("lora", "dora", "loha", "lokr")
TARGETS = ("attention", "attention_and_feed_forward", "all")


@pytest.fixture(scope="module")
def base(random_nano: Path) -> Components:
    return load_components(random_nano)


def copied(base: Components) -> Components:
    text = replace(
        base.text_encoders,
        text_encoder_1=copy.deepcopy(base.text_encoders.text_encoder_1),
        text_encoder_2=copy.deepcopy(base.text_encoders.text_encoder_2),
    )
    return replace(base, unet=copy.deepcopy(base.unet), text_encoders=text)


def settings(algorithm: str, targets: str = "all", rank: int = 3, alpha: float | None = 4.5) -> AdapterConfig:
    return AdapterConfig.model_validate({"algorithm": algorithm, "targets": targets, "rank": rank, "alpha": alpha})


def shaken(base: Components, config: AdapterConfig, text: bool = False) -> TrainedAdapter:
    """An adapter on a copy of the model, as training might leave it: every factor moved."""
    adapter = attach_adapter(copied(base), config, text, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in adapter._networks.values():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


def outputs(components: Components) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    text = components.text_encoders.encode(["a lighthouse", ""])
    ids = time_ids(batch().conditioning[:2], torch.device("cpu"))
    with torch.no_grad():
        return predict(components.unet, x, torch.tensor([999, 300]), text, ids)


def step_of(adapter: TrainedAdapter, precision: Precision = "fp32", text: bool = False) -> DiffusionStep:
    components = adapter.components
    schedule = noise_schedule(components.record.schedule)
    both = (
        JointModel(
            components.unet, components.text_encoders.text_encoder_1, components.text_encoders.text_encoder_2, 0.5
        )
        if text
        else None
    )
    adapter.freeze()
    return DiffusionStep(
        components=components,
        objective=Objective(schedule, min_snr(schedule.snr)),
        seed=5,
        global_batch=8,
        stratified=True,
        caption_dropout=0.5,
        device=torch.device("cpu"),
        precision=precision,
        joint=both,
    )


def state(components: Components) -> dict[str, Tensor]:
    parts = {
        "unet": components.unet,
        "text_encoder_1": components.text_encoders.text_encoder_1,
        "text_encoder_2": components.text_encoders.text_encoder_2,
    }
    return {f"{part}.{k}": v.clone() for part, one in parts.items() for k, v in one.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_new_adapter_changes_nothing(base: Components, algorithm: str):
    adapter = attach_adapter(copied(base), settings(algorithm), True, seed=3)
    torch.testing.assert_close(outputs(adapter.components), outputs(base), rtol=1e-5, atol=1e-6)
    again = attach_adapter(copied(base), settings(algorithm), True, seed=3)
    other = attach_adapter(copied(base), settings(algorithm), True, seed=4)
    assert same(state(adapter.components), state(again.components))
    assert not same(state(adapter.components), state(other.components))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_exactly_the_adapter_is_trained(base: Components, algorithm: str, precision: Precision):
    adapter = attach_adapter(copied(base), settings(algorithm), True, seed=3)
    step = step_of(adapter, precision, text=True)
    step.loss(batch(), 0).weighted.mean().backward()
    listed = {name for name, p in step.trained.named_parameters() if p.requires_grad}
    assert listed
    assert all(is_adapter_parameter(name) for name in listed)
    assert {name for name, p in step.trained.named_parameters() if p.grad is not None} == listed
    assert {name.split(".")[0] for name in listed} == {"unet", "text_encoder_1", "text_encoder_2"}


def test_magnitudes_do_not_decay(base: Components):
    """One number per output of a layer that is not trained, in four dimensions where it is a convolution."""
    unet = attach_adapter(copied(base), settings("dora"), False, seed=3).components.unet
    magnitudes = {id(p): p for name, p in unet.named_parameters() if "magnitude" in name}
    assert {p.ndim for p in magnitudes.values()} == {1, 4}
    for group in build_optimizer(unet, AdamW(weight_decay=0.1)).param_groups:
        inside = sum(id(parameter) in magnitudes for parameter in group["params"])
        assert inside == (0 if group["weight_decay"] else len(group["params"]))


def test_targets_are_nested(base: Components):
    sizes = []
    for targets in TARGETS:
        unet = attach_adapter(copied(base), settings("lora", targets), False, seed=3).components.unet
        sizes.append(sum(is_adapter_parameter(name) for name, _ in unet.named_parameters()))
    attentions = sum(name.endswith(("attn1", "attn2")) for name, _ in base.unet.named_modules())
    layers = sum(isinstance(one, torch.nn.Linear | torch.nn.Conv2d) for one in base.unet.modules())
    assert sizes == [2 * 4 * attentions, 2 * 5 * attentions, 2 * layers]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_planner_counts_what_is_trained(base: Components, algorithm: str):
    config = settings(algorithm)
    unet = attach_adapter(copied(base), config, False, seed=3).components.unet
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    cost = count_cost(Shape(config_of(base.unet), 8, 8, 32, adapter=config.model_dump_json()), "none")
    assert cost.trained == trained
    assert cost.parameters == sum(parameter.numel() for parameter in base.unet.parameters())


def planned(random_nano: Path, *overrides: str) -> BatchSplit:
    small = f"model={{start: {random_nano}, adapter: {{rank: 4, targets: attention}}}}"
    return own_cut(load("lora", Recipe, [small, "training.micro_batch=32", *overrides]).value, 1e12)


@pytest.mark.parametrize("text", [False, True])
def test_the_plan_of_an_adapter(random_nano: Path, base: Components, text: bool):
    """The networks are held once and have no state; the adapter has all of it, its part in the text encoders too."""
    both = ["objective.train_text_encoders=both"] if text else []
    memory = planned(random_nano, *both).memory
    adapter = attach_adapter(copied(base), AdapterConfig(rank=4), text, seed=3)
    size = sum(p.numel() for network in adapter._networks.values() for p in network.parameters() if p.requires_grad)
    state = memory.weights, memory.gradients, memory.moments, memory.average
    assert state == (4 * size, 4 * size, 8 * size, 4 * size)
    store_frozen(networks(adapter.components).values(), "bf16")
    vision = load_components(random_nano).vision
    assert vision is not None
    every = [*networks(adapter.components).values(), base.vae.autoencoder, vision]
    held = sum(p.nbytes for network in every for p in network.parameters() if not p.requires_grad)
    assert memory.frozen == held
    assert planned(random_nano, "training.precision=fp32", *both).memory.frozen == 4 * held_numbers(every)
    whole = planned(random_nano, "model.adapter=null", *both)
    assert 0.6 * whole.cost.total < planned(random_nano).cost.total < 0.8 * whole.cost.total


def held_numbers(modules: list[torch.nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if not p.requires_grad)


# What is frozen


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_frozen_weights_in_bf16_change_nothing(base: Components, algorithm: str):
    """Losses and gradients bit for bit. DoRA alone reads a weight outside of a product: for the norms of its rows."""
    adapter = shaken(base, settings(algorithm), text=True)
    step = step_of(adapter, "bf16", text=True)
    errors, gradients = learned(step)
    frozen = store_frozen(networks(adapter.components).values(), "bf16")
    assert len(frozen.originals) > 40
    assert all(parameter.dtype == torch.bfloat16 for parameter in frozen.originals)
    others = [p for network in networks(adapter.components).values() for p in network.parameters()]
    assert all(p.dtype == torch.float32 for p in others if p not in frozen.originals)
    errors_too, gradients_too = learned(step)
    assert gradients.keys() == gradients_too.keys()
    if algorithm == "dora":
        torch.testing.assert_close(errors_too, errors, rtol=1e-2, atol=0)
    else:
        assert torch.equal(errors_too, errors)
        assert same(gradients, gradients_too)


def test_in_float32_nothing_is_narrowed_and_what_is_trained_never_is(base: Components):
    for precision in ("fp32", "bf16"):
        adapter = attach_adapter(copied(base), settings("lora", "attention"), False, seed=3)
        frozen = store_frozen(networks(adapter.components).values(), precision)
        assert bool(frozen.originals) == (precision == "bf16")
        assert not any(parameter.requires_grad for parameter in frozen.originals)


def learned(step: DiffusionStep) -> tuple[Tensor, dict[str, Tensor]]:
    step.trained.zero_grad()
    loss = step.loss(batch(), 0)
    loss.weighted.mean().backward()
    gradients = {name: p.grad.clone() for name, p in step.trained.named_parameters() if p.grad is not None}
    return loss.error.detach(), gradients


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_model_is_never_written_from_rounded_weights(base: Components, tmp_path: Path, algorithm: str):
    """The finished folder is the same bytes, whether the frozen weights were stored in float32 or in bfloat16."""
    adapter = shaken(base, settings(algorithm), text=True)
    odd = adapter.components.text_encoders.text_encoder_1.encoder.layers[0].mlp.fc1.get_base_layer().weight
    with torch.no_grad():
        odd.mul_(1.0001)  # which half precision does not hold
    with adapter.merged():
        save_components(adapter.components, tmp_path / "one", torch.float32)
    frozen = store_frozen(networks(adapter.components).values(), "bf16")
    assert {one.dtype for one in frozen.originals.values()} == {torch.float16, torch.float32}
    before = state(adapter.components)
    with frozen.as_loaded(), adapter.merged():
        save_components(adapter.components, tmp_path / "two", torch.float32)
    assert same(state(adapter.components), before)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


# Round trips


@pytest.mark.parametrize("rank", [3, 16])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_written_is_what_was_trained(base: Components, tmp_path: Path, algorithm: str, rank: int):
    """Inside the network = merged into it = our reader on each of the files, UNet and text encoders."""
    adapter = shaken(base, settings(algorithm, rank=rank), text=True)
    trained = outputs(adapter.components)
    assert (trained - outputs(base)).abs().max() > 0.01
    before = state(adapter.components)
    with adapter.merged():
        assert state(adapter.components).keys() == state(base).keys()
        torch.testing.assert_close(outputs(adapter.components), trained, rtol=0, atol=1e-5)
    assert same(state(adapter.components), before)
    adapter.write(adapter.components, tmp_path, "My adapter!")
    files = [tmp_path / "my-adapter.safetensors"]
    files += [tmp_path / DIFFUSERS_FILE] if algorithm in ("lora", "dora") else []
    for file in files:
        fresh = copied(base)
        read = read_adapter(file, fresh)
        assert not read.unplaced
        Adapters(fresh).attach(read)
        torch.testing.assert_close(outputs(fresh), trained, rtol=0, atol=1e-5)
    if algorithm in ("loha", "lokr"):
        fresh = copied(base)
        adapters = Adapters(fresh)
        for part in ("unet", "text_encoder", "text_encoder_2"):
            assert (tmp_path / part / PEFT_FILE).is_file()
        adapters.attach(read_adapter(tmp_path / "unet", fresh))
        unet_alone = replace(adapter.components, text_encoders=base.text_encoders)
        torch.testing.assert_close(outputs(fresh), outputs(unet_alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["loha", "lokr"])
def test_peft_reads_its_folder(base: Components, tmp_path: Path, algorithm: str):
    adapter = shaken(base, settings(algorithm))
    adapter.write(adapter.components, tmp_path, "x")
    fresh = copied(base)
    loaded: Any = peft.PeftModel.from_pretrained(fresh.unet, str(tmp_path / "unet"))
    wrapped = replace(fresh, unet=loaded.base_model.model)
    torch.testing.assert_close(outputs(wrapped), outputs(adapter.components), rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_diffusers_reads_its_file(base: Components, tmp_path: Path, algorithm: str):
    adapter = shaken(base, settings(algorithm, alpha=1.5), text=True)
    save_components(base, tmp_path / "model", torch.float32)
    adapter.write(adapter.components, tmp_path, "x")
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model", add_watermarker=False)
    pipeline.load_lora_weights(tmp_path, weight_name=DIFFUSERS_FILE)
    text = replace(
        base.text_encoders, text_encoder_1=pipeline.text_encoder.eval(), text_encoder_2=pipeline.text_encoder_2.eval()
    )
    theirs = replace(base, unet=pipeline.unet.eval(), text_encoders=text)
    torch.testing.assert_close(outputs(theirs), outputs(adapter.components), rtol=0, atol=1e-5)


def test_kohyas_file_tells_what_it_belongs_to(base: Components, tmp_path: Path):
    adapter = shaken(base, settings("lora", "attention", alpha=None))
    adapter.write(replace(base, record=replace(base.record, licence="mit")), tmp_path, "x")
    header = read_header(tmp_path / "x.safetensors")
    stem = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
    keys = {key.removeprefix(stem) for key in header.tensors if key.startswith(stem)}
    assert keys == {".lora_down.weight", ".lora_up.weight", ".alpha"}
    told = header.metadata
    assert told["ss_v_parameterization"] == told["ss_zero_terminal_snr"] == "True"
    assert told["modelspec.prediction_type"] == "v-zsnr"
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("3", "3.0")
    assert told["modelspec.license"] == "mit"
    assert "modelspec.architecture" not in told  # it is no SDXL
    content = (tmp_path / "x.safetensors").read_bytes()[header.start :]
    assert told["sshs_model_hash"] == hashlib.sha256(content).hexdigest()
    assert read_adapter(tmp_path / "x.safetensors", base).claim.prediction == "velocity"
    again = tmp_path / "again"
    adapter.write(replace(base, record=replace(base.record, licence="mit")), again, "x")
    for name in ("x.safetensors", DIFFUSERS_FILE):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_adapter_learns_eight_images(base: Components):
    adapter = attach_adapter(copied(base), AdapterConfig(rank=8, targets="all"), False, seed=3)
    step = step_of(adapter)
    optimizer = build_optimizer(step.trained, AdamW(weight_decay=0.0))
    set_rate(optimizer, 1e-2)
    errors = []
    for number in range(24):
        optimizer.zero_grad()
        loss = step.loss(batch(), number)
        loss.weighted.mean().backward()
        optimizer.step()
        errors.append(float(loss.error.detach().mean()))
    assert sum(errors[-4:]) < 0.8 * sum(errors[:4]), errors[::4]


def test_without_peft_the_error_says_what_to_install(base: Components, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="pip install peft"):
        attach_adapter(copied(base), AdapterConfig(), False, seed=0)
