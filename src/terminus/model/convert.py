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
    """The files that were written, and what they say."""

    target: Path
    files: tuple[Path, ...]
    """All of them, the side-car included."""
    tensors: int
    size: int
    """Bytes of all files."""
    says: str
    """The prediction type that the result tells other programs: "epsilon", "v" or "v-zsnr"."""


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
    check_new(target, precision, shard_size)
    return write_checkpoint(read_checkpoint(source, ema), target, precision, shard_size)


def write_checkpoint(
    parts: CheckpointParts, target: Path, precision: Precision | str = "keep", shard_size: str | None = None
) -> Converted:
    """Writes a checkpoint as a folder or single file, once it is known to be whole; see `convert`."""
    # Make sure that it is whole, and rightly named, before a byte is written.
    single = target.suffix == ".safetensors"
    if single:
        sdnext.check_name(target, parts.record.schedule)
    check_networks(parts)
    _warn_of_lost_metadata(parts, single)

    # Write it under another name, which becomes the target's once everything is there.
    try:
        files = _write(parts, target, DTYPES.get(precision), shard_size)
    except OverflowError as error:
        raise UserError(
            str(error), where=parts.where, rule="A number that a precision cannot hold would be written as infinity",
            fix="Choose bf16, which has the range of fp32, or fp32",
        ) from error  # fmt: skip

    # Say what other programs will make of it.
    if single:
        sdnext.warn(target, parts.record.schedule, parts.configs["unet"].get("in_channels"), modelspec.is_sdxl(parts))
    return Converted(
        target,
        tuple(files),
        tensors=sum(len(tensors) for tensors in parts.tensors.values()),
        size=sum(path.stat().st_size for path in files),
        says=modelspec.prediction_type(parts.record.schedule),
    )


def check_new(target: Path, precision: str, shard_size: str | None) -> None:
    """UserError for a target that cannot be written, before anything is read."""
    refuse_pickle(target)
    if precision != "keep" and precision not in DTYPES:
        raise UserError(f"{precision!r:.40} is not a precision", rule=f"Known: keep, {', '.join(DTYPES)}")
    refuse_existing(target)
    if target.suffix != ".safetensors":
        return
    refuse_existing(target.with_suffix(".yaml"))
    if shard_size is not None:
        raise UserError(
            "A single file has no shards", where=str(target), fix="Leave the shard size out, or name a folder"
        )


def read_checkpoint(source: str | Path, ema: bool = False) -> CheckpointParts:
    """All of a model by its name (folder, .safetensors file, hub id, shipped); tensors are mapped, not yet read."""
    path = resolve(source)
    if path.is_file():
        return read_single_file(path, ema=ema)
    if ema:
        raise UserError(
            "A folder holds one set of weights",
            where=str(source),
            fix="Remove --ema",
        )
    return read_folder(path)


def _write(parts: CheckpointParts, target: Path, dtype: torch.dtype | None, shard_size: str | None) -> list[Path]:
    """Writes the folder, or the file and its side-car, whole or not at all; returns all files."""
    if target.suffix != ".safetensors":
        with fresh(target) as draft:
            write_folder(parts, draft, shard_size, dtype)
        return sorted(path for path in target.rglob("*") if path.is_file())
    files = [target]
    with fresh(target) as draft:
        write_single_file(parts, draft, dtype)
        # Within the file's block: if the side-car cannot be written, the file is not kept either.
        if modelspec.needs_side_car(parts):
            side_car = target.with_suffix(".yaml")
            with fresh(side_car) as text:
                text.write_text(modelspec.side_car(parts), encoding="utf-8")
            files.append(side_car)
    return files


def _warn_of_lost_metadata(parts: CheckpointParts, single: bool) -> None:
    """Warns of entries that neither we nor ModelSpec have a place for; a folder has a place for none of a file's."""
    written = modelspec.modelspec_metadata(parts if single else replace(parts, metadata={}))
    lost = sorted(parts.metadata.keys() - written.keys() - {OURS})
    if lost:
        more = ", ..." if len(lost) > 5 else ""
        names = ", ".join(ascii(name)[1:-1][:60] for name in lost[:5])
        log.warning("%s: its metadata holds %d entries that are not carried over: %s%s",
                    Path(parts.where).name, len(lost), names, more)  # fmt: skip
