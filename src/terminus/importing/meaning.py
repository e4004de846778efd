"""Settings that several trainers name differently and mean alike: objective, learning rate, optimizer, length.

Steps become images here, and what a trainer would do where it does not say so is written down.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from terminus.importing.reading import Keys, Sourced, shown
from terminus.importing.recipe import Draft

EPSILON_BASES = ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-0.9")
"""Hub ids of models that everybody starts from and that predict noise."""


@dataclass(frozen=True)
class GlobalBatch:
    """Images per optimizer step."""

    micro: Sourced[int]
    accumulation: Sourced[int]

    @property
    def images(self) -> int:
        """On one process, which is all that a settings file knows of; at least 1."""
        return max(1, self.micro.value) * max(1, self.accumulation.value)


def batch(draft: Draft, size: GlobalBatch) -> None:
    """How many images make a step."""
    draft.set("training.micro_batch", size.micro.value, size.micro.origin)
    draft.set("training.accumulation", size.accumulation.value, size.accumulation.origin)
    draft.notes.append(
        f"Steps are counted here as images, {size.images} a step. On several processes that trainer saw so many on "
        "each; "
        "training.accumulation is over all of them: multiply it, and whatever counts images, by their number."
    )


def length_in_images(draft: Draft, setting: str, steps: Sourced[int] | None, size: GlobalBatch) -> None:
    """A number of optimizer steps as a number of images."""
    if steps is not None:
        draft.set(setting, steps.value * size.images, f"{steps.origin}, times {size.images} images")


def objective(draft: Draft, velocity: Sourced[bool], terminal: Sourced[bool], gamma: Sourced[float] | None) -> None:
    """Prediction, schedule and min-SNR, in the form that the trainers of today have."""
    # What is predicted, and whether the schedule ends in pure noise.
    draft.set("objective.prediction", "velocity" if velocity.value else "epsilon", velocity.origin)
    # No such model exists, so the recipe would be refused: one of the two has to go.
    if terminal.value and not velocity.value:
        draft.set("objective.zero_terminal_snr", False, f"{terminal.origin}: cannot be had with epsilon, see below")
        draft.notes.append(
            f"{terminal.origin} with epsilon prediction ({velocity.origin}): at the last timestep the input is "
            "nothing but "
            "the noise, and a network that predicts noise learns nothing of the image there. Terminus refuses the "
            "two "
            "together; this recipe keeps epsilon without zero terminal SNR. If the model is to become one with true "
            "blacks and whites, set objective.prediction: velocity, zero_terminal_snr: true and model.convert_from: "
            "epsilon."
        )
    else:
        draft.set("objective.zero_terminal_snr", terminal.value, terminal.origin)
    if velocity.value and not terminal.value:
        draft.notes.append(
            f"{terminal.origin}: velocity on a schedule that never reaches pure noise. If the model was made with zero "
            "terminal SNR, training refuses to begin and says so: set objective.zero_terminal_snr: true then."
        )
    # min-SNR (Hang et al. 2303.09556), in that program's form for velocity, whose weight is 0 where the SNR is.
    if gamma is None:
        draft.set("objective.weighting.kind", "constant", "no min-SNR")
        return
    draft.set("objective.weighting.kind", "min_snr", gamma.origin)
    draft.set("objective.weighting.gamma", gamma.value, gamma.origin)
    if velocity.value:
        draft.set("objective.weighting.form", "paper", "the form of that trainer, see below")
        weight = (
            "0: that step, which zero-terminal-SNR training exists for, is never trained"
            if terminal.value
            else "near 0"
        )
        draft.notes.append(
            f"{gamma.origin}: there the weight of a timestep is min(SNR, gamma)/(SNR + 1), which is form: paper "
            "here, and "
            f"at the last timestep {weight}. form: augmented, the default here, is min(SNR + 1, gamma)/(SNR + 1), "
            "which "
            "is 1 there. To train as before keep paper; for true blacks and whites take augmented (docs/math.md)."
        )


def start(draft: Draft, model: Sourced[str], path: str) -> None:
    """The model that training begins from, and consent where it is known to be something else."""
    draft.set("model.start", path, model.origin)
    # Consent is written only where it is certain: a known base, and an objective that differs from its own.
    given = draft.settings["objective.prediction"].value, draft.settings["objective.zero_terminal_snr"].value
    adapts = any(setting.startswith("model.adapter.") for setting in draft.settings)
    if model.value in EPSILON_BASES and given != ("epsilon", False) and not adapts:
        draft.set(
            "model.convert_from", "epsilon", "this model predicts noise, and the objective asks for something else"
        )
    else:
        draft.notes.append(
            "Prediction and schedule must agree with model.start, which says what it is (`terminus inspect`). To "
            "turn an epsilon model into velocity with zero terminal SNR, set model.convert_from: epsilon."
        )


def rate_schedule(
    draft: Draft, top: Sourced[float], end: Sourced[float] | None, shape: Sourced[str], warmup: Sourced[int]
) -> None:
    """The learning rate; `end` where the trainer says it, `warmup` in images. Its shape is a cosine, or constant."""
    # Half a cosine between two bounds; where these are equal it is constant.
    draft.set("training.learning_rate.max", top.value, top.origin)
    word = shape.value.lower()
    if word.startswith("constant"):
        draft.set("training.learning_rate.min", top.value, shape.origin)
    else:
        low = Sourced(0.0, shape.origin) if end is None else end
        draft.set("training.learning_rate.min", min(low.value, top.value), low.origin)
        if word != "cosine":
            draft.notes.append(f"{shape.origin}: between its bounds the learning rate here follows half a cosine.")
    # Plain `constant` has no warm-up there, whatever number stands beside it.
    if warmup.value and word != "constant":
        draft.set("training.learning_rate.warmup_images", warmup.value, warmup.origin)


def huber(draft: Draft, keys: Keys, loss: Sourced[str], schedule: Sourced[str], c: Sourced[float]) -> None:
    """Loss by squares, or pseudo-Huber."""
    if loss.value == "l2":
        draft.set("objective.loss.kind", "squared", loss.origin)
    elif loss.value != "huber":
        draft.leave(keys, "loss_type", "there are squared and huber; this recipe has squared")
    elif schedule.value not in ("constant", "snr"):
        draft.leave(keys, "huber_schedule", "there are constant and snr; this recipe has the squared loss")
    else:
        draft.set("objective.loss.kind", "huber", loss.origin)
        draft.set("objective.loss.c", c.value, c.origin)
        draft.set("objective.loss.schedule", schedule.value, schedule.origin)


def adamw(draft: Draft, chosen: Sourced[str], moments: str, values: Mapping[str, Sourced[float]]) -> None:
    """AdamW with torch's defaults where nothing else is said; `values` by the setting's name."""
    draft.set("training.optimizer.kind", "adamw", chosen.origin)
    draft.set("training.optimizer.moments", moments, chosen.origin)
    usual = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "epsilon": 1e-8}
    for name, default in usual.items():
        given = values.get(name) or Sourced(default, f"{name} is not set, which is {default:g} there")
        draft.set(f"training.optimizer.{name}", given.value, given.origin)


def optimizer_values(words: list[str], origin: str) -> tuple[dict[str, Sourced[float]], list[str]]:
    """`weight_decay=0.1`, `betas=0.9,0.99` and their like by our names, and the words that mean nothing here."""
    names = {
        "weight_decay": ["weight_decay"], "eps": ["epsilon"], "epsilon": ["epsilon"],
        "beta1": ["beta1"], "beta2": ["beta2"], "betas": ["beta1", "beta2"],
    }  # fmt: skip
    found, others = dict[str, Sourced[float]](), list[str]()
    for word in words:
        # `betas` is two numbers for two settings; a word counts only if all of its numbers do.
        key, _, text = word.partition("=")
        key = key.strip()
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        values = [_number(part) for part in parts]
        wanted = names.get(key, [])
        if not wanted or len(values) != len(wanted) or None in values:
            others.append(word)
            continue
        for name, value in zip(wanted, values, strict=True):
            assert value is not None
            found[name] = Sourced(value, f"{origin}: {shown(word)}")
    return found, others


def average(draft: Draft, decay: Sourced[float], every: int, step: int) -> None:
    """A decay per move as the images after which old weights count half."""
    if 0 < decay.value < 1:
        # decay^(n / images per move) = 1/2, solved for n.
        half = max(1, round(math.log(0.5) / math.log(decay.value) * every * step))
        draft.set("training.ema.half_life_images", half, f"{decay.origin}, which halves in so many images")
        draft.set("training.ema.every_steps", every, decay.origin)
        return
    draft.notes.append(f"{decay.origin} is no average; training.ema keeps its own half-life.")


def no_average(draft: Draft, trainer: str) -> None:
    """Says that there is an average here."""
    draft.notes.append(
        f"{trainer} keeps no average of the weights here; Terminus always does, and the finished model is the average "
        "(training.ema). Its half-life is the default."
    )


def side(area: float, step: int) -> int:
    """The side of the square of so many pixels, down to a whole number of steps; at least one."""
    # A little more than the root, so that that of a square number is not rounded below it.
    return max(step, int(math.sqrt(max(area, 0.0)) + 1e-6) // step * step)


def near(key: str, known: Collection[str]) -> str:
    """`; did you mean keep_tokens?`, or nothing."""
    found = difflib.get_close_matches(key, list(known), n=1, cutoff=0.8)
    return f"; did you mean {found[0]}?" if found else ""


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
