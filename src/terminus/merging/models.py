"""Merging whole models: tensor by tensor out of mapped files, in pieces, into a checkpoint like `convert` writes.

What is not merged is the first model's, mapped and never copied. Weights of a block, and the difference that TIES
trims, are looked up here; the formulas are in `merging.methods`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from terminus import runtime
from terminus.errors import UserError
from terminus.merging.arguments import MergePlan
from terminus.merging.methods import Magnitudes, dare, model_difference, split_rows, ties, weighted
from terminus.merging.scratch import scratch_tensors
from terminus.merging.sources import Source, agreed_schedule, check_same_architecture, merged_networks, read_sources
from terminus.model.convert import DTYPES, Converted, check_new, write_checkpoint
from terminus.model.lineage import Merge
from terminus.model.parts import NETWORKS, CheckpointParts
from terminus.model.record import Record, Schedule, scheduler_config
from terminus.model.weights import at_home
from terminus.progress import Meter

log = logging.getLogger("terminus")

_PIECE = 1 << 22
"""Numbers that are worked on at once: 32 MB in float64, whatever the size of a tensor."""
_MUCH = 100_000_000
"""Numbers from which a progress bar is shown."""
_UNET_BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.")


def merge_models(plan: MergePlan, target: Path, precision: str = "keep", shard_size: str | None = None) -> Converted:
    """Merges models and writes the result to `target`, which must be new, as `convert` writes it.

    Numbers have the precision of the first model unless another is asked for. UserError for models of different
    architectures, for those that predict differently (unless `plan.decided` says what the result is), for a block that
    they do not have, and for a sum that the precision cannot hold.
    """
    target = at_home(target)
    check_new(target, precision, shard_size)
    sources = read_sources(plan.models)
    # Everything that can be refused is, before the first sum.
    networks = merged_networks(plan.blocks)
    schedule = agreed_schedule(sources, plan.decided)
    check_same_architecture(sources, networks)
    _check_blocks(plan, sources[0].parts)
    _tell_of_channels(sources)
    # The merged tensors, of which those that no other model changes are the first's.
    work = _Work(plan, sources, DTYPES.get(precision))
    tensors = {name: work.network(name, target) for name in networks}
    parts = replace(
        sources[0].parts,
        title=title_of(target),
        tensors={**sources[0].parts.tensors, **tensors},
        record=_record(plan, sources, schedule),
        scheduler=sources[0].parts.scheduler if schedule == sources[0].schedule else scheduler_config(schedule),
        metadata={},  # title, author and description are of the first, and not of this
        described=True,
    )
    return write_checkpoint(parts, target, precision, shard_size)


@dataclass(frozen=True)
class _Work:
    """One merge, ready to be computed."""

    plan: MergePlan
    sources: Sequence[Source]
    dtype: torch.dtype | None

    def network(self, network: str, target: Path) -> dict[str, Tensor]:
        """One network's tensors: merged ones in a file beside the target, the others as the first model has them."""
        first = self.sources[0].parts.tensors[network]
        weights = {name: block_weights(self.plan, network, name) for name in first}
        changed = [name for name in first if first[name].is_floating_point() and self._changes(weights[name])]
        result = scratch_tensors(target, {name: (first[name].shape, self._dtype(first[name])) for name in changed})
        thresholds = self._thresholds(network, {name: weights[name] for name in changed})
        for name in counted(changed, f"merging {network}", sum(first[name].numel() for name in changed)):
            self._merge(network, name, weights[name], thresholds, result[name])
        return {**first, **result}

    def _merge(
        self, network: str, name: str, weights: Sequence[float], thresholds: Sequence[float], out: Tensor
    ) -> None:
        coefficients = self._coefficients(weights)
        generators = [runtime.rng(self.plan.seed, index, f"dare:{network}.{name}") for index in range(len(weights) - 1)]
        for rows, pieces in self._pieces(network, name):
            if self.plan.method == "ties":
                value = ties(pieces[0], pieces[1:], weights[1:], thresholds)
            elif self.plan.method == "dare":
                value = dare(pieces[0], pieces[1:], weights[1:], self.plan.kept, generators)
            else:
                value = weighted(pieces, coefficients)
            store(value, _cut(out[rows], self._inputs(network, name)), f"{network}.{name}")
        # Inputs that the first model alone has (inpainting) are its own.
        whole, shared = self.sources[0].parts.tensors[network][name], self._inputs(network, name)
        if whole.ndim > 1 and whole.shape[1] > shared:
            out[:, shared:] = whole[:, shared:].to(out.dtype)

    def _pieces(self, network: str, name: str) -> Iterator[tuple[slice, list[Tensor]]]:
        """The rows of one tensor, in pieces; of each model, cut to the inputs that all have."""
        tensors, shared = self._all(network, name), self._inputs(network, name)
        for rows in split_rows(tensors[0].shape, _PIECE):
            yield rows, [_cut(tensor[rows], shared) for tensor in tensors]

    def _all(self, network: str, name: str) -> list[Tensor]:
        return [source.parts.tensors[network][name] for source in self.sources]

    def _inputs(self, network: str, name: str) -> int:
        """How many inputs of a layer all models have; 0 for what has none, such as a bias."""
        return min((tensor.shape[1] for tensor in self._all(network, name) if tensor.ndim > 1), default=0)

    def _thresholds(self, network: str, weights: Mapping[str, Sequence[float]]) -> list[float]:
        """The magnitude from which TIES keeps the difference of each model after the first, over the whole network."""
        if self.plan.method != "ties":
            return []
        found: list[float] = []
        for index in range(1, len(self.sources)):
            names = [name for name, each in weights.items() if each[index] != 0]
            magnitudes = Magnitudes()
            for tau in self._differences(network, names, index):
                magnitudes.count(tau)
            magnitudes.choose(self.plan.kept)
            for tau in self._differences(network, names, index):
                magnitudes.refine(tau)
            found.append(magnitudes.threshold if names else 0.0)
        return found

    def _differences(self, network: str, names: Sequence[str], index: int) -> Iterator[Tensor]:
        for name in names:
            for _, pieces in self._pieces(network, name):
                yield model_difference(pieces[index], pieces[0])

    def _coefficients(self, weights: Sequence[float]) -> list[float]:
        """The same, with all of a model's at its first place: A + w (B − A) is then (1 − w) A + w B, exactly."""
        places = [source.parts.where for source in self.sources]
        totals = [0.0] * len(weights)
        for place, weight in zip(places, weights, strict=True):
            totals[places.index(place)] += weight
        return totals

    def _changes(self, weights: Sequence[float]) -> bool:
        """Whether any other model has a part in it."""
        return any(weight != 0 for weight in weights[1:])

    def _dtype(self, first: Tensor) -> torch.dtype:
        return first.dtype if self.dtype is None else self.dtype


def title_of(target: Path) -> str:
    """A model's name, from the name of its file or folder."""
    return target.stem if target.suffix == ".safetensors" else target.name


def counted(names: Sequence[str], what: str, numbers: int) -> Iterator[str]:
    """The names one by one, with a progress bar where there is much to do."""
    if numbers < _MUCH:
        yield from names
        return
    with Meter(Console(stderr=True, highlight=False), what, len(names), unit="tensors") as meter:
        for name in names:
            yield name
            meter.advance(1)


def _cut(piece: Tensor, inputs: int) -> Tensor:
    return piece[:, :inputs] if piece.ndim > 1 else piece


def store(value: Tensor, out: Tensor, name: str) -> None:
    """Writes numbers in the precision of `out`; UserError for what it cannot hold."""
    stored = value.to(out.dtype)
    if not torch.isfinite(stored.float()).all():
        raise UserError(
            f"{name} does not fit {str(out.dtype).removeprefix('torch.')}: largest magnitude {value.abs().max():.3g}",
            rule="A number that a precision cannot hold would be infinity",
            fix="Choose --precision bf16, which has the range of fp32, or fp32; or smaller weights",
        )
    out.copy_(stored)


def block_weights(plan: MergePlan, network: str, name: str) -> tuple[float, ...]:
    """The weight of each model for one tensor: that of its narrowest block that has one, else the models' own."""
    own = next((plan.blocks[block] for block in blocks_of(network, name) if block in plan.blocks), None)
    if own is None:
        return plan.weights
    if plan.method == "add-difference":
        return 1.0, own, -own
    others = (own,) * (len(plan.models) - 1)
    return (1 - sum(others) if plan.method == "weighted-sum" else 1.0), *others


def blocks_of(network: str, name: str) -> tuple[str, ...]:
    """The blocks that a tensor is in, the narrowest first: of the UNet's down_blocks.1 `down.1`, `down` and `unet`."""
    found = _UNET_BLOCK.match(name) if network == "unet" else None
    if found is None:
        return (network,)
    block, level = found.groups()
    return (block, network) if level is None else (f"{block}.{level}", block, network)


def _check_blocks(plan: MergePlan, parts: CheckpointParts) -> None:
    known = {block for network in NETWORKS for name in parts.tensors[network] for block in blocks_of(network, name)}
    if unknown := sorted(plan.blocks.keys() - known):
        raise UserError(
            f"These models have no block {unknown[0]}", where=parts.where,
            rule=f"Their blocks are {', '.join(sorted(known))}",
        )  # fmt: skip


def _tell_of_channels(sources: Sequence[Source]) -> None:
    ours, *theirs = [source.parts.tensors["unet"]["conv_in.weight"].shape[1] for source in sources]
    if ours > min(theirs):
        log.warning(
            "%s reads %d channels, the others %d: what it makes of its further channels stays as it is",
            *(sources[0].name, ours, min(theirs)),
        )


def _record(plan: MergePlan, sources: Sequence[Source], schedule: Schedule) -> Record:
    """What is true of all models; of the training of a merge there is nothing to say, but where it came from."""
    settings: dict[str, float] = {}
    if plan.method in ("ties", "dare"):
        settings["density"] = plan.kept
    if plan.method == "dare":
        settings["seed"] = plan.seed
    models = tuple(source.merged(weight) for source, weight in zip(sources, plan.weights, strict=True))
    merges: list[Merge] = []
    for source in sources:
        merges += [merge for merge in source.parts.record.merges if merge not in merges]
    merges.append(Merge(plan.method, models, dict(plan.blocks), settings))
    return merged_record([source.parts.record for source in sources], schedule, tuple(merges))


def merged_record(records: Sequence[Record], schedule: Schedule, merges: tuple[Merge, ...]) -> Record:
    """A record of what all agree on; a licence that only some have is not stated, which is told."""
    first = records[0]
    licences = [record.licence for record in records]
    if len(set(licences)) > 1:
        named = ", ".join(licence or "not stated" for licence in licences)
        log.warning("The licences differ (%s): that of the result is not stated, and is for you to find out", named)
    return Record(
        schedule=schedule,
        licence=first.licence if len(set(licences)) == 1 else None,
        native_pixels=first.native_pixels,
        merges=merges,
    )
