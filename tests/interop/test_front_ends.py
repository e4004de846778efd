"""What other programs will think of the files that we write, by their own rules.

Each rule is a program's detection re-stated as a function of what that program looks at; the place in its source is
named. A rule answers (what the network predicts, whether the schedule ends in pure noise).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from terminus.model.convert import convert
from terminus.model.header import read_header, read_numbers
from terminus.model.modelspec import side_car
from terminus.model.parts import read_folder
from terminus.model.weights import SHIPPED, read_json

Answer = tuple[str, bool]
RIGHT: Answer = ("velocity", True)
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


@dataclass(frozen=True)
class Seen:
    """A single file, and what lies beside it."""

    shapes: Mapping[str, tuple[int, ...]]
    name: str = "sd_xl_base_1.0.safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict)
    side_car: Any = None
    alphas: Any = None
    """The tensor alphas_cumprod, as (dtype, numbers)."""

    @property
    def channels(self) -> int:
        return self.shapes[CONV_IN][1]


def scaling(side_car: Any) -> str | None:
    """The class name that a configuration gives the denoiser's scaling, or older files' parameterization."""
    parameters = side_car["model"]["params"]
    if parameters.get("parameterization") == "v":
        return "VScaling"
    target = parameters.get("denoiser_config", {}).get("params", {}).get("scaling_config", {}).get("target")
    return target and target.rsplit(".", 1)[-1]


def comfyui(seen: Seen) -> Answer:
    """comfy/supported_models.py, SDXL.model_type: a marker's content is never looked at."""
    if {"edm_mean", "edm_std"} <= seen.shapes.keys():
        return "edm", False
    if "edm_vpred.sigma_max" in seen.shapes:
        return "edm velocity", False
    return ("velocity", "ztsnr" in seen.shapes) if "v_pred" in seen.shapes else ("epsilon", False)


def forge(seen: Seen) -> Answer:
    """huggingface_guess/model_list.py, then backend/loader.py: a configuration that says velocity wins, no other."""
    named = seen.side_car is not None and scaling(seen.side_car) == "VScaling"
    return "velocity" if named or "v_pred" in seen.shapes else "epsilon", "ztsnr" in seen.shapes


def reforge(seen: Seen) -> Answer:
    """ldm_patched/modules/supported_models.py; modules/sd_models_xl.py for the configuration; forge_loader.py."""
    named = seen.side_car is not None and scaling(seen.side_car) == "VScaling"
    return "velocity" if named or "v_pred" in seen.shapes else "epsilon", "ztsnr" in seen.shapes


def forge_classic(seen: Seen) -> Answer:
    """ldm_patched/modules/supported_models.py and modules_forge/forge_loader.py: as reForge, which came from it."""
    return reforge(seen)


def a1111(seen: Seen) -> Answer:
    """modules/sd_models_config.py: configuration beside the file, else nine channels, else the marker; sd_models.py."""
    if seen.side_car is not None:
        predicts = "velocity" if scaling(seen.side_car) == "VScaling" else "epsilon"
    elif seen.channels == 9:
        predicts = "epsilon"
    else:
        predicts = "velocity" if "v_pred" in seen.shapes else "epsilon"
    return predicts, "ztsnr" in seen.shapes


def sd_next(seen: Seen) -> Answer:
    """modules/sd_models.py: the file's name before its content; modules/sd_detect.py."""
    name = seen.name.lower()
    if any(word in name for word in ("bigaspv25", "noobai-rf")) or re.search("flow(?!er)", name):
        return "flow", False
    if any(word in name for word in ("vpred", "v-pred", "v_pred")):
        return "velocity", True
    if not name.endswith(".safetensors") or "v_pred" not in seen.shapes:
        return "epsilon", False
    return "velocity", "ztsnr" in seen.shapes


def stable_diffusion_cpp(seen: Seen) -> Answer:
    """src/stable-diffusion.cpp: the marker, and a table of which every number must be in (0, 1], else its own."""
    if "edm_vpred.sigma_max" in seen.shapes:
        return "edm velocity", False
    zero = False
    if seen.alphas is not None:
        kind, numbers = seen.alphas
        usable = kind in ("F32", "F16", "BF16") and len(numbers) == 1000
        usable = usable and bool(np.all(np.isfinite(numbers) & (numbers > 0) & (numbers <= 1)))
        zero = usable and float(numbers[-1]) < 1e-6
    return "velocity" if "v_pred" in seen.shapes else "epsilon", zero


def swarmui(seen: Seen) -> Answer:
    """WorkflowGeneratorModelSupport.cs: ModelSpec's prediction type overrides whatever ComfyUI finds in the file."""
    stated = seen.metadata.get("modelspec.prediction_type")
    if not stated:
        return comfyui(seen)
    return "velocity" if stated.startswith("v") else "epsilon", "zsnr" in stated


def invokeai(scheduler: Mapping[str, Any]) -> Answer:
    """model_manager/configs/main.py and denoise_latents.py: a folder's scheduler configuration, and only that."""
    knows = ("DDIM", "DDPM", "DPMSolverMultistep", "Euler", "EulerAncestral", "LCM", "TCD", "UniPC")
    known = scheduler["_class_name"].removesuffix("Scheduler").removesuffix("Discrete") in knows
    predicts = "velocity" if scheduler.get("prediction_type") == "v_prediction" else "epsilon"
    return predicts, known and scheduler.get("rescale_betas_zero_snr", False) is True


RULES: dict[str, Callable[[Seen], Answer]] = {
    "ComfyUI": comfyui,
    "Forge": forge,
    "reForge": reforge,
    "Forge Classic": forge_classic,
    "A1111": a1111,
    "SD.Next": sd_next,
    "stable-diffusion.cpp": stable_diffusion_cpp,
    "SwarmUI": swarmui,
}


def look(path: Path) -> Seen:
    """A file as these programs open it."""
    header = read_header(path)
    beside = path.with_suffix(".yaml")
    table = header.tensors.get("alphas_cumprod")
    return Seen(
        shapes={name: info.shape for name, info in header.tensors.items()},
        name=path.name,
        metadata=header.metadata,
        side_car=YAML(typ="safe", pure=True).load(beside.read_text()) if beside.is_file() else None,
        alphas=table and (table.dtype, read_numbers(header, "alphas_cumprod")),
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The file that `terminus convert` makes of the shipped model."""
    target = tmp_path_factory.mktemp("single") / "nano-vpred.safetensors"
    convert(SHIPPED["nano"], target)
    return look(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that comes back from it."""
    single, target = tmp_path_factory.mktemp("there") / "nano-vpred.safetensors", tmp_path_factory.mktemp("back") / "m"
    convert(SHIPPED["nano"], single)
    convert(single, target)
    return target


BASE = Seen(
    {
        CONV_IN: (320, 4, 3, 3),
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    }
)
"""What decides in SDXL base 1.0, which has no marker and predicts epsilon."""


@pytest.mark.parametrize("program", RULES)
def test_they_take_what_we_write_for_what_it_is(program: str, ours: Seen):
    assert RULES[program](ours) == RIGHT


@pytest.mark.parametrize("program", RULES)
def test_they_take_sdxl_base_for_epsilon(program: str):
    assert RULES[program](BASE) == ("epsilon", False)


@cache
def written_side_car(channels: int) -> Any:
    parts = read_folder(SHIPPED["nano"])
    unet = {**parts.configs["unet"], "in_channels": channels}
    return YAML(typ="safe", pure=True).load(side_car(replace(parts, configs={**parts.configs, "unet": unet})))


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("program", RULES)
def test_the_configuration_beside_the_file_changes_nothing_but_inpainting(program: str, channels: int, ours: Seen):
    """`convert` writes it for models of SDXL's shapes, which the shipped one has not."""
    shapes = {**ours.shapes, CONV_IN: (320, channels, 3, 3)}
    with_it = replace(ours, shapes=shapes, side_car=written_side_car(channels))
    assert RULES[program](with_it) == RIGHT
    assert with_it.side_car["model"]["params"]["network_config"]["params"]["in_channels"] == channels
    bare = RULES[program](replace(with_it, side_car=None))
    assert (bare == RIGHT) is not (program == "A1111" and channels == 9), "this is why it is written"


@pytest.mark.parametrize("program", ["Forge", "reForge", "Forge Classic"])
def test_a_configuration_of_epsilon_is_passed_over(program: str, ours: Seen):
    """OneTrainer writes one beside its velocity models. Forge's own lines were run on it, the others read."""
    epsilon = {"model": {"params": {"denoiser_config": {"params": {"scaling_config": {"target": "a.b.EpsScaling"}}}}}}
    assert RULES[program](replace(ours, side_car=epsilon)) == RIGHT
    assert RULES[program](replace(BASE, side_car=epsilon)) == ("epsilon", False)
    assert RULES["A1111"](replace(ours, side_car=epsilon)) == ("epsilon", True), "there it decides"


def test_a_folder_is_recognised_by_its_scheduler(folder: Path):
    for model in (SHIPPED["nano"], folder):
        assert invokeai(read_json(model / "scheduler" / "scheduler_config.json")) == RIGHT
    assert invokeai({"_class_name": "EulerDiscreteScheduler"}) == ("epsilon", False)


def without(seen: Seen, *names: str) -> Seen:
    return replace(seen, shapes={name: shape for name, shape in seen.shapes.items() if name not in names})


def table(*numbers: float) -> tuple[str, Any]:
    return "F32", np.array([*np.linspace(0.99, 0.1, 1000 - len(numbers)), *numbers])


WRONG: dict[str, tuple[str, Callable[[Seen], Seen]]] = {
    "no markers": ("ComfyUI", lambda seen: without(seen, "v_pred", "ztsnr")),
    "one marker": ("Forge", lambda seen: without(seen, "ztsnr")),
    "no v_pred, no configuration": ("reForge", lambda seen: replace(without(seen, "v_pred"), side_car=None)),
    "no configuration, no marker": ("A1111", lambda seen: replace(without(seen, "v_pred"), side_car=None)),
    "a name of flow matching": ("SD.Next", lambda seen: replace(seen, name="workflow-vpred.safetensors")),
    "a zero in the table": ("stable-diffusion.cpp", lambda seen: replace(seen, alphas=table(0.0))),
    "the table of SDXL base": ("stable-diffusion.cpp", lambda seen: replace(seen, alphas=table(0.0047))),
    "no table": ("stable-diffusion.cpp", lambda seen: replace(seen, alphas=None)),
    "ModelSpec's plain v": (
        "SwarmUI",
        lambda seen: replace(seen, metadata={**seen.metadata, "modelspec.prediction_type": "v"}),
    ),
    "an EDM marker": ("ComfyUI", lambda seen: replace(seen, shapes={**seen.shapes, "edm_vpred.sigma_max": ()})),
}


@pytest.mark.parametrize("change", WRONG)
def test_each_label_is_needed(change: str, ours: Seen):
    program, edit = WRONG[change]
    assert RULES[program](ours) == RIGHT
    assert RULES[program](edit(ours)) != RIGHT


def test_no_name_or_tensor_misleads(ours: Seen):
    assert not [name for name in ours.shapes if name.startswith("edm_")]
    assert {name: ours.shapes[name] for name in ("v_pred", "ztsnr")} == {"v_pred": (1,), "ztsnr": (1,)}
    kind, numbers = ours.alphas
    assert kind == "F32"
    assert numbers.shape == (1000,)
    assert np.all(np.diff(numbers) < 0)
