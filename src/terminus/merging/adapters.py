"""The files of an adapter that was computed rather than trained: extracted from two models, or merged from others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terminus.model.adapter_files import FOLDERS, Trained, write_adapter
from terminus.model.adapter_keys import Part, Target
from terminus.model.components import Components
from terminus.model.lineage import ADAPTER_KEY, Merge
from terminus.model.writing import fresh


@dataclass(frozen=True)
class WrittenAdapter:
    """The folder of an adapter, and what is in it."""

    folder: Path
    modules: int
    least: int
    most: int
    """Smallest and largest rank of a module; 0 where there is none."""
    lost: float
    """Part of the whole difference that the factors do not hold, as a ratio of Frobenius norms."""
    size: int
    """Bytes of all files."""


def write_computed(
    layers: Mapping[Target, Mapping[str, Tensor]], components: Components, merge: Merge, folder: Path, lost: float
) -> WrittenAdapter:
    """Writes what `terminus train` writes of a LoRA: a file in kohya's layout and one in diffusers'.

    Each module has its own rank, and an alpha that equals it, so that its factors multiply to the change itself.
    """
    ranks = {target: factors["down"].shape[0] for target, factors in layers.items() if "down" in factors}
    most, least = max(ranks.values(), default=0), min(ranks.values(), default=0)
    complete = {
        target: {**factors, **({"alpha": torch.tensor(float(ranks[target]))} if target in ranks else {})}
        for target, factors in layers.items()
    }
    told = {"modelspec.merged_from": merge.names, ADAPTER_KEY: json.dumps(asdict(merge), sort_keys=True)}
    if most != least:
        told |= {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}  # as kohya's own tools say it
    trained = Trained("lora", most, float(most), complete, _configs(ranks), told)
    with fresh(folder) as draft:
        write_adapter(trained, components, draft, folder.name)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return WrittenAdapter(folder, len(layers), least, most, lost, size)


def _configs(ranks: Mapping[Target, int]) -> dict[Part, Mapping[str, Any]]:
    """peft's settings of each network: the most frequent rank, and the modules that have another."""
    found: dict[Part, Mapping[str, Any]] = {}
    for part in FOLDERS:
        own = {target.module: rank for target, rank in ranks.items() if target.part == part}
        if not own:
            continue
        usual = Counter(own.values()).most_common(1)[0][0]
        others = {module: rank for module, rank in sorted(own.items()) if rank != usual}
        found[part] = {
            "peft_type": "LORA", "r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others,
            "target_modules": sorted(own), "use_dora": False, "use_rslora": False,
        }  # fmt: skip
    return found
