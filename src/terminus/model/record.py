"""The record of a checkpoint: its noise schedule, and how it was trained.

diffusers has no place for weighting, lineage and counts, so they are in `terminus.json`; the schedule is in
`scheduler/scheduler_config.json`, where diffusers looks for it too, and is read from there alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from terminus.diffusion.prediction import PredictionType
from terminus.diffusion.schedule import SHIFTS, NoiseSchedule
from terminus.errors import UserError
from terminus.model.limits import PIXELS, TIMESTEPS, show_value
from terminus.model.lineage import Merge, parse_merges
from terminus.model.weights import read_json

Number = TypeVar("Number", int, float)
Prediction = PredictionType
_LONGEST_CARD = 1 << 20
"""Characters of a model card that are looked at."""
_LICENCE_LINE = re.compile(r"""^(license(?:_name)?):[ \t]*["']?([^\s"'\[\]{}|>]{1,100})["']?[ \t]*$""", re.MULTILINE)
_DIFFUSERS_NAME: dict[Prediction, str] = {"velocity": "v_prediction", "epsilon": "epsilon"}
EULER, FLOW_SOLVER = "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"
"""Schedulers of diffusers that sample as we do; of a flow one that SDXL's pipelines can drive, as its Euler is not."""
_FLOW_SETTINGS = ("invert_sigmas", "shift_terminal", "use_dynamic_shifting")
"""Settings of diffusers' flow schedulers that bend the line in ways that SDXL has not."""
DECISIONS: dict[str, tuple[Prediction, bool]] = {
    "v-ztsnr": ("velocity", True),
    "v": ("velocity", False),
    "epsilon": ("epsilon", False),
    "flow": ("flow", True),
}
"""Answers of `inspect --fix --as` and `merge --as`: the prediction, and whether the schedule ends in pure noise."""


@dataclass(frozen=True)
class Schedule:
    """The noise schedule as plain numbers, and what the network predicts on it."""

    prediction: Prediction = "velocity"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000
    zero_terminal: bool = True
    """Always so of a flow, which has no betas."""
    shift: float = 1.0
    """Of a flow: what multiplies sigma / alpha."""


@dataclass(frozen=True)
class Record:
    """The record of how a checkpoint was trained. Empty fields were not recorded."""

    schedule: Schedule = field(default_factory=Schedule)
    weighting: dict[str, str | float] = field(default_factory=dict[str, str | float])
    caption_dropout: float | None = None
    images_seen: int = 0
    parents: tuple[str, ...] = ()
    licence: str | None = None
    native_pixels: int | None = None
    merges: tuple[Merge, ...] = ()
    """Merges that it, or what it began from, came out of; oldest first."""

    def side(self, latent: object, factor: int) -> int:
        """The side of the square image that the model was trained on, in pixels.

        Where it was not recorded, that of a UNet with this `sample_size`, which may be nothing: then SDXL's.
        UserError for one that no model is trained on.
        """
        side = self.native_pixels or factor * (latent if isinstance(latent, int) and latent > 0 else 128)
        if side > PIXELS:
            raise UserError(
                f"The model says that it was trained on images of {show_value(side)} pixels (sample_size is "
                f"{show_value(latent)}, a latent stands for {factor} pixels)",
                rule=f"Such a side is at most {PIXELS}",
                fix="Correct sample_size in the UNet's config.json",
            )
        return side


def noise_schedule(stored: Schedule) -> NoiseSchedule:
    """The alpha and sigma tables of a stored schedule."""
    if stored.prediction == "flow":
        return NoiseSchedule.rectified_flow(stored.timesteps, stored.shift)
    schedule = NoiseSchedule.scaled_linear(stored.beta_start, stored.beta_end, stored.timesteps)
    return schedule.with_zero_terminal_snr() if stored.zero_terminal else schedule


def load_record(folder: Path) -> Record:
    """The record of a model folder; the scheduler's file wins over anything else about the schedule."""
    schedule = _read_schedule(folder / "scheduler" / "scheduler_config.json")
    path = folder / "terminus.json"
    record = parse_record(read_json(path), schedule, str(path)) if path.is_file() else Record(schedule=schedule)
    return record if record.licence is not None else replace(record, licence=card_licence(folder / "README.md"))


def card_licence(card: Path) -> str | None:
    """The licence in the front matter of a model card as the Hub writes them; its name where it is "other"."""
    if not card.is_file():
        return None
    try:
        with card.open(encoding="utf-8") as file:
            matter = re.match(r"---\n(.*?)\n---\n", file.read(_LONGEST_CARD), re.DOTALL)
    except (OSError, UnicodeDecodeError):
        return None
    said: dict[str, str] = dict(_LICENCE_LINE.findall(matter[1])) if matter else {}
    stated = said.get("license")
    if stated == "other":
        return said.get("license_name", stated)
    return stated


def parse_record(stored: dict[str, Any], schedule: Schedule, where: str) -> Record:
    """The content of a `terminus.json`, its schedule replaced by `schedule`."""
    try:
        return Record(
            schedule=schedule,
            weighting={str(key): value for key, value in stored.get("weighting", {}).items()},
            caption_dropout=_number(stored.get("caption_dropout"), float),
            images_seen=int(stored.get("images_seen", 0)),
            parents=tuple(str(parent) for parent in stored.get("parents", [])),
            licence=None if stored.get("licence") is None else str(stored["licence"]),
            native_pixels=_pixels(_number(stored.get("native_pixels"), int)),
            merges=parse_merges(stored.get("merges", [])),
        )
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"This record is not readable ({error})", where=where) from error


def _number(stored: object, kind: Callable[[Any], Number]) -> Number | None:
    # true would count as 1, and text that looks like a number as that number.
    if isinstance(stored, bool | str):
        raise ValueError(f"{stored!r} is not a number")
    return None if stored is None else kind(stored)


def _pixels(side: int | None) -> int | None:
    if side is not None and not 8 <= side <= PIXELS:
        raise ValueError(f"native_pixels is {show_value(side)}, and is from 8 to {PIXELS}")
    return side


def save_record(record: Record, folder: Path) -> None:
    """Writes `terminus.json` and the scheduler configuration that makes diffusers sample as we do."""
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(record.schedule))
    write_json(folder / "terminus.json", record_json(record))


def record_json(record: Record) -> dict[str, Any]:
    """The content of `terminus.json`. One without merges has no place for them, as before there were any."""
    content = asdict(record) | {"schedule": schedule_json(record.schedule)}
    if not record.merges:
        del content["merges"]
    return content


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """A record's schedule. One that is no flow's has no shift, as before there were flows: records keep their bytes."""
    content = asdict(schedule)
    if schedule.prediction != "flow":
        del content["shift"]
    return content


def scheduler_config(schedule: Schedule) -> dict[str, Any]:
    """The configuration of this schedule in a diffusers folder."""
    if schedule.prediction == "flow":
        return _flow_config(schedule)
    return {
        "_class_name": EULER,
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": schedule.timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": _DIFFUSERS_NAME[schedule.prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal,
        "timestep_spacing": "trailing",
        # Euler ignores this; DDIM and DDPM made from this file would clip x0 to [-1, 1] without it.
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "use_karras_sigmas": False,
        "interpolation_type": "linear",
        "final_sigmas_type": "zero",
    }


def _flow_config(schedule: Schedule) -> dict[str, Any]:
    return {
        "_class_name": FLOW_SOLVER,
        "_diffusers_version": "0.42.1",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "num_train_timesteps": schedule.timesteps,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": schedule.shift,
        "timestep_spacing": "trailing",
        "final_sigmas_type": "zero",
    }


def scheduler_class(schedule: Schedule) -> tuple[str, str]:
    """Library and class of the scheduler that `scheduler_config` is for, as `model_index.json` names it."""
    return "diffusers", FLOW_SOLVER if schedule.prediction == "flow" else EULER


def _read_schedule(path: Path) -> Schedule:
    return parse_schedule(read_json(path), str(path))


def parse_schedule(config: dict[str, Any], where: str) -> Schedule:
    """The schedule that a diffusers scheduler configuration describes."""
    if _describes_flow(config):
        return _parse_flow(config, where)
    names: dict[str, Prediction] = {name: key for key, name in _DIFFUSERS_NAME.items()}
    prediction = config.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in names:
        raise UserError(
            f"prediction_type is {prediction!r:.80}", where=where, rule=f"Known: {', '.join(sorted(names))}"
        )
    if config.get("trained_betas") is not None or config.get("beta_schedule", "scaled_linear") != "scaled_linear":
        raise UserError("Only the scaled_linear schedule of SDXL is known", where=where)
    try:
        # Text, "false" among it, would count as true.
        if not isinstance(config.get("rescale_betas_zero_snr"), bool | None):
            raise ValueError(f"rescale_betas_zero_snr is {config['rescale_betas_zero_snr']!r:.40}, not true or false")
        schedule = Schedule(
            prediction=names[prediction],
            beta_start=float(config.get("beta_start", 0.00085)),
            beta_end=float(config.get("beta_end", 0.012)),
            timesteps=int(config.get("num_train_timesteps", 1000)),
            zero_terminal=config.get("rescale_betas_zero_snr", False) is True,
        )
        if not (0 < schedule.beta_start <= schedule.beta_end < 1 and 2 <= schedule.timesteps <= TIMESTEPS):
            raise ValueError(f"{schedule.timesteps} betas from {schedule.beta_start} to {schedule.beta_end}")
        return schedule
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"This schedule is not readable ({error})", where=where) from error


def _describes_flow(config: Mapping[str, Any]) -> bool:
    """By the schedulers that are for nothing else, by the settings of those that do both, or by our own word."""
    own = str(config.get("_class_name", "")).startswith("FlowMatch")
    return own or config.get("use_flow_sigmas") is True or config.get("prediction_type") in ("flow_prediction", "flow")


def _parse_flow(config: Mapping[str, Any], where: str) -> Schedule:
    bent = [name for name in _FLOW_SETTINGS if config.get(name)]
    if bent:
        raise UserError(
            f"This rectified flow has {bent[0]}", where=where, rule="Known is a line with one shift, as `shift` says it"
        )
    try:
        shift = float(config.get("shift", config.get("flow_shift", 1.0)))
        schedule = Schedule("flow", timesteps=int(config.get("num_train_timesteps", 1000)), shift=shift)
        if not (SHIFTS[0] <= shift <= SHIFTS[1] and 2 <= schedule.timesteps <= TIMESTEPS):
            raise ValueError(f"{schedule.timesteps} timesteps with a shift of {shift}")
        return schedule
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"This schedule is not readable ({error})", where=where) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Sorted and indented, so that equal content is equal bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
