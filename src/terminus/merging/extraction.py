"""`terminus extract`: the difference of two models as an adapter.

Matrices and convolutions become two factors of low rank. Biases and norms are small, and are written whole, in kohya's
layout, which alone has names for them. Embeddings and the VAE have no place in an adapter, which is told.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from terminus.errors import UserError
from terminus.merging.adapters import WrittenAdapter, write_computed
from terminus.merging.arguments import AdapterSize
from terminus.merging.blank import blank_components, stored_tensor, targets_of
from terminus.merging.low_rank import Factors, factorise
from terminus.merging.models import counted
from terminus.merging.sources import agreed_schedule, check_same_architecture, read_source
from terminus.model.adapter_keys import Target
from terminus.model.lineage import Merge
from terminus.model.parts import NETWORKS, CheckpointParts
from terminus.model.weights import at_home
from terminus.model.writing import refuse_existing

log = logging.getLogger("terminus")


def extract_difference(tuned: str, base: str, folder: Path, size: AdapterSize) -> WrittenAdapter:
    """Writes what turns `base` into `tuned` as an adapter; the ranks follow from `size`.

    UserError for models of different architectures or that predict differently, for a target that exists, and for two
    models between which there is nothing to extract.
    """
    folder = at_home(folder)
    refuse_existing(folder)
    # Both models, which must differ in their numbers alone.
    sources = [read_source(tuned), read_source(base)]
    agreed_schedule(sources, None)
    check_same_architecture(sources, (name for name in NETWORKS if name != "vae"))
    ours, theirs = (source.parts for source in sources)
    if ours.tensors["unet"]["conv_in.weight"].shape != theirs.tensors["unet"]["conv_in.weight"].shape:
        raise UserError(
            f"{sources[0].name} reads more channels than {sources[1].name}",
            rule="An adapter changes weights; it adds no inputs",
            fix="Extract from two models of the same channels",
        )
    # Module by module, so that no second model is held.
    components = blank_components(theirs)
    modules = dict(targets_of(components))
    layers: dict[Target, dict[str, Tensor]] = {}
    lost = whole = 0.0
    names = {str(target): target for target in modules}
    for name in counted(list(names), "extracting", sum(value.numel() for value in theirs.tensors["unet"].values())):
        target = names[name]
        factors, found = _layer(target, modules[target], ours, theirs, size)
        if found:
            layers[target] = found
        if factors is not None:
            lost, whole = lost + factors.lost, whole + factors.whole
    _check_found(layers, tuned, base)
    _tell_of_the_rest(modules, ours, theirs)
    merge = Merge("extract", (sources[0].merged(1.0), sources[1].merged(-1.0)), settings=_settings(size))
    return write_computed(layers, components, merge, folder, (lost / whole) ** 0.5 if whole else 0.0)


def _layer(
    target: Target, module: nn.Module, ours: CheckpointParts, theirs: CheckpointParts, size: AdapterSize
) -> tuple[Factors | None, dict[str, Tensor]]:
    """What is written of one module: factors of its weight, or the difference of a norm, and that of its bias."""
    factors, found = None, dict[str, Tensor]()
    weight, bias = (_difference(ours, theirs, target, which) for which in ("weight", "bias"))
    if isinstance(module, nn.Linear | nn.Conv2d):
        factors = None if weight is None else factorise(weight, size)
        if factors is not None:
            found |= {"down": factors.down, "up": factors.up}
        if bias is not None:
            found["diff_b"] = bias
    elif not isinstance(module, nn.Embedding):
        found |= {slot: value for slot, value in (("w_norm", weight), ("b_norm", bias)) if value is not None}
        # Readers take a norm's bias beside its weight.
        if "b_norm" in found and "w_norm" not in found:
            found["w_norm"] = torch.zeros_like(found["b_norm"])
    return factors, found


def _difference(ours: CheckpointParts, theirs: CheckpointParts, target: Target, which: str) -> Tensor | None:
    """tuned − base in float32; None where there is no such parameter, or no difference."""
    new, old = stored_tensor(ours, target, which), stored_tensor(theirs, target, which)
    if new is None or old is None or torch.equal(new.float(), old.float()):
        return None
    return (new.double() - old.double()).float()


def _check_found(layers: dict[Target, dict[str, Tensor]], tuned: str, base: str) -> None:
    if not any("down" in factors for factors in layers.values()):
        raise UserError(
            f"Between {tuned} and {base} there is no difference that an adapter can hold",
            rule="An adapter holds differences of linear layers and convolutions of the UNet and the text encoders",
            fix="Name the tuned model first, and the model that it was trained from",
        )


def _tell_of_the_rest(modules: dict[Target, nn.Module], ours: CheckpointParts, theirs: CheckpointParts) -> None:
    """Logs what differs and is not in the adapter."""
    left = [
        str(target)
        for target, module in modules.items()
        if isinstance(module, nn.Embedding) and _difference(ours, theirs, target, "weight") is not None
    ]
    vaes = ours.tensors["vae"], theirs.tensors["vae"]
    if any(name not in vaes[1] or not torch.equal(value, vaes[1][name]) for name, value in vaes[0].items()):
        left.append("the VAE")
    if left:
        log.warning("These differ too, and have no place in an adapter: %s", ", ".join(left))


def _settings(size: AdapterSize) -> dict[str, float]:
    return {"rank": float(size.rank)} if size.rank is not None else {"error": size.error or 0.0}
