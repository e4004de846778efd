"""`terminus inspect --fix`: a copy of a checkpoint in which every label says the same.

Only labels change: markers, metadata, tables, configurations, the side-car. The networks' numbers are copied bit for
bit, in whatever precision and layout they are, so any single file can be corrected, also one that Terminus cannot load.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from terminus.errors import UserError
from terminus.inspection.checkpoint import UNET_IN_FILE, architecture, input_channels, unet_in_file
from terminus.model import modelspec, sdnext
from terminus.model.detect import DEFAULT, Detection, Evidence, file_name, one_trainer_config, read_evidence, weigh
from terminus.model.foreign import sdxl_configs
from terminus.model.header import Header, read_header, read_numbers
from terminus.model.kinds import has_only_ema
from terminus.model.parts import MARKERS, CheckpointParts, ramps
from terminus.model.record import (
    DECISIONS,
    Record,
    Schedule,
    schedule_json,
    scheduler_class,
    scheduler_config,
    write_json,
)
from terminus.model.weights import at_home, parse_json, read_json, read_safetensors, resolve
from terminus.model.writing import DTYPES, HASH, fresh, refuse_existing, write_safetensors

_CLIPPING = ("DDIM", "DDPM")
"""Beginnings of schedulers that clip what they predict unless they are told not to."""
_LABELS = ("v_pred", "ztsnr", "rectified_flow", "alphas_cumprod")


@dataclass(frozen=True)
class Fixed:
    """The corrected copy, and what was wrong before."""

    target: Path
    problems: tuple[str, ...]


def write_fixed_copy(source: str | Path, target: str | Path, decided: str | None = None) -> Fixed:
    """Writes a corrected copy of a model folder or single file to `target`, which must not exist.

    `decided` (one of `DECISIONS`) says what the model is; without it the first evidence counts, as when
    sampling. UserError if nothing is wrong, or if what is wrong cannot be decided without the user.
    """
    # What is to be written, and whether there is anything to correct: all before the copy.
    path, target = resolve(source), at_home(target)
    if path.is_file() and not _is_checkpoint(read_header(path)):
        raise UserError(
            "This file holds no UNet in the layout of single files", where=str(path),
            rule="Labels that say how to sample belong to models, not to adapters or single networks",
        )  # fmt: skip
    evidence, numbers = read_evidence(path)
    schedule = _decide(weigh(evidence, numbers), decided, path)
    _check_target(path, target, schedule)
    problems = tuple(_problems(path, evidence, schedule))
    if not problems:
        raise UserError(
            "Nothing is wrong with this checkpoint's labels", where=str(path), rule="A copy would be the same",
            fix="Give `--as` if the labels agree with each other but not with the model",
        )  # fmt: skip
    # The copy appears as a whole, or not at all.
    with fresh(target) as draft:
        if path.is_dir():
            _fix_folder(path, draft, schedule)
        else:
            _fix_file(read_header(path), draft, schedule)
            text = _side_car(path, schedule)
            if text is not None:
                with fresh(target.with_suffix(".yaml")) as beside:
                    beside.write_text(text, encoding="utf-8")
    # SD.Next decides by the file's size and path, so what it will take the copy for is known only now.
    if path.is_file():
        unet = unet_in_file(read_header(target))
        sdnext.warn(target, schedule, input_channels(unet), architecture(unet) == "SDXL")
    return Fixed(target, problems)


def _is_checkpoint(header: Header) -> bool:
    return UNET_IN_FILE in header.tensors or has_only_ema(header)


def _decide(detection: Detection, decided: str | None, path: Path) -> Schedule:
    # The user's word counts more than every label.
    found = detection.schedule
    if decided is not None:
        if decided not in DECISIONS:
            raise UserError(f"A model cannot be {decided!r:.60}", rule=f"Known: {', '.join(DECISIONS)}")
        prediction, zero_terminal = DECISIONS[decided]
        return replace(found, prediction=prediction, zero_terminal=zero_terminal)
    # Labels that cannot all be right, or do not say enough, are not decided here.
    if found.prediction == "epsilon" and found.zero_terminal:
        raise UserError(
            "Its labels say epsilon prediction at zero terminal SNR, which no model can have",
            where=str(path), fix="Say what it is: `--as v-ztsnr`, or `--as epsilon` for the schedule of SDXL base",
        )  # fmt: skip
    assumed = any(e.source == DEFAULT and not e.prediction for e in detection.evidence)
    if found.prediction == "velocity" and assumed:
        raise UserError(
            "Nothing says whether this velocity model has zero terminal SNR", where=str(path),
            rule="A label that is not known is not made up",
            fix="Find out with `--probe`, and give the answer: `--as v-ztsnr` or `--as v`",
        )  # fmt: skip
    return found


def _check_target(path: Path, target: Path, schedule: Schedule) -> None:
    # Kind and place of the copy.
    if path.is_file() != (target.suffix == ".safetensors"):
        kind = "a .safetensors file" if path.is_file() else "a folder"
        raise UserError(f"The corrected copy of this is {kind}", where=str(target), fix="`terminus convert` changes it")
    if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
        raise UserError("The copy would lie inside the model", where=str(target), fix="Name another folder")
    if path.is_file():
        refuse_existing(target.with_suffix(".yaml"))
        sdnext.check_name(target, schedule)
    # People and SD.Next read the name of the file as well.
    wrong = _disagreeing(file_name(target.stem), schedule)
    if wrong:
        raise UserError(
            f"The name of the copy would contradict its content: it says {wrong[0].says}",
            where=str(target), fix="Choose another name",
        )  # fmt: skip


def _disagreeing(evidence: Iterator[Evidence] | list[Evidence], schedule: Schedule) -> list[Evidence]:
    return [
        e for e in evidence
        if e.prediction not in (None, schedule.prediction) or e.zero_terminal not in (None, schedule.zero_terminal)
    ]  # fmt: skip


def _problems(path: Path, evidence: list[Evidence], schedule: Schedule) -> Iterator[str]:
    """One line for each label that is wrong, missing or harmful."""
    # Labels that contradict the schedule, and what is dangerous whatever they say.
    terminal = f"{'' if schedule.zero_terminal else 'no '}zero terminal SNR"
    right = "flow" if schedule.prediction == "flow" else f"{schedule.prediction}, {terminal}"
    yield from (f"{e.source} says {e.says}; right is {right}" for e in _disagreeing(evidence, schedule))
    yield from (f"{e.source} says {e.says}" for e in evidence if e.warning and e.source != "file name")
    if path.is_dir():
        yield from _scheduler_problems(read_json(path / "scheduler" / "scheduler_config.json"), schedule)
    else:
        yield from _file_problems(read_header(path), schedule)


def _scheduler_problems(config: Mapping[str, Any], schedule: Schedule) -> Iterator[str]:
    # "linspace" is the default of diffusers' Euler scheduler.
    spacing = config.get("timestep_spacing", "linspace")
    if schedule.zero_terminal and spacing != "trailing" and schedule.prediction != "flow":
        yield f"the spacing is {ascii(spacing)[:40]}, which never sees the last timestep; right is trailing"
    if schedule.zero_terminal:
        yield from (f"{name} is set, which wastes the first steps; right is false" for name in ramps(config))
    if str(config.get("_class_name")).startswith(_CLIPPING) and config.get("clip_sample", True):
        yield "clip_sample is true, which cuts latents at 1; right is false"


def _file_problems(header: Header, schedule: Schedule) -> Iterator[str]:
    yield from _marker_problems(header, schedule)
    # Metadata, table of alphas and side-car must say the same as the markers.
    stated = header.metadata.get("modelspec.prediction_type")
    right = modelspec.prediction_type(schedule)
    if schedule.prediction != "epsilon" and stated != right:
        yield f"modelspec.prediction_type is {ascii(stated)[:60]}; right is {right}"
    if not _table_fits(header, schedule):
        yield "alphas_cumprod is not the table of this schedule"
    if _side_car(header.path, schedule) is not None and not header.path.with_suffix(".yaml").is_file():
        yield "the configuration .yaml beside it is missing"


def _marker_problems(header: Header, schedule: Schedule) -> Iterator[str]:
    # A plain epsilon model needs no markers: it is what every program takes an SDXL file for.
    if schedule != Schedule("epsilon", zero_terminal=False):
        wanted = modelspec.marker_tensors(schedule)
        yield from (f"the tensor {name} is missing" for name in wanted if name not in header.tensors)
    for name in MARKERS:
        if name in header.tensors and 0 in header.tensors[name].shape:
            yield f"the tensor {name} is empty, which crashes stable-diffusion.cpp when it writes GGUF"


def _table_fits(header: Header, schedule: Schedule) -> bool:
    """Whether the file's table of alphas_cumprod, if it has one, is that of the schedule."""
    wanted = modelspec.marker_tensors(schedule).get("alphas_cumprod")
    if wanted is None or "alphas_cumprod" not in header.tensors:
        return True
    # Loosely: rounded to half precision it is the same table.
    stored, table = read_numbers(header, "alphas_cumprod"), wanted.double().numpy()
    return stored.shape == table.shape and np.allclose(stored, table, rtol=1e-2, atol=1e-7)


def _relabelled(stored: Mapping[str, str], schedule: Schedule, where: str) -> dict[str, str]:
    """Metadata with true statements about the schedule, and everything else as it was."""
    # Statements of the trainers' and of ModelSpec; the hash is computed again when the file is written.
    metadata = {key: value for key, value in stored.items() if key != "ss_v_parameterization"}
    metadata |= {
        "modelspec.prediction_type": modelspec.prediction_type(schedule),
        "modelspec.predict_key": modelspec.predict_key(schedule),
        "ss_zero_terminal_snr": str(schedule.zero_terminal),
        HASH: "",
    }
    if schedule.prediction == "flow":
        del metadata["ss_zero_terminal_snr"]  # kohya's keys have no word for a flow
    if _disagreeing(one_trainer_config(stored), schedule):
        del metadata["ot_config"]  # OneTrainer's settings, which no longer describe the file
    # Our own record, of which only the schedule changes.
    if "terminus" not in stored:
        return metadata
    try:
        ours = parse_json(stored["terminus"], where)
    except UserError:
        del metadata["terminus"]  # it was not readable, and nothing else of it could be kept
        return metadata
    ours["scheduler"] = scheduler_config(schedule)
    ours.pop("schedule", None)
    if isinstance(ours.get("record"), dict):
        ours["record"] = cast(dict[str, Any], ours["record"]) | {"schedule": schedule_json(schedule)}
    metadata["terminus"] = json.dumps(ours, sort_keys=True)
    return metadata


def _fix_file(header: Header, target: Path, schedule: Schedule) -> None:
    names = [name for name in header.tensors if name not in _LABELS]
    metadata = _relabelled(header.metadata, schedule, str(header.path))
    write_safetensors(target, _tensors(header, names) | modelspec.marker_tensors(schedule), metadata)


def _tensors(header: Header, names: list[str]) -> dict[str, Tensor]:
    odd = sorted({header.tensors[name].dtype for name in names} - set(DTYPES.values()))
    if odd:
        raise UserError(f"Tensors of the dtype {odd[0]} cannot be written", where=str(header.path))
    return read_safetensors(header.path, names)


def _side_car(path: Path, schedule: Schedule) -> str | None:
    # For other architectures there is no program that would read one.
    header = read_header(path)
    unet = unet_in_file(header)
    if architecture(unet) != "SDXL":
        return None
    configs = sdxl_configs(input_channels(unet))
    parts = CheckpointParts(
        where=str(path), title=path.stem, tensors={}, configs=configs, vocabularies={},
        record=Record(schedule=schedule), index={}, scheduler={}, special_tokens={},
    )  # fmt: skip
    return modelspec.side_car(parts) if modelspec.needs_side_car(parts) else None


def _fix_folder(source: Path, target: Path, schedule: Schedule) -> None:
    # Everything as it is, then the four places that name the schedule.
    _copy_folder(source, target)
    write_json(target / "scheduler" / "scheduler_config.json", scheduler_config(schedule))
    index = target / "model_index.json"
    if index.is_file():
        write_json(index, read_json(index) | {"scheduler": list(scheduler_class(schedule))})
    ours = target / "terminus.json"
    if ours.is_file():
        write_json(ours, read_json(ours) | {"schedule": schedule_json(schedule)})
    for path in sorted((target / "unet").glob("*.safetensors")):
        _fix_unet_file(path, schedule)


def _copy_folder(source: Path, target: Path) -> None:
    """Copies the whole folder, links followed, so that the copy stands alone."""
    try:
        shutil.copytree(source, target, copy_function=shutil.copyfile)  # the owner's to change, whatever the source was
    except shutil.Error as error:
        raise UserError(f"This cannot be copied ({error.args[0][0][-1]})", where=str(source)) from error
    # Folders keep their modes when they are copied, and in a read-only one no file could be replaced.
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(folder.stat().st_mode | stat.S_IRWXU)


def _fix_unet_file(path: Path, schedule: Schedule) -> None:
    """Rewrites one file of the UNet if it holds labels."""
    header = read_header(path)
    labelled = any(name in _LABELS for name in header.tensors)
    if not labelled and not any(key.startswith(("modelspec.pre", "ss_")) for key in header.metadata):
        return
    tensors = _tensors(header, [name for name in header.tensors if name not in _LABELS])
    if labelled:
        # The table is left out: nobody looks for it here, and loaders would take it for a weight.
        markers = modelspec.marker_tensors(schedule)
        tensors |= {name: markers[name] for name in MARKERS if name in markers}
    # Under another name first: the tensors are still read from the file that it replaces.
    draft = path.with_suffix(".new")
    write_safetensors(draft, tensors, _relabelled(header.metadata, schedule, str(path)))
    draft.replace(path)
