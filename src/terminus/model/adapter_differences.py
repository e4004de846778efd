"""An adapter as whole differences: what it adds to every weight of one model, written out.

Programs agree on what a difference means, but not on DoRA: some divide by the norm of the unchanged weight, or take
norms along the inputs where the adapter has one magnitude per output. The price is size, and that it fits one model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from terminus.errors import UserError
from terminus.model.adapter_files import kohya_name
from terminus.model.adapter_keys import networks
from terminus.model.adapters import Adapter, read_adapter
from terminus.model.choices import StoredPrecision, check_target
from terminus.model.components import Components, load_components
from terminus.model.convert import DTYPES
from terminus.model.header import read_header
from terminus.model.weights import at_home
from terminus.model.writing import HASH, fresh, in_precision, write_safetensors

_GONE = ("ss_network_dim", "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash", "lora_adapter_metadata", HASH)
"""Metadata that were true of the factors and are not of their product."""


@dataclass(frozen=True)
class Differences:
    """The file that was written."""

    target: Path
    tensors: int
    size: int
    """Bytes of the file."""


def write_differences(
    source: str | Path, model: str | Path, target: str | Path, precision: StoredPrecision | str = "keep"
) -> Differences:
    """Writes what the adapter `source` adds to the weights of `model` at weight 1, in kohya's names.

    Kept are numbers in float32, as they are computed. UserError for what is no adapter of this model, for a target that
    exists or is no `.safetensors`, and for a number that the precision cannot hold.
    """
    target = at_home(target)
    check_target(target, precision, onto=str(model))
    components = load_components(model)
    adapter = read_adapter(source, components)
    try:
        tensors = _differences(adapter, components, DTYPES.get(precision, torch.float32))
    except OverflowError as error:
        raise UserError(
            str(error), where=str(source), rule="A number that a precision cannot hold would be infinity",
            fix="Choose bf16, which has the range of fp32, or fp32",
        ) from error  # fmt: skip
    with fresh(target) as draft:
        write_safetensors(draft, tensors, _metadata(read_header(adapter.path).metadata))
    return Differences(target, len(tensors), target.stat().st_size)


def _differences(adapter: Adapter, components: Components, dtype: torch.dtype) -> dict[str, Tensor]:
    """One module after the other, so that no second float32 copy of a network is held."""
    layers = cast(int, components.unet.config["layers_per_block"])
    found: dict[str, Tensor] = {}
    for target, layer in adapter.layers.items():
        parameters = dict(networks(components)[target.part].get_submodule(target.module).named_parameters())
        stem = kohya_name(target, layers)
        with torch.no_grad():
            if layer.changes_weight and (weight := layer.weight_delta(parameters["weight"])) is not None:
                found[f"{stem}.diff"] = in_precision(f"{stem}.diff", weight, dtype)
            if layer.changes_bias and (bias := layer.bias_delta(parameters["bias"])) is not None:
                found[f"{stem}.diff_b"] = in_precision(f"{stem}.diff_b", bias, dtype)
    return found


def _metadata(stored: Mapping[str, str]) -> dict[str, str]:
    """The adapter's own words, but for those on its factors."""
    kept = {key: value for key, value in stored.items() if key not in _GONE}
    # LyCORIS calls whole differences the algorithm "full".
    kind = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "full"})}
    return {"format": "pt", **kept, **kind, HASH: ""}
