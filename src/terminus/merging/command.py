"""`terminus merge` and `terminus extract`: what is done, and the lines that say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from terminus.merging.adapters import WrittenAdapter
from terminus.merging.arguments import AdapterSize, MergePlan
from terminus.merging.extraction import extract_difference
from terminus.merging.loras import merge_adapters, merge_into_model
from terminus.merging.models import merge_models
from terminus.model.convert import Converted


def merge(plan: MergePlan, out: Path, precision: str, shard_size: str | None) -> None:
    """Merges models, and prints what was written."""
    _print_model(merge_models(plan, out, precision, shard_size))


def merge_loras(
    model: str, loras: Sequence[tuple[Path, float]], out: Path, size: AdapterSize | None, precision: str,
    shard_size: str | None, decided: str | None,
) -> None:  # fmt: skip
    """Merges adapters into a model, or into each other where `size` is given, and prints what was written."""
    if size is None:
        _print_model(merge_into_model(model, loras, out, precision, shard_size, decided))
    else:
        _print_adapter(merge_adapters(model, loras, out, size, decided))


def extract_adapter(tuned: str, base: str, out: Path, size: AdapterSize) -> None:
    """Extracts an adapter, and prints what was written."""
    _print_adapter(extract_difference(tuned, base, out, size))


def _print_model(written: Converted) -> None:
    print(f"{written.target}\n{written.tensors} tensors, {written.size / 1e6:.1f} MB, says {written.says}")


def _print_adapter(written: WrittenAdapter) -> None:
    ranks = f"rank {written.most}" if written.least == written.most else f"ranks {written.least} to {written.most}"
    print(
        f"{written.folder}\n{written.modules} modules, {ranks}, {written.size / 1e6:.1f} MB, "
        f"{written.lost:.2%} of the difference is left out"
    )
