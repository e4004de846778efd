"""Ways to run and write networks, by the words of a command line; checked before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, get_args

from terminus.errors import UserError
from terminus.model.naming import at_home, find_local, refuse_pickle

Compile = Literal["off", "blocks", "graphs"]
Offload = Literal["none", "model"]
StoredPrecision = Literal["keep", "fp16", "bf16", "fp32"]
DECISIONS = ("v-ztsnr", "v", "epsilon", "flow")
"""Answers of `inspect --fix --as` and `merge --as`: the keys of `model.record.DECISIONS`, in its order."""
_DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu)(:\d{1,3})?")
_SIZE = re.compile(r"\d+ ?(TB|GB|MB|KB)", re.IGNORECASE)


def check_choice(option: str, value: str, known: Collection[str]) -> None:
    """UserError for a word that this option does not know."""
    if value not in known:
        near = get_close_matches(value.lower(), known, n=1)
        fix = f"Did you mean `{near[0]}`?" if near else ""
        raise UserError(f"{option} {value}", rule=f"Known: {', '.join(known)}", fix=fix)


def check_running(compile: str, offload: str, device: str) -> None:
    """UserError for words that do not say how networks run."""
    check_choice("--compile", compile, get_args(Compile))
    check_choice("--offload", offload, get_args(Offload))
    if not _DEVICE.fullmatch(device):
        raise UserError(f"--device {device}", rule="A device is auto, cpu, cuda, or cuda:N for the N-th of several")


def check_target(
    target: Path, precision: str = "keep", shard_size: str | None = None, ema: bool = False, onto: str | None = None
) -> None:
    """UserError for a copy that cannot be written under this name, or like this."""
    check_choice("--precision", precision, get_args(StoredPrecision))
    if shard_size is not None and not _SIZE.fullmatch(shard_size):
        raise UserError(f"--shard-size {shard_size}", rule='Sizes are written as "5GB" or "500MB"')
    path = at_home(target)
    refuse_pickle(path)
    if path.is_symlink() or path.exists():
        raise UserError(
            "This exists already", where=str(path), rule="Nothing is overwritten", fix="Name another target"
        )
    if path.suffix == ".safetensors" and shard_size is not None:
        raise UserError(
            "A single file has no shards", where=str(path), fix="Leave the shard size out, or name a folder"
        )
    if onto is not None:
        _check_onto(path, onto, ema)


def _check_onto(target: Path, onto: str, ema: bool) -> None:
    """Checks the options for the differences that an adapter makes to a model."""
    find_local(onto)
    if ema:
        raise UserError("--ema is for models, --onto for an adapter", fix="Leave out --ema")
    if target.suffix != ".safetensors":
        raise UserError("Differences are one file", where=str(target), rule="Its name ends in .safetensors")
