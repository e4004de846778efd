"""What `terminus merge` and `terminus extract` are told, checked before torch is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from terminus.errors import UserError
from terminus.model.choices import DECISIONS, check_choice, check_target
from terminus.model.naming import SHIPPED, at_home, find_local

Method = Literal["weighted-sum", "add-difference", "ties", "dare"]
DENSITIES: Mapping[str, float] = {"ties": 0.2, "dare": 0.5}
"""Share of each difference that is kept where nobody says otherwise: the top 20 % of TIES's paper; of DARE half."""
_BLOCK = re.compile(r"unet|(down|up)(\.\d)?|mid|text_encoder(_2)?|vae")
_FORM = "The form is MODEL[:WEIGHT]"


@dataclass(frozen=True)
class Weighted:
    """A model by its name, and its weight; None where none is given."""

    model: str
    weight: float | None


@dataclass(frozen=True)
class MergePlan:
    """A merge of models."""

    models: tuple[Weighted, ...]
    method: Method
    blocks: Mapping[str, float] = field(default_factory=dict[str, float])
    density: float | None = None
    seed: int = 0
    decided: str | None = None
    """What the result is (`v-ztsnr`, `v`, `epsilon`), where the models are not the same."""

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each model, in their order; those of the first follow from the method."""
        given = [one.weight for one in self.models[1:]]
        if self.method == "add-difference":
            difference = 1.0 if given[0] is None else given[0]
            return 1.0, difference, -difference
        if self.method == "weighted-sum":
            # Without a word all count the same.
            others = [1 / len(self.models) if weight is None else weight for weight in given]
            return 1 - math.fsum(others), *others
        return 1.0, *(1.0 if weight is None else weight for weight in given)

    @property
    def kept(self) -> float:
        """The share of each difference that TIES and DARE keep."""
        return DENSITIES.get(self.method, 1.0) if self.density is None else self.density


@dataclass(frozen=True)
class AdapterSize:
    """How large the factors of an adapter become: of one rank, or as large as an error asks."""

    rank: int | None = None
    error: float | None = None
    """Largest part of each module's difference that may be lost, as a ratio of Frobenius norms."""


def parse_models(texts: Sequence[str]) -> tuple[Weighted, ...]:
    """The models to merge; UserError for what is no model's name, or no weight."""
    models = tuple(_weighted(text) for text in texts)
    if models[0].weight is not None:
        raise UserError(
            f"The first model, {models[0].model}, has a weight",
            rule="The others' weights are given; the first has the rest of a weighted sum, and is the base otherwise",
            fix="Write the weight behind another model",
        )
    return models


def _weighted(text: str) -> Weighted:
    """ "MODEL" or "MODEL:WEIGHT"; a name may hold a colon itself."""
    name, colon, number = text.rpartition(":")
    if not colon or text in SHIPPED or at_home(text).exists():
        find_local(text)
        return Weighted(text, None)
    try:
        weight = float(number)
    except ValueError:
        raise UserError(f"{text} cannot be read", rule=_FORM, fix=f"For example {name}:0.4") from None
    if not math.isfinite(weight):
        raise UserError(f"{text} has no weight", rule="A weight is a finite number")
    find_local(name)
    return Weighted(name, weight)


def parse_blocks(texts: Sequence[str]) -> dict[str, float]:
    """Weights of single blocks, from "BLOCK=WEIGHT"."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise UserError(
                f"--block {text} cannot be read", rule="The form is BLOCK=WEIGHT, such as mid=0.3"
            ) from None
        if not _BLOCK.fullmatch(name) or not math.isfinite(found[name]):
            raise UserError(
                f"--block {text}",
                rule="Blocks are unet, down, mid, up, one level such as down.1, text_encoder, text_encoder_2 and vae",
            )
    return found


def check_merge(plan: MergePlan) -> None:
    """UserError for a method that does not go with these models or numbers."""
    check_choice("--method", plan.method, get_args(Method))
    count, difference = len(plan.models), plan.method == "add-difference"
    if count < 2 or (difference and count != 3):
        raise UserError(
            f"{count} {'model is' if count == 1 else 'models are'} named for {plan.method}",
            rule="add-difference takes three, A + w (B − C); every other method two or more, the first its base",
        )
    if difference and plan.models[2].weight is not None:
        raise UserError(
            "The third model of add-difference has a weight", rule="B − C has one, which stands behind B: A B:0.8 C"
        )
    if plan.density is not None and plan.method not in DENSITIES:
        raise UserError(f"--density is for {' and '.join(DENSITIES)}", fix="Leave it out, or name the method")
    if not 0 < plan.kept <= 1:
        raise UserError(f"--density {plan.kept:g}", rule="The share that is kept is above 0 and at most 1")
    if plan.decided is not None:
        check_choice("--as", plan.decided, DECISIONS)


def check_model_target(target: Path, precision: str, shard_size: str | None) -> None:
    """UserError for a model that cannot be written there."""
    check_target(target, precision, shard_size)
    beside = at_home(target).with_suffix(".yaml")
    if target.suffix == ".safetensors" and beside.exists():
        raise UserError("This exists already", where=str(beside), rule="Nothing is overwritten", fix="Name another")


def check_adapter_target(target: Path) -> None:
    """UserError for a folder of an adapter that cannot be written."""
    check_target(target)
    if target.suffix == ".safetensors":
        raise UserError(
            "An adapter is written as a folder", where=str(target),
            rule="It holds NAME.safetensors for desktop programs and pytorch_lora_weights.safetensors for diffusers",
            fix=f"Name it {target.with_suffix('')}",
        )  # fmt: skip


def check_size(size: AdapterSize, needed: bool) -> None:
    """UserError unless at most one of rank and error is given, exactly one where it is `needed`, and sensible."""
    both, neither = None not in (size.rank, size.error), size.rank is None and size.error is None
    if both or (needed and neither):
        raise UserError(
            "--rank and --error are both given" if both else "How large the adapter becomes is not said",
            rule="Its factors have one rank, or each as many as an error asks",
            fix="Give --rank 32 or --error 0.1",
        )
    if size.rank is not None and size.rank < 1:
        raise UserError(f"--rank {size.rank}", rule="A rank is at least 1")
    if size.error is not None and not 0 <= size.error < 1:
        raise UserError(
            f"--error {size.error:g}", rule="The part of a difference that may be lost is from 0 to below 1"
        )


def check_no_size(size: AdapterSize) -> None:
    """UserError where a size is given for what is no adapter."""
    if size != AdapterSize():
        raise UserError("--rank and --error are for --adapter", fix="Leave them out: a model's weights have no rank")


def check_loras(
    models: Sequence[Weighted], texts: Sequence[str], method: str, blocks: Mapping[str, float]
) -> list[tuple[Path, float]]:
    """The adapters to merge, each with its weight; UserError for what is not there, or does not go with them."""
    from terminus.sampling.arguments import Drawer

    if not texts:
        raise UserError("--adapter without --lora", fix="Name the adapters to merge into each other")
    if len(models) != 1:
        raise UserError(
            "--lora takes one model", rule="Adapters are merged into one model", fix="Merge the models first"
        )
    if blocks or method != "weighted-sum":
        raise UserError("--block and --method are for models, not for --lora", fix="Leave them out")
    found = Drawer(models[0].model, texts).weighted()
    wrong = next((weight for _, weight in found if not math.isfinite(weight)), None)
    if wrong is not None:
        raise UserError(f"--lora has the weight {wrong}", rule="A weight is a finite number, 1 as it was trained")
    return found
