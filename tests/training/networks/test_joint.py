"""Text encoders: frozen they stay what they are, trained they change, more slowly than the UNet."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from terminus.diffusion.objective import Objective
from terminus.diffusion.weighting import min_snr
from terminus.model.components import Components, load_components, save_components
from terminus.model.record import noise_schedule
from terminus.training.networks.joint import JointModel, rate_factor
from terminus.training.optim.ema import Average, ConstantEma
from terminus.training.optim.optimizer import AdamW, build_optimizer, set_rate
from terminus.training.steps.diffusion import DiffusionStep
from tests.training.test_step import batch


@pytest.fixture
def components(random_nano: Path) -> Components:
    return load_components(random_nano)


def join(components: Components) -> JointModel:
    return JointModel(
        components.unet,
        components.text_encoders.text_encoder_1,
        components.text_encoders.text_encoder_2,
        text_encoder_rate=0.1,
    )


def step_of(components: Components, joint: bool) -> DiffusionStep:
    components.unet.requires_grad_(True)
    schedule = noise_schedule(components.record.schedule)
    return DiffusionStep(
        components=components,
        objective=Objective(schedule, min_snr(schedule.snr)),
        seed=5,
        global_batch=8,
        stratified=True,
        caption_dropout=0.5,
        device=torch.device("cpu"),
        precision="fp32",
        joint=join(components) if joint else None,
    )


def text_encoders(components: Components) -> dict[str, Tensor]:
    pairs = (
        ("text_encoder_1", components.text_encoders.text_encoder_1),
        ("text_encoder_2", components.text_encoders.text_encoder_2),
    )
    return {
        f"{name}.{key}": value.detach().clone()
        for name, text_encoder in pairs
        for key, value in text_encoder.named_parameters()
    }


def gradients(step: DiffusionStep) -> dict[str, Tensor]:
    step.loss(batch(), 0).weighted.mean().backward()
    return {name: p.grad.clone() for name, p in step.trained.named_parameters() if p.grad is not None}


def test_the_unet_has_the_same_loss_and_gradient_either_way(components: Components):
    frozen = gradients(step_of(copy.deepcopy(components), joint=False))
    both = gradients(step_of(components, joint=True))
    assert not any(name.startswith("text_encoder") for name in frozen)
    for name, value in frozen.items():
        assert torch.equal(both[f"unet.{name}"], value), name


def test_exactly_what_is_listed_as_trained_has_a_gradient(components: Components):
    """Also what DistributedDataParallel asks for; text encoder 1's last layer is not read, so it is not listed."""
    step = step_of(components, joint=True)
    found = gradients(step)
    listed = {name for name, p in step.trained.named_parameters() if p.requires_grad}
    assert found.keys() == listed
    assert {name.split(".")[0] for name in listed} == {"unet", "text_encoder_1", "text_encoder_2"}
    unread = {name for name, p in step.trained.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in unread} == {"text_encoder_1"}
    assert any(".layers.1." in name for name in unread)
    assert all(float(value.abs().max()) > 0 for name, value in found.items() if "text_projection" in name)


def test_frozen_text_encoders_have_no_graph(components: Components):
    step = step_of(components, joint=False)
    gradients(step)
    assert all(p.grad is None for p in components.text_encoders.text_encoder_1.parameters())
    assert all(p.grad is None for p in components.text_encoders.text_encoder_2.parameters())


def test_measuring_leaves_no_graph(components: Components):
    with torch.no_grad():
        assert not step_of(components, joint=True).loss(batch(), 0).weighted.requires_grad


def test_the_text_encoders_rate_is_a_share_of_the_unets(components: Components):
    both = join(components)
    assert rate_factor(both, "unet.conv_in.weight") == 1.0
    assert rate_factor(both, "text_encoder_2.text_projection.weight") == 0.1
    assert rate_factor(components.unet, "conv_in.weight") == 1.0


def test_text_encoders_take_a_tenth_of_the_unets_step(components: Components):
    """AdamW's first step is the rate times the sign of the gradient, whatever the gradient is."""
    step = step_of(components, joint=True)
    optimizer = build_optimizer(step.trained, AdamW(weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in step.trained.named_parameters()}
    step.loss(batch(), 0).weighted.mean().backward()
    set_rate(optimizer, 1e-3)
    optimizer.step()
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in step.trained.named_parameters()}
    assert moved["unet.conv_in.weight"] == pytest.approx(1e-3, rel=0.01)
    assert moved["text_encoder_2.text_projection.weight"] == pytest.approx(1e-4, rel=0.01)
    assert moved["text_encoder_1.embeddings.position_embedding.weight"] == pytest.approx(1e-4, rel=0.01)
    assert moved["text_encoder_1.final_layer_norm.weight"] == 0.0


def test_the_average_and_the_export_hold_the_trained_text_encoders(components: Components, tmp_path: Path):
    step = step_of(components, joint=True)
    before = text_encoders(components)
    average = Average(step.trained, ConstantEma(half_life_images=8, ramp=1.0))
    optimizer = torch.optim.SGD([p for p in step.trained.parameters() if p.requires_grad], lr=0.1)
    for number in range(2):
        optimizer.zero_grad()
        step.loss(batch(8 * number), number).weighted.mean().backward()
        optimizer.step()
        average.update(8 * (number + 1), 8)
    with average.swapped_in():
        save_components(replace(components), tmp_path, torch.float32)
    written = text_encoders(load_components(tmp_path))
    for name, value in average.tensors.items():
        if name.startswith("text_encoder"):
            assert torch.equal(written[name], value), name
    changed = {name for name, value in before.items() if not torch.equal(written[name], value)}
    assert any(name.startswith("text_encoder_1") for name in changed)
    assert any(name.startswith("text_encoder_2") for name in changed)
    assert not any(".layers.1." in name for name in changed if name.startswith("text_encoder_1"))
