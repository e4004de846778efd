"""`terminus inspect --probe`: networks whose answer is known in closed form, and a real one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from terminus.cli import main
from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.inspection import command
from terminus.inspection.probe import Answer, conclude, measure_leak, seam_probe
from terminus.model.components import load_components
from terminus.model.record import Schedule, load_record, save_record
from terminus.model.weights import SHIPPED
from terminus.runtime import rng

SIDE = 32
LEAKY = float(NoiseSchedule.scaled_linear().alpha[-1])
BRIGHTNESS = torch.ones(4, SIDE, SIDE)


def noises(count: int = 4) -> list[Tensor]:
    return [torch.randn(1, 4, SIDE, SIDE, generator=rng(seed, 0, "test")) for seed in range(count)]


def best(prediction: str, alpha: float, mean: float = 0.3) -> Answer:
    """The best possible network for images whose brightness is normal with variance 1/2, the rest with 1/2."""
    sigma = (1 - alpha**2) ** 0.5

    def answer(x: Tensor) -> Tensor:
        bright = x.mean((-2, -1), keepdim=True)
        parts = ((bright - alpha * mean, sigma**2 / SIDE**2), (x - bright, sigma**2))
        x0 = mean + sum(part * alpha * 0.5 / (alpha**2 * 0.5 + noise) for part, noise in parts)
        return (x - alpha * x0) / sigma if prediction == "epsilon" else (alpha * x - x0) / sigma

    return answer


@pytest.mark.parametrize(
    ("prediction", "alpha", "labelled"),
    [
        ("velocity", 0.0, Schedule()),
        ("velocity", LEAKY, Schedule(zero_terminal=False)),
        ("epsilon", LEAKY, Schedule("epsilon", zero_terminal=False)),
    ],
)
def test_networks_that_are_known(prediction: str, alpha: float, labelled: Schedule):
    found = conclude("x", *measure_leak(best(prediction, alpha), noises(), BRIGHTNESS), labelled)
    assert (found.prediction, found.zero_terminal) == (labelled.prediction, labelled.zero_terminal)
    assert found.conflicts == ()
    assert found.looks_like.startswith(prediction)


def test_the_two_numbers_are_those_of_the_formula():
    slopes, leak = measure_leak(best("velocity", 0.0), noises(), BRIGHTNESS)
    assert slopes == pytest.approx([0] * 4, abs=1e-6)
    assert leak == pytest.approx(0, abs=1e-5)
    slopes, leak = measure_leak(best("velocity", LEAKY), noises(), BRIGHTNESS)
    alpha2, sigma2 = LEAKY**2, 1 - LEAKY**2
    followed = 0.5 * alpha2 / (0.5 * alpha2 + sigma2 / SIDE**2)
    assert leak == pytest.approx((followed - alpha2) / sigma2**0.5, rel=1e-4)
    assert slopes == pytest.approx([LEAKY * (1 - 0.5 / (0.5 * alpha2 + sigma2)) / sigma2**0.5] * 4, rel=1e-3)
    slopes, _ = measure_leak(best("epsilon", LEAKY), noises(), BRIGHTNESS)
    assert min(slopes) > 0.99


def test_what_is_neither_is_called_neither():
    found = conclude("x", *measure_leak(lambda x: 0.5 * x, noises(), BRIGHTNESS), Schedule())
    assert (found.prediction, found.zero_terminal, found.leak) == (None, None, None)
    assert found.looks_like.startswith("neither")
    one_in_four = conclude("x", [1.0, 1.0, 1.0, 0.0], 0.0, Schedule())
    assert one_in_four.prediction is None


def test_a_leak_between_the_two_is_left_open():
    found = conclude("x", [0.0], 0.25, Schedule())
    assert (found.prediction, found.zero_terminal, found.conflicts) == ("velocity", None, ())


@pytest.mark.parametrize(
    ("prediction", "alpha", "labelled", "words"),
    [
        ("epsilon", LEAKY, Schedule(), "the labels say velocity, the network's answers look like epsilon"),
        ("velocity", 0.0, Schedule("epsilon", zero_terminal=False), "say epsilon, the network's answers look like vel"),
        ("velocity", LEAKY, Schedule(), "say zero terminal SNR, the network's answers look like none"),
        ("velocity", 0.0, Schedule(zero_terminal=False), "say no zero terminal SNR, the network's answers look like"),
    ],
)
def test_labels_that_say_otherwise_are_a_conflict(prediction: str, alpha: float, labelled: Schedule, words: str):
    found = conclude("x", *measure_leak(best(prediction, alpha), noises(), BRIGHTNESS), labelled)
    assert len(found.conflicts) == 1
    assert words in found.conflicts[0]


def test_the_shipped_model_answers_as_it_is_labelled(capsys: pytest.CaptureFixture[str]):
    command.inspect("nano", as_json=True, probe=True)
    said = json.loads(capsys.readouterr().out)["probe"]
    assert (said["prediction"], said["zero_terminal"], said["conflicts"]) == ("velocity", True, [])
    assert abs(said["slope"]) < 0.05
    assert said["leak"] < 0.15


def test_the_same_model_leaks_at_a_timestep_that_holds_some_image():
    """The control: where alpha is that of SDXL's last timestep, the brightness is there to be seen, and it is seen."""
    components = load_components("nano")
    table = NoiseSchedule.scaled_linear().with_zero_terminal_snr().alpha
    answer, brightness = seam_probe(components, int((table > LEAKY).sum()))
    drawn = [torch.randn(1, *brightness.shape, generator=rng(seed, 0, "probe")) for seed in range(4)]
    found = conclude("nano", *measure_leak(answer, drawn, brightness), components.record.schedule)
    assert (found.prediction, found.zero_terminal) == ("velocity", False)


def test_labels_that_no_model_can_have_do_not_stop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Sampling refuses such a model, and this is what tells which label is the wrong one."""
    folder = Path(shutil.copytree(SHIPPED["nano"], tmp_path / "model"))
    save_record(replace(load_record(folder), schedule=Schedule("epsilon", zero_terminal=True)), folder)
    with pytest.raises(UserError, match="no such model exists"):
        load_components(folder)
    command.inspect(str(folder), probe=True)
    shown = capsys.readouterr().out
    assert "the labels say epsilon, the network's answers look like velocity" in shown


def test_nine_channels_are_asked_to_repaint_everything(random_nano: Path):
    components = load_components(random_nano)
    components.unet.conv_in = torch.nn.Conv2d(9, 16, 3, padding=1)
    components.unet.register_to_config(in_channels=9)
    seen: list[Tensor] = []
    components.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    answer, brightness = seam_probe(components, 999)
    x = torch.randn(1, *brightness.shape)
    assert answer(x).shape == x.shape
    assert torch.equal(seen[0][:, :4], x)
    assert (seen[0][:, 4] == 1).all()
    assert (seen[0][:, 5:] == 0).all()


def test_what_is_no_model_is_not_probed(random_nano: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(random_nano / "vae"), "--probe"]) == 2
    assert "Only a model can be probed" in capsys.readouterr().err
    assert main(["inspect", "nano", "--probe", "--fix", "x"]) == 2
    assert "Leave out --json and --probe" in capsys.readouterr().err
