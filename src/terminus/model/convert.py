"""`terminus convert`: a diffusers folder to a single file and back, tensor by tensor.

Nothing is trained, sampled or rounded on the way: unless another precision is asked for, folder -> file -> folder
gives every number back bit for bit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from terminus.errors import UserError
from terminus.model import modelspec, sdnext
from terminus.model.choices import StoredPrecision
from terminus.model.parts import CheckpointParts, check_networks, read_folder, write_folder
from terminus.model.single_file import OURS, read_single_file, write_single_file
from terminus.model.weights import at_home, refuse_pickle, resolve
from terminus.model.writing import fresh, refuse_existing

log = logging.getLogger("terminus")

Precision = StoredPrecision
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""By the word of the command line; `keep` is none of them."""


@dataclass(frozen=True)
class Converted:
    """What was written."""

    target: Path
    files: tuple[Path, ...]
    """All of them, the side-car included."""
    tensors: int
    size: int
    """Bytes of all files."""
    says: str
    """What the result tells other programs it predicts, and on which schedule."""


def convert(
    source: str | Path,
    target: str | Path,
    precision: Precision | str = "keep",
    shard_size: str | None = None,
    ema: bool = False,
) -> Converted:
    """Writes `source` (folder, .safetensors file, hub id, shipped name) as `target`, which must not exist yet.

    `target` is a single file if its name ends in `.safetensors`, with a `.yaml` beside it for velocity models of SDXL's
    shapes, else a diffusers folder. `shard_size` ("5GB") splits a folder's large networks; `ema` takes the moving
    average of the UNet that some single files hold. UserError for anything that is no SDXL model or would not survive.
    """
    target = at_home(target)
    single = target.suffix == ".safetensors"
    refuse_pickle(target)
    if precision != "keep" and precision not in DTYPES:
        raise UserError(f"{precision!r:.40} is not a precision", rule=f"Known: keep, {', '.join(DTYPES)}")
    for path in (target, *([target.with_suffix(".yaml")] if single else [])):
        refuse_existing(path)
    if single and shard_size is not None:
        raise UserError(
            "A single file has no shards", where=str(target), fix="Leave the shard size out, or name a folder"
        )
    parts = _read(source, ema)
    if single:
        sdnext.check_name(target, parts.record.schedule)
    check_networks(parts)
    _tell_of_lost(parts, single)
    side_car = target.with_suffix(".yaml") if single and modelspec.needs_side_car(parts) else None
    try:
        with fresh(target) as draft:
            if single:
                write_single_file(parts, draft, DTYPES.get(precision))
            else:
                write_folder(parts, draft, shard_size, DTYPES.get(precision))
            if side_car is not None:
                with fresh(side_car) as text:
                    text.write_text(modelspec.side_car(parts), encoding="utf-8")
    except OverflowError as error:
        raise UserError(
            str(error), where=parts.where, rule="A number that a precision cannot hold would be written as infinity",
            fix="Choose bf16, which has the range of fp32, or fp32",
        ) from error  # fmt: skip
    if single:
        sdnext.warn(target, parts.record.schedule, parts.configs["unet"].get("in_channels"), modelspec.is_sdxl(parts))
    files = [target] if single else sorted(path for path in target.rglob("*") if path.is_file())
    files += [] if side_car is None else [side_car]
    return Converted(
        target, tuple(files), sum(len(tensors) for tensors in parts.tensors.values()),
        sum(path.stat().st_size for path in files), modelspec.modelspec_metadata(parts)["modelspec.prediction_type"],
    )  # fmt: skip


def _read(source: str | Path, ema: bool) -> CheckpointParts:
    path = resolve(source)
    if path.is_file():
        return read_single_file(path, ema=ema)
    if ema:
        raise UserError(
            "A folder holds one set of weights",
            where=str(source),
            fix="Leave out the wish for the moving average (EMA)",
        )
    return read_folder(path)


def _tell_of_lost(parts: CheckpointParts, single: bool) -> None:
    """What a file says of itself and neither we nor ModelSpec have a place for; of a folder's, what it has none for."""
    written = modelspec.modelspec_metadata(parts if single else replace(parts, metadata={}))
    lost = sorted(parts.metadata.keys() - written.keys() - {OURS})
    if lost:
        more = ", ..." if len(lost) > 5 else ""
        names = ", ".join(ascii(name)[1:-1][:60] for name in lost[:5])
        log.warning("%s: its metadata holds %d entries that are not carried over: %s%s",
                    Path(parts.where).name, len(lost), names, more)  # fmt: skip
