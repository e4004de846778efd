"""What a checkpoint is, from each place that says so, in order, with conflicts named."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.model.detect import PROJECTION, Detection, detect
from terminus.model.limits import SIDE_CAR_BYTES
from terminus.model.record import Schedule, load_record, parse_schedule, scheduler_config
from terminus.model.weights import SHIPPED

EMPTY = torch.tensor([])
WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"
V_YAML = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.{scaling}
"""


def table(zero: bool) -> Tensor:
    schedule = NoiseSchedule.scaled_linear()
    schedule = schedule.with_zero_terminal_snr() if zero else schedule
    return schedule.alphas_cumprod.float().clamp(min=4.8973451890853435e-08)


def written(
    folder: Path,
    *tensors: str,
    name: str = "model.safetensors",
    metadata: Mapping[str, str] | None = None,
    alphas: Tensor | None = None,
    side_car: str | None = None,
) -> Path:
    path = folder / name
    content = {WEIGHT: torch.zeros(4, 4, 3, 3)} | {marker: EMPTY.clone() for marker in tensors}
    save_file(content | ({} if alphas is None else {"alphas_cumprod": alphas}), path, metadata=dict(metadata or {}))
    if side_car is not None:
        path.with_suffix(".yaml").write_text(side_car)
    return path


def facts(detection: Detection) -> tuple[str, bool]:
    return detection.schedule.prediction, detection.schedule.zero_terminal


VELOCITY_ZERO, VELOCITY_LEAKY, EPSILON_LEAKY = ("velocity", True), ("velocity", False), ("epsilon", False)


def ours(**schedule: object) -> str:
    return json.dumps({"schedule": schedule})


def one_trainer(**settings: bool) -> dict[str, str]:
    """As OneTrainer writes its configuration, which holds every setting."""
    names = ("rescale_noise_scheduler_to_zero_terminal_snr", "force_v_prediction", "force_epsilon_prediction")
    return {"ot_config": json.dumps({"__version": 11} | {name: settings.get(name, False) for name in names})}


@pytest.mark.parametrize(
    ("tensors", "more", "expected"),
    [
        ((), {}, EPSILON_LEAKY),
        (("v_pred",), {}, VELOCITY_LEAKY),
        (("v_pred", "ztsnr"), {}, VELOCITY_ZERO),
        ((), {"metadata": {"modelspec.prediction_type": "v"}}, VELOCITY_LEAKY),
        ((), {"metadata": {"modelspec.prediction_type": "v-zsnr"}}, VELOCITY_ZERO),
        ((), {"metadata": {"modelspec.prediction_type": "epsilon"}}, EPSILON_LEAKY),
        ((), {"metadata": {"modelspec.predict_key": "v"}}, VELOCITY_LEAKY),
        ((), {"metadata": {"modelspec.prediction_type": "V-Pred"}}, VELOCITY_LEAKY),
        ((), {"metadata": {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}}, VELOCITY_ZERO),
        ((), {"metadata": {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "None"}}, EPSILON_LEAKY),
        (("v_pred",), {"alphas": table(True)}, VELOCITY_ZERO),
        (("v_pred",), {"alphas": table(False)}, VELOCITY_LEAKY),
        (("v_pred",), {"alphas": torch.zeros(1000)}, VELOCITY_ZERO),
        (("v_pred",), {"alphas": torch.full((1000,), 5e-5)}, VELOCITY_LEAKY),
        ((), {"name": "some-vpred-mix.safetensors"}, VELOCITY_LEAKY),
        ((), {"name": "Some_V-Pred_ztSNR.safetensors"}, VELOCITY_ZERO),
        ((), {"side_car": V_YAML.format(scaling="VScaling")}, VELOCITY_LEAKY),
        ((), {"side_car": V_YAML.format(scaling="EpsScaling")}, EPSILON_LEAKY),
        ((), {"side_car": "model:\n  params:\n    parameterization: v\n"}, VELOCITY_LEAKY),
        ((), {"metadata": one_trainer(rescale_noise_scheduler_to_zero_terminal_snr=True)}, VELOCITY_ZERO),
        ((), {"metadata": one_trainer(force_v_prediction=True)}, VELOCITY_LEAKY),
        ((), {"metadata": one_trainer(force_epsilon_prediction=True)}, EPSILON_LEAKY),
        (("v_pred", "ztsnr"), {"metadata": one_trainer()}, VELOCITY_ZERO),
        ((), {"metadata": {"terminus": ours(prediction="velocity", zero_terminal=True)}}, VELOCITY_ZERO),
        ((), {"metadata": {"terminus": ours(prediction="velocity", zero_terminal=False)}}, VELOCITY_LEAKY),
    ],
)  # fmt: skip
def test_each_source_alone(tmp_path: Path, tensors: tuple[str, ...], more: dict, expected: tuple[str, bool]):
    detection = detect(written(tmp_path, *tensors, **more))
    assert facts(detection) == expected
    assert detection.conflicts == ()


def test_one_trainer_forces_velocity_where_it_rescales(tmp_path: Path):
    """Its setup asks for the rescaled schedule first; the file's own word on the target still comes before."""
    both = one_trainer(rescale_noise_scheduler_to_zero_terminal_snr=True, force_epsilon_prediction=True)
    detection = detect(written(tmp_path, metadata={"modelspec.prediction_type": "v"} | both))
    assert facts(detection) == VELOCITY_ZERO
    assert detection.conflicts == ()


@pytest.mark.parametrize("config", ["{", "[]", '{"force_v_prediction": "yes"}', "[" * 10_000])
def test_a_configuration_that_is_none_decides_nothing(tmp_path: Path, config: str):
    detection = detect(written(tmp_path, metadata={"ot_config": config}))
    assert facts(detection) == EPSILON_LEAKY
    readable = config.startswith('{"force')
    assert detection.conflicts == (() if readable else ("metadata ot_config says nothing readable",))


def test_a_projection_that_one_trainer_wrote_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path, PROJECTION, metadata={"ot_revision": "23df3832", "ot_branch": "master"})
    with caplog.at_level(logging.WARNING, "terminus"):
        detect(path)
    assert "OneTrainer 23df3832, which writes the second text encoder's text_projection transposed" in caplog.text
    caplog.clear()
    detect(written(tmp_path, metadata={"ot_revision": "23df3832"}))  # an adapter, or a UNet alone
    detect(written(tmp_path, PROJECTION))
    assert caplog.text == ""


def test_what_is_not_said_of_a_velocity_model_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "terminus"):
        detect(written(tmp_path, "v_pred"))
    assert "nothing says whether at zero terminal SNR; taken for none (`terminus inspect --probe`" in caplog.text
    caplog.clear()
    for tensors, more in ((("v_pred", "ztsnr"), {}), (("v_pred",), {"alphas": table(False)}), ((), {})):
        detect(written(tmp_path, *tensors, **more))
    assert caplog.text == ""


def test_diffusers_configuration_in_our_metadata(tmp_path: Path):
    scheduler = json.loads((SHIPPED["nano"] / "scheduler" / "scheduler_config.json").read_text())
    path = written(tmp_path, metadata={"terminus": json.dumps({"scheduler": scheduler | {"beta_end": 0.02}})})
    assert detect(path).schedule == Schedule(beta_end=0.02)


SPEAKERS = {
    "metadata terminus": {"metadata": {"terminus": ours(prediction="{p}", zero_terminal=False)}},
    "marker tensors": {"tensors": ("v_pred",)},
    "metadata modelspec.prediction_type": {"metadata": {"modelspec.prediction_type": "{m}"}},
    "metadata ss_v_parameterization": {"metadata": {"ss_v_parameterization": "{v}"}},
    "file name": {"name": "a-vpred.safetensors"},
    "side-car .yaml": {"side_car": V_YAML},
}
SPEAK_BOTH = [s for s in SPEAKERS if s not in ("marker tensors", "file name")]


def say(source: str, prediction: str) -> dict:
    v = prediction == "velocity"

    def fill(text: str) -> str:
        words = {
            "{p}": prediction,
            "{m}": "v" if v else "epsilon",
            "{v}": str(v),
            "{scaling}": "VScaling" if v else "EpsScaling",
        }
        for key, value in words.items():
            text = text.replace(key, value)
        return text

    more = dict(SPEAKERS[source])
    if "metadata" in more:
        more["metadata"] = {key: fill(value) for key, value in more["metadata"].items()}
    if "side_car" in more:
        more["side_car"] = fill(more["side_car"])
    return more


def combined(folder: Path, one: dict, other: dict) -> Path:
    merged = one | other | {"metadata": one.get("metadata", {}) | other.get("metadata", {})}
    tensors = merged.pop("tensors", ())
    return written(folder, *tensors, **merged)


ORDER = [pair for pair in itertools.combinations(SPEAKERS, 2) if pair != ("marker tensors", "file name")]
"""These two cannot disagree: neither can say epsilon."""


@pytest.mark.parametrize(("first", "second"), ORDER)
def test_the_first_source_counts_and_the_conflict_names_both(
    tmp_path: Path, first: str, second: str, caplog: pytest.LogCaptureFixture
):
    loud = "epsilon" if first in SPEAK_BOTH else "velocity"
    other = "velocity" if loud == "epsilon" else "epsilon"
    path = combined(tmp_path, say(first, loud), say(second, other))
    with caplog.at_level(logging.WARNING, "terminus"):
        detection = detect(path)
    assert detection.schedule.prediction == loud
    assert len(detection.conflicts) == 1
    assert first in detection.conflicts[0]
    assert second in detection.conflicts[0]
    assert detection.conflicts[0] in caplog.text


def test_agreement_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(
        tmp_path, "v_pred", "ztsnr",
        name="x-vpred.safetensors",
        metadata={"modelspec.prediction_type": "v-zsnr", "modelspec.predict_key": "v", "ss_zero_terminal_snr": "True"},
        alphas=table(True),
        side_car=V_YAML.format(scaling="VScaling"),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "terminus"):
        detection = detect(path)
    assert facts(detection) == VELOCITY_ZERO
    assert (detection.conflicts, caplog.text) == ((), "")
    assert len(detection.evidence) == 7


@pytest.mark.parametrize(
    ("tensors", "more"),
    [
        (("ztsnr",), {}),
        (("ztsnr",), {"metadata": {"modelspec.prediction_type": "epsilon"}}),
        ((), {"metadata": {"modelspec.prediction_type": "epsilon"}, "alphas": table(True)}),
        ((), {"metadata": {"terminus": ours(prediction="epsilon", zero_terminal=True)}}),
    ],
)
def test_epsilon_at_zero_snr_is_refused(tmp_path: Path, tensors: tuple[str, ...], more: dict):
    with pytest.raises(UserError, match=r"Epsilon prediction on a schedule with zero terminal SNR.*--as v-ztsnr"):
        detect(written(tmp_path, *tensors, **more))


@pytest.mark.parametrize("marker", ["edm_mean", "edm_std", "edm_vpred.sigma_max"])
def test_edm_models_are_refused(tmp_path: Path, marker: str):
    with pytest.raises(UserError, match=f"EDM model.*{marker}"):
        detect(written(tmp_path, marker, "v_pred"))


def test_an_edm_side_car_is_a_warning(tmp_path: Path):
    detection = detect(written(tmp_path, side_car=V_YAML.format(scaling="VScalingWithEDMcNoise")))
    assert "EDM" in detection.conflicts[0]


def test_a_name_with_flow_in_it_is_a_warning(tmp_path: Path):
    detection = detect(written(tmp_path, name="bigflow.safetensors"))
    assert "flow matching" in detection.conflicts[0]
    assert detection.schedule.prediction == "epsilon"
    assert detect(written(tmp_path, name="flower.safetensors")).conflicts == ()


@pytest.mark.parametrize("name", ["a-rectified-flow.safetensors", "noobai-rf-1.safetensors", "bigASPv25.safetensors"])
def test_a_name_of_a_flow_is_believed_where_nothing_else_speaks(tmp_path: Path, name: str):
    assert detect(written(tmp_path, name=name)).schedule == Schedule("flow")
    labelled = detect(written(tmp_path, "v_pred", "ztsnr", name=name))
    assert facts(labelled) == ("velocity", True)
    assert "file name says" in labelled.conflicts[0]


def test_a_flow_says_so_by_a_tensor_with_its_shift_or_by_a_word(tmp_path: Path):
    path = tmp_path / "my-flow.safetensors"
    save_file({"a.weight": torch.zeros(1), "rectified_flow": torch.tensor([3.0])}, path)
    detection = detect(path)
    assert (detection.schedule, detection.conflicts) == (Schedule("flow", shift=3.0), ())
    for value in (torch.tensor([float("nan")]), torch.zeros(0), torch.zeros(3)):
        save_file({"a.weight": torch.zeros(1), "rectified_flow": value}, path)
        assert detect(path).schedule == Schedule("flow")
    worded = detect(written(tmp_path, metadata={"modelspec.prediction_type": "Flow", "ss_zero_terminal_snr": "False"}))
    assert worded.schedule == Schedule("flow"), "a flow ends in pure noise"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, Schedule("flow", shift=3.0)),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, Schedule("flow")),
        ({"use_flow_sigmas": True, "flow_shift": 2, "prediction_type": "flow_prediction"}, Schedule("flow", shift=2.0)),
        ({"prediction_type": "flow", "timesteps": 1000, "shift": 6}, Schedule("flow", shift=6.0)),
    ],
)  # fmt: skip
def test_schedulers_of_flows_are_read(config: dict[str, object], expected: Schedule):
    assert parse_schedule(config, "") == expected
    assert parse_schedule(scheduler_config(expected), "") == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shift": 0}, "not readable"), ({"shift": "wide"}, "not readable"), ({"shift": float("nan")}, "not readable"),
        ({"num_train_timesteps": 0}, "not readable"), ({"use_dynamic_shifting": True}, "has use_dynamic_shifting"),
        ({"invert_sigmas": True}, "has invert_sigmas"), ({"shift_terminal": 0.1}, "has shift_terminal"),
    ],
)  # fmt: skip
def test_flows_that_are_none_of_ours_are_refused(change: dict[str, object], words: str):
    with pytest.raises(UserError, match=words):
        parse_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"} | change, "there")


def test_a_word_that_is_not_known_is_a_warning(tmp_path: Path):
    detection = detect(written(tmp_path, "v_pred", metadata={"modelspec.prediction_type": "sample"}))
    assert facts(detection) == VELOCITY_LEAKY
    assert detection.conflicts == ("metadata modelspec.prediction_type says sample, which is not known",)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + "".join(f"k{i}: [*c, *c]\n" for i in range(9000)),
        "#" * (SIDE_CAR_BYTES + 1),
        "{" * 60_000,
        "a: [",
        "\x00\x01",
    ],
    ids=["tag", "aliases", "size", "depth", "syntax", "binary"],
)
def test_a_hostile_side_car_says_nothing_and_is_named(tmp_path: Path, text: str):
    detection = detect(written(tmp_path, "v_pred", side_car=text))
    assert facts(detection) == VELOCITY_LEAKY
    assert "side-car" in detection.conflicts[0]
    assert not (Path.cwd() / "ran").exists()


@pytest.mark.parametrize(
    "stored",
    [
        "{", "[" * 100_000, ours(prediction="rectified", zero_terminal=True), ours(prediction=["velocity"]),
        ours(prediction="velocity", timesteps=10**15), ours(prediction="velocity", beta_start=-1.0),
    ],
)  # fmt: skip
def test_our_own_metadata_is_not_believed_blindly(tmp_path: Path, stored: str):
    detection = detect(written(tmp_path, metadata={"terminus": stored}))
    assert detection.schedule == Schedule(prediction="epsilon", zero_terminal=False)
    assert "metadata terminus says nothing readable" in detection.conflicts[0]


def test_warnings_hold_no_control_characters(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    evil = "v\x1b[31m\nred"
    path = written(tmp_path, "v_pred", metadata={"modelspec.prediction_type": evil}, name="\x1b[2J flow.safetensors")
    with caplog.at_level(logging.WARNING, "terminus"):
        detection = detect(path)
    said = [*detection.conflicts, *(e.says for e in detection.evidence), *(r.getMessage() for r in caplog.records)]
    assert all(text.isprintable() for text in said)


def test_a_folder_is_what_its_scheduler_says(random_nano: Path):
    for folder in (random_nano, SHIPPED["nano"]):
        detection = detect(folder)
        assert detection.schedule == load_record(folder).schedule == Schedule()
        assert detection.conflicts == ()
        assert [e.source for e in detection.evidence[:2]] == ["scheduler/scheduler_config.json", "terminus.json"]


def edited(folder: Path, source: Path, **changes: object) -> Path:
    shutil.copytree(source, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_folder_whose_files_disagree(tmp_path: Path, random_nano: Path):
    folder = edited(tmp_path / "m", random_nano, prediction_type="epsilon", rescale_betas_zero_snr=False)
    detection = detect(folder)
    assert detection.schedule == load_record(folder).schedule
    assert facts(detection) == EPSILON_LEAKY
    assert len(detection.conflicts) == 2
    assert all("scheduler_config.json" in c and "terminus.json" in c for c in detection.conflicts)


def test_markers_in_the_unet_of_a_folder(tmp_path: Path, random_nano: Path):
    folder = edited(tmp_path / "m", random_nano, prediction_type="epsilon", rescale_betas_zero_snr=False)
    (folder / "terminus.json").unlink()
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(unet)
    save_file(tensors | {"v_pred": EMPTY, "ztsnr": EMPTY.clone()}, unet)
    assert ["marker tensors in unet/" in conflict for conflict in detect(folder).conflicts] == [True, True]
    save_file(tensors | {"edm_mean": torch.zeros(4)}, unet)
    with pytest.raises(UserError, match="EDM"):
        detect(folder)


def test_a_folder_with_an_impossible_scheduler(tmp_path: Path, random_nano: Path):
    with pytest.raises(UserError, match="Epsilon prediction on a schedule with zero terminal SNR"):
        detect(edited(tmp_path / "m", random_nano, prediction_type="epsilon"))
    with pytest.raises(UserError, match="prediction_type is 'sample'"):
        detect(edited(tmp_path / "n", random_nano, prediction_type="sample"))


def test_a_pickle_is_no_checkpoint(tmp_path: Path):
    torch.save({WEIGHT: torch.zeros(1)}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="not a safetensors file"):
        detect(tmp_path / "model.ckpt")


@pytest.mark.parametrize("value", ["true", 1, "false", []])
def test_a_flag_that_is_no_truth_value_is_not_taken_for_false(tmp_path: Path, random_nano: Path, value: object):
    folder = edited(tmp_path / "m", random_nano, rescale_betas_zero_snr=value)
    with pytest.raises(UserError, match="not true or false"):
        detect(folder)
