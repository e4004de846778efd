"""Detection of how a checkpoint was trained: velocity or epsilon, zero terminal SNR or not, and how we know.

No file format has one place for the two facts, so every tool looks elsewhere. All the places are read here, in one
order; the first that speaks decides each fact, and a later one that says otherwise is a conflict, which is named and
not resolved in silence: the wrong answer gives noise or grey images, with no error anywhere.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from terminus.config.errors import Origin
from terminus.config.source import parse_yaml, plain_tree
from terminus.errors import UserError
from terminus.model.header import Header, read_header, read_numbers
from terminus.model.limits import SIDE_CAR_BYTES
from terminus.model.record import Prediction, Schedule, load_record, parse_schedule
from terminus.model.weights import model_name, parse_json, read_json

log = logging.getLogger("terminus")

SCHEDULER, OURS = "scheduler/scheduler_config.json", "metadata terminus"
MARKERS, FILE_NAME, DEFAULT = "marker tensors", "file name", "default"
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_ZERO, _LEAKY = 1e-6, 1e-3
"""The last alphas_cumprod: 0 to 1e-6 is noise to every tool (4.9e-8 is usual); plain SDXL ends at 4.7e-3."""
_NAMES: dict[str, Prediction] = {
    "v_prediction": "velocity",
    "v": "velocity",
    "v-zsnr": "velocity",
    "v_pred": "velocity",
    "v-pred": "velocity",
    "vpred": "velocity",
    "epsilon": "epsilon",
    "eps": "epsilon",
    "flow": "flow",
    "rectified_flow": "flow",
    "flow_matching": "flow",
    "flow_prediction": "flow",
}
PROJECTION = "conditioner.embedders.1.model.text_projection"
_ONE_TRAINER: tuple[tuple[str, Prediction, bool | None], ...] = (
    ("rescale_noise_scheduler_to_zero_terminal_snr", "velocity", True),
    ("force_v_prediction", "velocity", None),
    ("force_epsilon_prediction", "epsilon", None),
)
"""OneTrainer's settings in the order in which it obeys them: the first that is on, and what it makes of a model."""


@dataclass(frozen=True)
class Evidence:
    """One place that was read. None where it does not speak of a fact."""

    source: str
    says: str
    prediction: Prediction | None = None
    zero_terminal: bool | None = None
    warning: bool = False
    """Worth a warning, whatever else is said."""


@dataclass(frozen=True)
class Detection:
    """The schedule to sample with, and why."""

    schedule: Schedule
    evidence: tuple[Evidence, ...]
    """In the order in which they count."""
    conflicts: tuple[str, ...]


def detect(source: Path | Header) -> Detection:
    """The schedule of a diffusers folder or a single safetensors file (or its header); conflicts are also logged.

    UserError for a file that is no safetensors file, for models on another noise process (EDM), and for epsilon on a
    schedule that ends in pure noise, which no sampler can use.
    """
    path = source if isinstance(source, Path) else source.path
    detection = weigh(*read_evidence(source))
    for conflict in detection.conflicts:
        log.warning("%s: %s", ascii(path.name)[1:-1], conflict)
    schedule = detection.schedule
    # Velocity was said somewhere, and nowhere whether the SNR ends at 0.
    assumed = any(e.source == DEFAULT and not e.prediction for e in detection.evidence)
    if schedule.prediction == "velocity" and assumed:
        log.warning("%s: velocity prediction, and nothing says whether at zero terminal SNR; taken for none "
                    "(`terminus inspect --probe` asks the network)", ascii(path.name)[1:-1])  # fmt: skip
    if schedule.prediction == "epsilon" and schedule.zero_terminal:
        raise _impossible(detection, path)
    return detection


def _impossible(detection: Detection, path: Path) -> UserError:
    said = "; ".join(f"{e.source} says {e.says}" for e in detection.evidence if e.prediction or e.zero_terminal)
    return UserError(
        f"Epsilon prediction on a schedule with zero terminal SNR ({said})",
        where=str(path),
        rule="At the last step the image would be divided by an SNR of 0, so no such model exists",
        fix="If it predicts velocity, correct its labels: `terminus inspect FILE --fix TARGET --as v-ztsnr`",
    )


def weigh(evidence: Iterable[Evidence], schedule: Schedule | None = None) -> Detection:
    """The decision: the first evidence that speaks of a fact decides it. `schedule` has all other numbers."""
    found = list(dict.fromkeys(evidence))
    # What nobody says is as in SDXL base.
    if all(e.prediction is None for e in found):
        found.append(Evidence(DEFAULT, "epsilon, as SDXL base", prediction="epsilon"))
    if all(e.zero_terminal is None for e in found):
        found.append(Evidence(DEFAULT, "no zero terminal SNR, as SDXL base", zero_terminal=False))
    # The first that speaks of a fact decides; those that contradict it are told.
    conflicts: list[str] = []
    prediction = _first(found, "prediction", conflicts)
    zero_terminal = _first(found, "zero_terminal", conflicts)
    # A flow ends in pure noise, whatever else is said.
    zero_terminal = zero_terminal or prediction == "flow"
    decided = replace(schedule or Schedule(), prediction=prediction, zero_terminal=zero_terminal)
    named_rightly = prediction == "flow"
    conflicts += [
        f"{e.source} says {e.says}" for e in found if e.warning and not (named_rightly and e.source == FILE_NAME)
    ]
    return Detection(decided, tuple(found), tuple(conflicts))


def _first(evidence: Iterable[Evidence], fact: str, conflicts: list[str]) -> Any:
    speaking = [e for e in evidence if getattr(e, fact) is not None]
    first = speaking[0]
    for other in speaking[1:]:
        if getattr(other, fact) != getattr(first, fact):
            conflicts.append(f"{first.source} says {first.says}, {other.source} says {other.says}; the first counts")
    return getattr(first, fact)


def read_evidence(source: Path | Header) -> tuple[list[Evidence], Schedule | None]:
    """All that a folder or file says, in the order in which it counts, and the schedule's numbers where recorded."""
    if isinstance(source, Path) and source.is_dir():
        return _folder(source)
    header = read_header(source) if isinstance(source, Path) else source
    path = header.path
    refuse_edm(header.tensors.keys(), path)
    # In the order in which they count: ours, markers, other programs' metadata, the table, name and side-car.
    ours, schedule = _our_metadata(header)
    found = [*ours, *marker_evidence(header.tensors.keys()), *metadata_evidence(header.metadata), *_table(header)]
    evidence = [*found, *file_name(path.stem), *_side_car(path), *_projection(header)]
    return evidence, _marked_shift(header) if schedule is None else schedule


def _marked_shift(header: Header) -> Schedule | None:
    """The schedule with the shift that the tensor `rectified_flow` holds; None where there is no such number."""
    if "rectified_flow" not in header.tensors:
        return None
    numbers = read_numbers(header, "rectified_flow")
    try:
        return parse_schedule({"prediction_type": "flow", "shift": numbers.item()}, MARKERS)
    except (UserError, ValueError):
        return None


def _folder(folder: Path) -> tuple[list[Evidence], Schedule | None]:
    found: list[Evidence] = []
    schedule: Schedule | None = None
    # The scheduler's file comes first, then our record, which repeats it.
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        schedule = load_record(folder).schedule
        found.append(_of_schedule(SCHEDULER, schedule))
    found += _our_record(folder / "terminus.json")
    # Then labels in the UNet's own files.
    for path in sorted((folder / "unet").glob("*.safetensors")):
        header = read_header(path)
        refuse_edm(header.tensors.keys(), path)
        found += marker_evidence(header.tensors.keys(), f"{MARKERS} in unet/")
        found += metadata_evidence(header.metadata)
    return [*found, *file_name(model_name(folder))], schedule


def _of_schedule(source: str, schedule: Schedule) -> Evidence:
    terminal = "zero terminal SNR" if schedule.zero_terminal else "no zero terminal SNR"
    if schedule.prediction == "flow":
        terminal = f"shift {schedule.shift:g}"
    return Evidence(source, f"{schedule.prediction}, {terminal}", schedule.prediction, schedule.zero_terminal)


def _our_record(path: Path) -> list[Evidence]:
    """`terminus.json` repeats the schedule; it is only compared, never believed before the scheduler's file."""
    try:
        schedule = _schedule(read_json(path), path.name) if path.is_file() else None
    except UserError:
        return []  # `load_record` says it better
    return [] if schedule is None else [_of_schedule(path.name, schedule)]


def _our_metadata(header: Header) -> tuple[list[Evidence], Schedule | None]:
    stored = header.metadata.get("terminus")
    if stored is None:
        return [], None
    try:
        schedule = _schedule(parse_json(stored, OURS), OURS)
    except UserError:
        return [Evidence(OURS, "nothing readable", warning=True)], None
    return ([] if schedule is None else [_of_schedule(OURS, schedule)]), schedule


def _schedule(content: Mapping[str, Any], where: str) -> Schedule | None:
    """The schedule in a record's JSON: diffusers' configuration under "scheduler", or ours under "schedule"."""
    config, schedule = content.get("scheduler"), content.get("schedule")
    if isinstance(config, dict):
        return parse_schedule(cast(dict[str, Any], config), where)
    if not isinstance(schedule, dict):
        return None
    ours = cast(dict[str, Any], schedule)
    # Our names, as diffusers calls them.
    names = {
        "prediction": "prediction_type",
        "timesteps": "num_train_timesteps",
        "zero_terminal": "rescale_betas_zero_snr",
    }
    config = {names.get(key, key): value for key, value in ours.items()}
    if config.get("prediction_type") == "velocity":
        config["prediction_type"] = "v_prediction"
    if not isinstance(config.get("prediction_type", ""), str):
        raise UserError("The prediction is no text", where=where)
    return parse_schedule(config, where)


def refuse_edm(names: Set[str], path: Path) -> None:
    """UserError if tensors mark a model of the EDM family (CosXL, Playground v2.5)."""
    found = sorted(name for name in names if name in _EDM)
    if found:
        raise UserError(
            f"This is an EDM model, as CosXL and Playground v2.5 are: it holds the marker {found[0]}",
            where=str(path),
            rule="Such models have another noise process and another input scale, which Terminus does not sample",
            fix="Use ComfyUI or diffusers for it",
        )


def marker_evidence(names: Set[str], source: str = MARKERS) -> list[Evidence]:
    """The tensors `v_pred` and `ztsnr`, mostly empty (NoobAI, ComfyUI). Absent, they say nothing: few write them.

    `rectified_flow` is ours alone.
    """
    if "rectified_flow" in names:
        return [Evidence(source, "rectified_flow", "flow", True)]
    found = [name for name in ("v_pred", "ztsnr") if name in names]
    if not found:
        return []
    velocity, zero = "v_pred" in found, "ztsnr" in found
    return [Evidence(source, " and ".join(found), "velocity" if velocity else None, True if zero else None)]


def metadata_evidence(stored: Mapping[str, str]) -> list[Evidence]:
    """ModelSpec, ComfyUI's `predict_key` and kohya's `ss_*`. ModelSpec's `v` cannot tell whether the SNR ends at 0."""
    return [*_spec_evidence(stored), *_kohya_evidence(stored), *one_trainer_config(stored)]


def _spec_evidence(stored: Mapping[str, str]) -> Iterator[Evidence]:
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        value = stored.get(key)
        if value is not None:
            name = value.strip().lower()
            zero, known = True if name == "v-zsnr" or _NAMES.get(name) == "flow" else None, name in _NAMES
            says = ascii(value)[1:-1][:60] + ("" if known else ", which is not known")
            yield Evidence(f"metadata {key}", says, _NAMES.get(name), zero, warning=not known)


def _kohya_evidence(stored: Mapping[str, str]) -> Iterator[Evidence]:
    velocity, zero = (_flag(stored, key) for key in ("ss_v_parameterization", "ss_zero_terminal_snr"))
    if velocity is not None:
        yield Evidence("metadata ss_v_parameterization", str(velocity), "velocity" if velocity else "epsilon")
    if zero is not None:
        yield Evidence("metadata ss_zero_terminal_snr", str(zero), None, zero)


def _flag(stored: Mapping[str, str], key: str) -> bool | None:
    flags = {"true": True, "1": True, "false": False, "0": False}
    return flags.get(stored.get(key, "").strip().lower())


def one_trainer_config(stored: Mapping[str, str]) -> list[Evidence]:
    """OneTrainer's settings, where it keeps them: its adapters have no other word on zero terminal SNR.

    A setting that is off says nothing, since the schedule is then that of the model it started from.
    """
    source = "metadata ot_config"
    if "ot_config" not in stored:
        return []
    try:
        config = parse_json(stored["ot_config"], source)
    except UserError:
        return [Evidence(source, "nothing readable", warning=True)]
    for key, prediction, zero in _ONE_TRAINER:
        if config.get(key) is True:
            return [Evidence(source, key, prediction, zero)]
    return []


def _projection(header: Header) -> list[Evidence]:
    """A warning of OneTrainer's single files, which hold a matrix as transformers has it and all others transposed.

    It is square, and which way it stands cannot be seen: a file made from such a file is right again.
    """
    revision = header.metadata.get("ot_revision")
    if revision is None or PROJECTION not in header.tensors:
        return []
    says = (
        f"OneTrainer {ascii(revision)[1:-1][:40]}, which writes the second text encoder's text_projection transposed; "
        "it is read as it stands, as in other programs (OneTrainer's diffusers folder has it right)"
    )
    return [Evidence("metadata ot_revision", says, warning=True)]


def _table(header: Header) -> list[Evidence]:
    """The tensor `alphas_cumprod` that OneTrainer and Terminus write, and stable-diffusion.cpp uses."""
    name = "alphas_cumprod"
    if name not in header.tensors:
        return []
    numbers = read_numbers(header, name)
    last = float(numbers[-1]) if numbers.size else float("nan")
    # What lies between the two is no evidence.
    zero: bool | None = None
    if 0 <= last <= _ZERO:
        zero = True
    elif _LEAKY <= last < 1:
        zero = False
    return [Evidence(name, f"its last value is {last:.3g}", None, zero)]


def file_name(stem: str) -> Iterator[Evidence]:
    """Evidence that people, and SD.Next, read from a name without its ending."""
    name = stem.lower()
    velocity = re.search(r"v[-_ ]?pred", name)
    zero = re.search(r"z(?:ero[-_ ]?)?t?(?:erminal[-_ ]?)?snr", name)
    if velocity or zero:
        said = " and ".join(match.group() for match in (velocity, zero) if match)
        yield Evidence(FILE_NAME, said, "velocity" if velocity else None, True if zero else None)
    # Two models and a term that is nothing else; the bare word stands in names of other models as well.
    certain = re.search(r"rectified[-_ ]?flow|bigaspv25|noobai-rf", name)
    flow = re.search(r"flow(?!er)", name)
    if certain:
        yield Evidence(FILE_NAME, certain.group(), "flow", True)
    elif flow:
        says = "flow, which other tools take for flow matching; Terminus does only where a label says so"
        yield Evidence(FILE_NAME, says, warning=True)


def _side_car(path: Path) -> Iterator[Evidence]:
    """`<stem>.yaml` beside a file, in the form of Stability's configurations."""
    side_car = path.with_suffix(".yaml")
    if not side_car.is_file():
        return
    source = "side-car .yaml"
    try:
        if side_car.stat().st_size > SIDE_CAR_BYTES:
            yield Evidence(source, f"nothing: it has over {SIDE_CAR_BYTES} bytes", warning=True)
            return
        text = side_car.read_text(encoding="utf-8")
        tree = plain_tree(
            parse_yaml(text, lambda row, column: Origin(f"{side_car.name}:{row + 1}:{column + 1}", "", 0))
        )
    except (UserError, ValueError, OSError) as error:
        yield Evidence(source, f"nothing readable ({type(error).__name__})", warning=True)
        return
    yield from side_car_says(tree, source)


def side_car_says(tree: object, source: str = "side-car .yaml") -> Iterator[Evidence]:
    """The scaling class that it names (never imported), or the `parameterization` of older files."""
    parameters = _at(tree, "model", "params")
    target = _at(parameters, "denoiser_config", "params", "scaling_config", "target")
    scaling = target.rsplit(".", 1)[-1] if isinstance(target, str) else None
    older = _at(parameters, "parameterization")
    if scaling is not None:
        known: dict[str, Prediction] = {"VScaling": "velocity", "EpsScaling": "epsilon"}
        edm = "EDM" in scaling
        note = ", of an EDM model; Terminus does not sample those" if edm else ""
        yield Evidence(source, f"{ascii(scaling)[1:-1][:60]}{note}", known.get(scaling), warning=edm)
    if isinstance(older, str):
        yield Evidence(source, f"parameterization {older!a:.60}", _NAMES.get(older))


def _at(tree: object, *keys: str) -> object:
    for key in keys:
        tree = cast(Mapping[str, object], tree).get(key) if isinstance(tree, Mapping) else None
    return tree
