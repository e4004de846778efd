"""LoRA and its relatives on a loaded model: put on with a weight, weighed anew, taken off without a trace.

The weights are always recomputed as W = W0 + sum of w_i * delta_i, in float32, from the originals that are kept on the
CPU. So nothing drifts, the order in which adapters come and go does not matter, and the last one to leave gives back
the model bit for bit. The price is memory: one copy of every weight that an adapter touches.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from terminus.errors import UserError
from terminus.model.adapter_claims import (
    READ,
    Claim,
    check_architecture,
    check_kind,
    check_placed,
    check_schedule,
    read_configuration,
)
from terminus.model.adapter_deltas import Layer, build_layer
from terminus.model.adapter_keys import Part, Placed, Target, is_embedding, networks, place
from terminus.model.components import Components
from terminus.model.header import read_header
from terminus.model.weights import at_home, read_safetensors

log = logging.getLogger("terminus")

_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Names of peft's and diffusers' files in a folder of theirs."""


@dataclass(frozen=True)
class Adapter:
    """One file, read and checked against a model; nothing is changed yet."""

    name: str
    path: Path
    sha256: str
    layers: Mapping[Target, Layer]
    claim: Claim
    unplaced: tuple[str, ...]
    """Keys that mean nothing in this model; a warning has named them."""


@dataclass(frozen=True)
class Attached:
    """An adapter in use, as an image's metadata tells it."""

    name: str
    sha256: str
    unet: float
    text: float


def read_adapter(path: str | Path, components: Components, name: str | None = None) -> Adapter:
    """Reads a safetensors file (or peft's or diffusers' folder of one) for this model.

    Known: LoRA, DoRA, LoHa, LoKr, full and norm differences, named as kohya, LyCORIS, diffusers or peft name them.
    UserError for another kind or architecture, a factor that is missing or of the wrong shape, or a file of which
    nothing fits. `name` is the file's own without ending, unless given.
    """
    file = _file(at_home(path))
    where = str(file)
    header = read_header(file)
    metadata = header.metadata
    tensors = read_safetensors(file)
    # What kind it is, for which architecture, and whether its numbers are numbers.
    check_kind(tensors, where)
    check_architecture(tensors, metadata, components, where)
    for key, value in tensors.items():
        if not torch.isfinite(value.float()).all():  # float: 8-bit formats have no test of their own
            raise UserError(f"{key} holds NaN or infinity", where=where, rule="An adapter is finite numbers")
    # The module of each tensor.
    placed = place(tensors, components, where)
    _check_some(placed, where)
    # Factors become layers, whose products must have the shapes of the weights that they change.
    configuration = read_configuration(file, metadata)
    layers = {
        target: build_layer(factors, configuration.scaling(placed.names[target]), placed.names[target], where)
        for target, factors in placed.layers.items()
    }
    _check_shapes(layers, placed.names, components, where)
    # In a folder all adapters' files have one name; then the folder's says more.
    title = name or (file.parent.name if file.name in _FILES else file.stem)
    _tell(title, placed.unplaced, len(tensors))
    return Adapter(
        title, file, _sha256(file, header.start), layers, check_schedule(metadata, components, title), placed.unplaced
    )  # fmt: skip


class Adapters:
    """The adapters of one model. Use one per model: a second would take the first one's work for the originals.

    As a context manager it takes all of them off at the end.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._used: dict[str, tuple[Adapter, Attached]] = {}
        self._originals: dict[tuple[Part, str], Tensor] = {}

    @property
    def attached(self) -> tuple[Attached, ...]:
        """In the order in which they came."""
        return tuple(state for _, state in self._used.values())

    def attach(
        self, adapter: str | Path | Adapter, weight: float = 1.0, *, text: float | None = None, name: str | None = None
    ) -> Attached:
        """Puts an adapter on: `weight` for the UNet, `text` for both text encoders (the same when not given)."""
        # Weights first: a mistyped number should not wait for a file of a gigabyte.
        unet, text_encoders = _weights(weight, text)
        read = adapter if isinstance(adapter, Adapter) else read_adapter(adapter, self._components, name)
        title = name or read.name
        if title in self._used:
            raise UserError(
                f"An adapter named {title!r} is already in use",
                where=str(read.path),
                rule="Each adapter is used once, with a weight of its own",
                fix="Change its weight; another file of the same name needs another name",
            )
        state = Attached(title, read.sha256, unet, text_encoders)
        self._used[title] = (read, state)
        self._recompute(read)
        return state

    def weigh(self, name: str, weight: float, *, text: float | None = None) -> Attached:
        """Changes the weights of an adapter in use; 0 keeps it at hand without effect."""
        read, state = self._find(name)
        unet, text_encoders = _weights(weight, text)
        state = replace(state, unet=unet, text=text_encoders)
        self._used[name] = (read, state)
        self._recompute(read)
        return state

    def detach(self, name: str) -> None:
        """Takes an adapter off; weights that no other one touches are the original ones, bit for bit."""
        read, _ = self._find(name)
        del self._used[name]
        self._recompute(read)

    def clear(self) -> None:
        """Takes all of them off."""
        for name in list(self._used):
            self.detach(name)

    def __enter__(self) -> Adapters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def _find(self, name: str) -> tuple[Adapter, Attached]:
        if name not in self._used:
            known = ", ".join(self._used) or "none"
            raise UserError(f"No adapter named {name!r} is in use", rule=f"In use: {known}")
        return self._used[name]

    def _recompute(self, changed: Adapter) -> None:
        """Every weight that `changed` touches, from its original and all adapters in use."""
        # Floating-point sums depend on their order: by hash, so that the order of attaching does not matter.
        used = sorted(self._used.values(), key=lambda pair: (pair[1].sha256, pair[1].name))
        for target, layer in changed.layers.items():
            for which in _changes(layer):
                self._write(target, which, used)

    def _write(self, target: Target, which: str, used: list[tuple[Adapter, Attached]]) -> None:
        parameter = _module(self._components, target).get_parameter(which)
        key = (target.part, f"{target.module}.{which}")
        parts = _contributions(target, which, used)
        with torch.no_grad():
            if not parts:
                # Not there when attaching was interrupted before it came to this weight.
                if key in self._originals:
                    parameter.copy_(self._originals.pop(key))
                return
            # The original is kept before its first change.
            if key not in self._originals:
                self._originals[key] = parameter.detach().to("cpu", copy=True)
            original = self._originals[key]
            # At weight 0 the original itself, not its sum with nothing: that has the same bits.
            moved = any(weight != 0 for weight, _ in parts)
            first = original.to(parameter.device, torch.float32)
            parameter.copy_(with_deltas(first, which, parts) if moved else original)


def _contributions(target: Target, which: str, used: list[tuple[Adapter, Attached]]) -> list[tuple[float, Layer]]:
    """Weight and layer of each adapter that changes this parameter ("weight" or "bias") of a module."""
    found: list[tuple[float, Layer]] = []
    for adapter, state in used:
        layer = adapter.layers.get(target)
        if layer is not None and which in _changes(layer):
            found.append((state.unet if target.part == "unet" else state.text, layer))
    return found


def with_deltas(first: Tensor, which: str, parts: Sequence[tuple[float, Layer]]) -> Tensor:
    """A parameter ("weight" or "bias") with all that weighted layers add to it, float32."""
    total = first.clone()
    for weight, layer in parts:
        delta = layer.weight_delta(first) if which == "weight" else layer.bias_delta(first)
        if weight != 0 and delta is not None:
            total += weight * delta
    return total


def _check_some(placed: Placed, where: str) -> None:
    if not placed.layers and not placed.unplaced:
        raise UserError("No tensor is in this file", where=where, rule=READ)
    if not placed.layers:
        what = f"None of its {len(placed.unplaced)} keys belongs to this model, the first is {placed.unplaced[0]!r}"
        raise UserError(what, where=where, rule=READ)
    check_placed(placed.layers, placed.unplaced, where)


def _tell(title: str, unplaced: tuple[str, ...], count: int) -> None:
    if unplaced:
        keys = "%s: %d of %d keys have no place in this model and are not used: %s"
        log.warning(keys, title, len(unplaced), count, _some(unplaced))
    words = tuple(key for key in unplaced if is_embedding(key))
    if words:
        log.warning("%s: it was trained with new words for prompts (%s), which are not read", title, _some(words))


def _changes(layer: Layer) -> tuple[str, ...]:
    return (("weight",) if layer.changes_weight else ()) + (("bias",) if layer.changes_bias else ())


def _check_shapes(
    layers: Mapping[Target, Layer], names: Mapping[Target, str], components: Components, where: str
) -> None:
    """Runs the formulas on tensors without storage."""
    problems: list[str] = []
    for target, layer in layers.items():
        module = _module(components, target)
        blank = Layer(layer.algorithm, {k: v.to("meta") for k, v in layer.factors.items()}, layer.scale, layer.dora)
        # What a layer changes must be there, and its factors must multiply to that shape.
        for which in _changes(layer):
            parameter = dict(module.named_parameters(recurse=False)).get(which)
            if parameter is None:
                problems.append(f"{names[target]} changes a {which} that {target} does not have")
                continue
            reason = _misfit(blank, which, parameter.shape)
            if reason is not None:
                shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in layer.factors.items())
                problems.append(
                    f"{names[target]} ({shapes}) does not fit {target}.{which} {list(parameter.shape)}: {reason}"
                )
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{problems[0]}{more}",
            where=where,
            rule="The factors of every layer must multiply to the shape of its weight",
            fix="Use an adapter made for a model of this size",
        )


def _misfit(blank: Layer, which: str, shape: torch.Size) -> str | None:
    """Why a layer without storage does not fit a weight or bias of this shape; None if it does."""
    like = torch.empty(shape, device="meta")
    try:
        _ = blank.weight_delta(like) if which == "weight" else blank.bias_delta(like)
    except ValueError as error:
        return str(error)
    except (RuntimeError, IndexError):
        return "the factors do not multiply"
    return None


def _module(components: Components, target: Target) -> nn.Module:
    return networks(components)[target.part].get_submodule(target.module)


def _weights(weight: float, text: float | None) -> tuple[float, float]:
    for value in (weight, text):
        if value is not None and not math.isfinite(value):
            raise UserError(f"An adapter's weight is {value}", rule="A weight is a finite number, 1 as it was trained")
    return float(weight), float(weight if text is None else text)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    raise UserError("No adapter is in this folder", where=str(path), rule=f"Expected: {' or '.join(_FILES)}")


def _sha256(path: Path, start: int) -> str:
    """SHA-256 of the tensors: retitling an adapter keeps it, and galleries know it by this."""
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(keys: tuple[str, ...], most: int = 5) -> str:
    more = f", and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(ascii(key)[1:-1] for key in keys[:most]) + more
