"""The record of a merge: which models, with which weights, by which method. A later training keeps it.

A chain of trainings is a list of names (`Record.parents`); a merge has several parents at once, so it has a form of
its own, with hashes: names of files change, and a merge can be repeated only from the same ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

ADAPTER_KEY = "terminus.merge"
"""Metadata key of an adapter's file: the merge that it came out of, as JSON."""
MOST_MERGES = 1000
"""Merges in one record that are read; each has at most as many models."""


@dataclass(frozen=True)
class MergedModel:
    """One file or folder that went into a merge."""

    name: str
    sha256: str
    """As `terminus inspect` shows it: of a file, of a folder's UNet, or of an adapter's tensors."""
    weight: float
    parents: tuple[str, ...] = ()
    """What that one began from, oldest first."""

    def __str__(self) -> str:
        return f"{self.name} × {self.weight:g} (SHA-256 {self.sha256[:10]}…)"


@dataclass(frozen=True)
class Merge:
    """One merge, of models or of adapters."""

    method: str
    models: tuple[MergedModel, ...]
    blocks: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weights of single blocks, where they were others."""
    settings: Mapping[str, float] = field(default_factory=dict[str, float])
    """Numbers of the method: density, seed, rank."""

    def __str__(self) -> str:
        numbers = [f"{name} {value:g}" for name, value in (*self.settings.items(), *self.blocks.items())]
        told = f" [{', '.join(numbers)}]" if numbers else ""
        return f"{self.method}: {' + '.join(str(model) for model in self.models)}{told}"

    @property
    def names(self) -> str:
        """ModelSpec's `merged_from`: names, separated by commas."""
        return ", ".join(model.name for model in self.models)


def parse_merges(stored: object) -> tuple[Merge, ...]:
    """The merges of a record's JSON; ValueError or TypeError for what is none."""
    return tuple(_merge(entry) for entry in _listed(stored))


def adapter_merges(metadata: Mapping[str, str]) -> tuple[Merge, ...]:
    """The merge that an adapter's header tells of; none where that is not readable."""
    try:
        return (_merge(json.loads(metadata[ADAPTER_KEY])),)
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


def _merge(stored: object) -> Merge:
    entry = _object(stored)
    return Merge(
        method=str(entry["method"]),
        models=tuple(_model(one) for one in _listed(entry.get("models"))),
        blocks=_numbers(entry.get("blocks", {})),
        settings=_numbers(entry.get("settings", {})),
    )


def _model(stored: object) -> MergedModel:
    entry = _object(stored)
    parents = tuple(str(parent) for parent in _listed(entry.get("parents", [])))
    return MergedModel(str(entry["name"]), str(entry["sha256"]), _finite(entry["weight"]), parents)


def _listed(stored: object) -> list[object]:
    if not isinstance(stored, list) or len(cast(list[object], stored)) > MOST_MERGES:
        raise ValueError("its merges are no list of a sensible length")
    return cast(list[object], stored)


def _object(stored: object) -> dict[str, Any]:
    if not isinstance(stored, dict):
        raise ValueError("an entry of its merges is no object")
    return cast(dict[str, Any], stored)


def _numbers(stored: object) -> dict[str, float]:
    return {str(key): _finite(value) for key, value in _object(stored).items()}


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no weight")
    return float(value)
