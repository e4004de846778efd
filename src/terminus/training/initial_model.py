"""The initial model of a diffusion run: a checkpoint that fits the recipe, one that it converts, or random weights.

What trains is what samples, so prediction and schedule are read from the checkpoint. A recipe that wants others must
say that it knows what the checkpoint is (`model.convert_from`): then they change, and the finished model says so.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from terminus.errors import UserError
from terminus.model.architecture import ARCHITECTURES
from terminus.model.components import Components, check_widths, load_components, load_text_encoders, load_vae
from terminus.model.record import Prediction, Record, Schedule
from terminus.model.text_encoders import load_vision
from terminus.model.unet import build_unet
from terminus.model.weights import resolve
from terminus.training.objectives import Diffusion
from terminus.training.recipe import ModelConfig

log = logging.getLogger("terminus")


def begin(model: ModelConfig, objective: Diffusion) -> Components:
    """The networks, on the schedule that the run trains them on."""
    if model.start is None:
        return _from_random(model, objective)
    components = load_components(model.start)
    # What the checkpoint is, and what the recipe wants of it.
    stored = components.record.schedule
    wanted = _trained(objective, stored)
    if model.convert_from is None:
        _agree(model.start, stored, objective)
    else:
        _consent(model.start, stored, wanted, model.convert_from)
        log.info("converting %s: %s becomes %s", model.start, _spoken(stored), _spoken(wanted))
    # The record holds the schedule that is trained, for previews and for the finished model.
    return replace(components, record=replace(components.record, schedule=wanted))


def _from_random(model: ModelConfig, objective: Diffusion) -> Components:
    if model.vae is None or model.text_encoders is None:
        raise UserError(
            "A UNet from random weights needs a VAE and text encoders",
            where="model",
            rule="model.vae and model.text_encoders name the folders they come from when model.start is null",
            fix="Set both, or set model.start",
        )
    if model.convert_from is not None:
        raise UserError(
            f"model.convert_from is {model.convert_from}, and model.start is null",
            where="model",
            rule="Only a checkpoint can be converted",
            fix="Remove model.convert_from, or set model.start",
        )
    # Only the UNet is random; a vision encoder is taken where one lies beside the text encoders.
    text_folder = resolve(model.text_encoders)
    vision = load_vision(text_folder / "vision") if (text_folder / "vision").is_dir() else None
    record = Record(schedule=_trained(objective, Schedule(beta_end=model.beta_end)))
    unet, text = build_unet(ARCHITECTURES[model.architecture]), load_text_encoders(text_folder)
    check_widths(unet, text, model.text_encoders)
    return Components(unet, load_vae(model.vae), text, record, vision)


def _trained(objective: Diffusion, stored: Schedule) -> Schedule:
    """The schedule of the objective: on the betas of `stored`, or a flow, which has none."""
    if objective.prediction == "flow":
        return Schedule("flow", timesteps=stored.timesteps, shift=objective.shift)
    return replace(stored, prediction=objective.prediction, zero_terminal=objective.zero_terminal_snr, shift=1.0)


def _agree(start: str, stored: Schedule, objective: Diffusion) -> None:
    conflicts = [
        f"{name}: the checkpoint says {have}, the recipe says {want}"
        for name, have, want in (
            ("objective.prediction", stored.prediction, objective.prediction),
            ("objective.zero_terminal_snr", stored.zero_terminal, objective.zero_terminal_snr),
            ("objective.shift", stored.shift, objective.shift),
        )
        if have != want
    ]
    if conflicts:
        # Where a conversion could give what the recipe asks for, the error says how.
        wanted = _trained(objective, stored)
        convertible = objective.prediction != "epsilon" and stored == _expected(stored, wanted, stored.prediction)
        convert = f", or set model.convert_from: {stored.prediction} to train it into another" if convertible else ""
        raise UserError(
            f"The recipe and its checkpoint disagree ({'; '.join(conflicts)})",
            where=start,
            rule="Prediction type and schedule come from the checkpoint and are never overridden silently",
            fix=f"Change the recipe to what the checkpoint is, or start from another model{convert}",
        )


def _expected(stored: Schedule, wanted: Schedule, known: Prediction) -> Schedule:
    """What `model.convert_from: known` says that the checkpoint is; on its way to a flow, velocity of either ending."""
    if known == "flow":
        return replace(stored, prediction="flow")
    either = known == "velocity" and wanted.prediction == "flow"
    return replace(stored, prediction=known, zero_terminal=stored.zero_terminal and either, shift=1.0)


def _consent(start: str, stored: Schedule, wanted: Schedule, known: Prediction) -> None:
    """The recipe must know what the checkpoint is, and want something else of it that can be had."""
    expected = _expected(stored, wanted, known)
    if stored != expected:
        raise UserError(
            f"The checkpoint is {_spoken(stored)}, and model.convert_from says {_spoken(expected)}",
            where=start,
            rule="model.convert_from names what the checkpoint is now, and a converted one needs none",
            fix="Remove model.convert_from to go on with a converted model, or correct it",
        )
    if wanted.prediction == "epsilon" or wanted == stored:
        raise UserError(
            f"The checkpoint is {_spoken(stored)}, and the objective is {_spoken(wanted)}",
            where=start,
            rule="model.convert_from asks for a conversion into velocity prediction, zero terminal SNR or a flow",
            fix="Remove model.convert_from, or set objective.prediction: velocity and zero_terminal_snr: true",
        )


def _spoken(schedule: Schedule) -> str:
    if schedule.prediction == "flow":
        return f"a rectified flow of shift {schedule.shift:g}"
    return f"{schedule.prediction} {'with' if schedule.zero_terminal else 'without'} zero terminal SNR"
