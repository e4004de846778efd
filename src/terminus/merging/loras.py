"""Adapters merged: into a model, or into each other.

Into a model it is what sampling with them does (`model.adapters`), made lasting. Into each other, LoRA's factors are
put beside each other, up = [w₁s₁U₁ w₂s₂U₂] and down = [D₁; D₂], whose product is the sum itself; the ranks add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from terminus.errors import UserError
from terminus.merging.adapters import WrittenAdapter, write_computed
from terminus.merging.arguments import AdapterSize
from terminus.merging.blank import blank_components, stored_tensor, tensor_name
from terminus.merging.low_rank import factorise
from terminus.merging.models import counted, merged_record, store, title_of
from terminus.merging.scratch import scratch_tensors
from terminus.merging.sources import Source, read_source, schedule_name
from terminus.model.adapter_deltas import Layer
from terminus.model.adapter_keys import Target
from terminus.model.adapters import Adapter, read_adapter, with_deltas
from terminus.model.components import Components
from terminus.model.convert import DTYPES, Converted, check_new, write_checkpoint
from terminus.model.lineage import Merge, MergedModel
from terminus.model.parts import CheckpointParts
from terminus.model.record import DECISIONS, Schedule, scheduler_config
from terminus.model.weights import at_home
from terminus.model.writing import refuse_existing

Loras = Sequence[tuple[Path, float]]


def merge_into_model(
    model: str, loras: Loras, target: Path, precision: str = "keep", shard_size: str | None = None,
    decided: str | None = None,
) -> Converted:  # fmt: skip
    """Writes the model with adapters worked into its weights: W + Σ wᵢ Δᵢ in float32, rounded once.

    UserError for what `read_adapter` refuses, and for adapters of another prediction or schedule than the model, unless
    `decided` says what the result is.
    """
    target = at_home(target)
    check_new(target, precision, shard_size)
    source, _, adapters = _read(model, loras)
    schedule = _schedule(source, adapters, decided)
    # The tensors that change, in a file beside the target.
    dtype, changed = DTYPES.get(precision), _changed(adapters)
    places = {f"{target}.{which}": tensor_name(target, which) for target, which in changed}
    like: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for name, (network, key) in places.items():
        first = source.parts.tensors[network][key]
        like[name] = first.shape, dtype or first.dtype
    result = scratch_tensors(target, like)
    work = {f"{target}.{which}": (target, which) for target, which in changed}
    for name in counted(list(work), "merging", sum(shape.numel() for shape, _ in like.values())):
        network, key = places[name]
        first = source.parts.tensors[network][key].float()
        store(with_deltas(first, work[name][1], _parts(adapters, *work[name])), result[name], name)
    tensors = {network: dict(values) for network, values in source.parts.tensors.items()}
    for name, (network, key) in places.items():
        tensors[network][key] = result[name]
    merge = Merge("lora", (source.merged(1.0), *_told(adapters)))
    record = merged_record([source.parts.record], schedule, (*source.parts.record.merges, merge))
    scheduler = source.parts.scheduler if schedule == source.schedule else scheduler_config(schedule)
    parts = replace(
        source.parts,
        title=title_of(target),
        tensors=tensors,
        record=record,
        scheduler=scheduler,
        metadata={},
        described=True,
    )
    return write_checkpoint(parts, target, precision, shard_size)


def merge_adapters(
    model: str, loras: Loras, folder: Path, size: AdapterSize, decided: str | None = None
) -> WrittenAdapter:
    """Writes one adapter that changes `model` as all of these do together.

    Exactly, with ranks that add up, or of the rank or error that `size` asks for. UserError for kinds that have no sum
    in LoRA's form (DoRA, LoHa, LoKr, Tucker cores, whole differences) where no size is asked for.
    """
    folder = at_home(folder)
    refuse_existing(folder)
    source, components, adapters = _read(model, loras)
    _schedule(source, adapters, decided)
    layers: dict[Target, dict[str, Tensor]] = {}
    lost = whole = 0.0
    named = {str(target): target for adapter, _ in adapters for target in adapter.layers}
    for name in counted(list(named), "merging", 0):
        target = named[name]
        layers[target], rest, all_of_it = _joined(source.parts, target, adapters, size)
        lost, whole = lost + rest, whole + all_of_it
    settings = (
        {} if size == AdapterSize() else {"rank": float(size.rank or 0)} if size.rank else {"error": size.error or 0.0}
    )
    merge = Merge("loras", tuple(_told(adapters)), settings=settings)
    found = {target: factors for target, factors in layers.items() if factors}
    return write_computed(found, components, merge, folder, (lost / whole) ** 0.5 if whole else 0.0)


def _read(model: str, loras: Loras) -> tuple[Source, Components, list[tuple[Adapter, float]]]:
    source = read_source(model)
    components = blank_components(source.parts)
    # Sums depend on their order: by hash, as sampling has it, so that both give the same bits.
    adapters = [(read_adapter(path, components), weight) for path, weight in loras]
    return source, components, sorted(adapters, key=lambda pair: (pair[0].sha256, pair[0].name))


def _schedule(source: Source, adapters: Sequence[tuple[Adapter, float]], decided: str | None) -> Schedule:
    """The model's schedule, or what `--as` says; UserError for an adapter of another where nothing is said."""
    ours = source.schedule
    if decided is not None:
        prediction, zero_terminal = DECISIONS[decided]
        return replace(ours, prediction=prediction, zero_terminal=zero_terminal)
    for adapter, _ in adapters:
        claim = adapter.claim
        other = claim.prediction not in (None, ours.prediction)
        if other or claim.zero_terminal not in (None, ours.zero_terminal):
            trained = replace(
                ours,
                prediction=claim.prediction or ours.prediction,
                zero_terminal=ours.zero_terminal if claim.zero_terminal is None else claim.zero_terminal,
            )
            raise UserError(
                f"{adapter.name} was trained on {schedule_name(trained)}, {source.name} is {schedule_name(ours)}",
                rule="Such a change carries over in part at best",
                fix="Try it with `terminus sample --lora`; to merge it anyway, say what the result is: --as v-ztsnr",
            )
    return ours


def _changed(adapters: Sequence[tuple[Adapter, float]]) -> list[tuple[Target, str]]:
    """Each weight and bias that some adapter changes, once."""
    found: dict[tuple[Target, str], None] = {}
    for adapter, _ in adapters:
        for target, layer in adapter.layers.items():
            if layer.changes_weight:
                found[target, "weight"] = None
            if layer.changes_bias:
                found[target, "bias"] = None
    return list(found)


def _parts(adapters: Sequence[tuple[Adapter, float]], target: Target, which: str) -> list[tuple[float, Layer]]:
    found = [(weight, adapter.layers[target]) for adapter, weight in adapters if target in adapter.layers]
    return [one for one in found if (one[1].changes_weight if which == "weight" else one[1].changes_bias)]


def _told(adapters: Sequence[tuple[Adapter, float]]) -> list[MergedModel]:
    return [MergedModel(adapter.path.name, adapter.sha256, weight) for adapter, weight in adapters]


def _joined(
    parts: CheckpointParts, target: Target, adapters: Sequence[tuple[Adapter, float]], size: AdapterSize
) -> tuple[dict[str, Tensor], float, float]:
    """One module's factors out of those of all adapters, and what was lost of how much."""
    found: dict[str, Tensor] = {}
    lost = whole = 0.0
    weight, bias = (stored_tensor(parts, target, which) for which in ("weight", "bias"))
    layers = _parts(adapters, target, "weight")
    norms = weight is not None and weight.ndim == 1
    if layers and weight is not None and (norms or size != AdapterSize()):
        total = sum_of(weight.float(), "weight", layers)
        if norms:
            found["w_norm"] = total
        elif (factors := factorise(total, size)) is not None:
            found |= {"down": factors.down, "up": factors.up}
            lost, whole = factors.lost, factors.whole
    elif layers and weight is not None:
        found |= _beside(layers, weight, target)
    if bias is not None and (biases := _parts(adapters, target, "bias")):
        found["b_norm" if norms else "diff_b"] = sum_of(bias.float(), "bias", biases)
    if norms and "b_norm" in found:
        found.setdefault("w_norm", torch.zeros_like(found["b_norm"]))
    return found, lost, whole


def sum_of(first: Tensor, which: str, layers: Sequence[tuple[float, Layer]]) -> Tensor:
    """Σ wᵢ Δᵢ of one parameter, float32."""
    total = torch.zeros_like(first)
    for weight, layer in layers:
        delta = layer.weight_delta(first) if which == "weight" else layer.bias_delta(first)
        if delta is not None:
            total += weight * delta
    return total


def _beside(layers: Sequence[tuple[float, Layer]], weight: Tensor, target: Target) -> dict[str, Tensor]:
    """LoRA's factors beside each other: exactly their weighted sum."""
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    for strength, layer in layers:
        if layer.algorithm != "LoRA" or layer.dora or "mid" in layer.factors:
            kind = "DoRA" if layer.dora else "a Tucker core" if "mid" in layer.factors else layer.algorithm
            raise UserError(
                f"{target} is changed by {kind}, which has no exact sum in LoRA's form",
                rule="Only LoRA's factors can be put beside each other",
                fix="Give --rank 32 or --error 0.05: the sum of the changes is then taken apart anew",
            )
        factors: Mapping[str, Tensor] = layer.factors
        rank = factors["down"].shape[0]
        ups.append(factors["up"].float().reshape(-1, rank) * (layer.scale * strength))
        downs.append(factors["down"].float().reshape(rank, *weight.shape[1:]))
    up = torch.cat(ups, dim=1)
    return {"up": up.reshape(*up.shape, *(1,) * (weight.ndim - 2)).contiguous(), "down": torch.cat(downs).contiguous()}
