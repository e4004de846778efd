"""Checkpoints that are either whole or not there.

Protocol: write into a temporary folder, fsync every file, write the manifest (size and SHA-256 of each file), fsync,
rename, fsync the parent; only then prune. The newest folder whose manifest verifies is used; one that does not is
set aside under another name with a warning. At no instant is there less than one whole checkpoint, once there is one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from terminus.errors import UserError
from terminus.training.disk import fsync, require_room, writing
from terminus.training.guards import Health

log = logging.getLogger("terminus")

_MANIFEST = "manifest.json"
_PREFIX = "images-"


@dataclass(frozen=True)
class Position:
    """Where a run stands; everything random and every schedule follows from it."""

    step: int
    images: int
    seconds: float
    """Time spent in training steps so far, over all restarts."""
    skipped: int = 0
    """Steps that did not change the weights, or whose change was undone."""
    health: Health = field(default_factory=Health)


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint."""

    position: Position
    tensors: dict[str, dict[str, Tensor]]
    """By file: "weights", "average", "optimizer"."""


def save(folder: Path, position: Position, tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Writes a checkpoint of `folder`, unless it is there."""
    target = folder / f"{_PREFIX}{position.images:012d}"
    if target.exists():
        return target
    with writing("A checkpoint", folder):
        folder.mkdir(parents=True, exist_ok=True)
        require_room(folder, size_of(tensors))
        _write(folder, target, position, tensors)
    return target


def size_of(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes that a checkpoint of these takes, near enough."""
    return sum(value.numel() * value.element_size() for values in tensors.values() for value in values.values())


def _write(folder: Path, target: Path, position: Position, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    temporary = folder / f".tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        for name, values in tensors.items():
            plain = {key: value.detach().cpu().contiguous() for key, value in values.items()}
            save_file(plain, temporary / f"{name}.safetensors")
        (temporary / "position.json").write_text(json.dumps(asdict(position)), encoding="utf-8")
        manifest = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        for file in temporary.iterdir():
            fsync(file)
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        fsync(temporary / _MANIFEST)
        fsync(temporary)
        temporary.rename(target)
        fsync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def latest(folder: Path, last_good: int | None = None) -> Saved | None:
    """The newest checkpoint that verifies, or None if the run has none yet.

    With `last_good`, the newest that was saved after a good step up to that one, or None.
    """
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    for candidate in reversed(whole(folder)):
        problem = _problem(candidate)
        if problem is None:
            if last_good is None or _is_good(_position(candidate), last_good):
                return _read(candidate)
            continue
        aside = candidate.with_name(f"{candidate.name}-{uuid.uuid4().hex[:6]}.bad")
        candidate.rename(aside)
        log.warning("checkpoint %s is damaged (%s); set aside as %s", candidate.name, problem, aside.name)
    if last_good is None and any(folder.glob(f"{_PREFIX}*.bad")):
        raise UserError(
            "Every checkpoint of this run is damaged",
            where=str(folder),
            rule="A run never starts anew over an older one",
            fix="Restore a checkpoint, or give the new run another run.dir",
        )
    return None


def _is_good(position: Position, last_good: int) -> bool:
    return position.step <= last_good and position.health.failed == 0


def _read(folder: Path) -> Saved:
    return Saved(_position(folder), {file.stem: load_file(file) for file in folder.glob("*.safetensors")})


def _position(folder: Path) -> Position:
    fields = json.loads((folder / "position.json").read_text(encoding="utf-8"))
    health = fields.pop("health", {})  # checkpoints of before there were guards have none
    pairs = {key: tuple((one, two) for one, two in health.get(key, ())) for key in ("recent", "returns")}
    return Position(**fields, health=Health(health.get("failed", 0), **pairs))


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = {file.name for file in folder.iterdir()} - {_MANIFEST}
        if not files or files != manifest.keys():
            return "its files are not those of its manifest"
        for name, expected in manifest.items():
            if _fingerprint(folder / name) != expected:
                return f"{name} does not match its manifest"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _fingerprint(file: Path) -> list[int | str]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def prune(folder: Path, keep: int, milestones: int | None = None) -> None:
    """Removes all but the newest `keep`, and the first at or after each multiple of `milestones` images."""
    spared: set[int] = set()
    for old in whole(folder)[:-keep]:
        passed = images_of(old) // milestones if milestones else 0
        if passed and passed not in spared:
            spared.add(passed)
            continue
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a good name.
        doomed = folder / f".tmp-{uuid.uuid4().hex}"
        old.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def images_of(path: Path) -> int:
    """Images seen by a checkpoint, as its name says."""
    return int(path.name.removeprefix(_PREFIX))


def copy_into(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Restores weights or averages in place, so that whatever points at them keeps doing so."""
    theirs, ours = ({name: list(value.shape) for name, value in some.items()} for some in (tensors, targets))
    if theirs != ours:
        odd = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        raise UserError(
            f"This checkpoint is of another network ({len(odd)} tensors differ, the first is {odd[0]})",
            rule="A run continues with the networks that it was begun with",
            fix="Restore the model that the run was begun from, or give the new run another run.dir",
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def whole(folder: Path) -> list[Path]:
    """The checkpoints that were not set aside, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.suffix != ".bad")
