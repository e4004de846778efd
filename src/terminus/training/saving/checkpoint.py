"""Checkpoints that are either whole or not there.

Protocol: write into a temporary folder, fsync every file, write the manifest (size and SHA-256 of each file), fsync,
rename, fsync the parent; only then prune. The newest folder whose manifest verifies is used; one that does not is
set aside under another name with a warning. At no instant is there less than one whole checkpoint, once there is one.
What the manifest does not name is not looked at, and a disk that cannot be read ends the run with everything in place.

One process writes `weights.safetensors` and its like; of several each writes what it holds into a folder of that name,
and the first one does the rest once all have. Any number of processes reads either.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch

from terminus.errors import UserError
from terminus.training.distributed import sharded_files
from terminus.training.distributed.process_group import World
from terminus.training.distributed.sharded_files import HeldRows, TensorFiles
from terminus.training.guards import Health
from terminus.training.saving.atomic_files import fsync, reading_file, rename, require_room, writing_file

log = logging.getLogger("terminus")

PARTS = ("weights", "average", "optimizer")
"""Of which a checkpoint consists."""

_MANIFEST = "manifest.json"
_PREFIX = "images-"
_NAME = re.compile(rf"{_PREFIX}\d{{12,}}")
_DAMAGED = re.compile(rf"{_NAME.pattern}-[0-9a-f]{{6}}\.bad")
_HALF = ".tmp-"
"""Begins the name of what is not yet, or no longer, a checkpoint."""
_PLACE = "position.json"


@dataclass(frozen=True)
class RunPosition:
    """The position of a run; everything random and every schedule follows from it."""

    step: int
    images: int
    seconds: float
    """Time spent in training steps so far, over all restarts."""
    skipped: int = 0
    """Steps that did not change the weights, or whose change was undone."""
    health: Health = field(default_factory=Health)


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose files agree with its manifest."""

    position: RunPosition
    folder: Path
    files: tuple[str, ...]
    """Names of the files in its manifest."""

    def tensors(self, part: str) -> TensorFiles:
        """The tensors of one part: "weights", "average" or "optimizer"."""
        named = (name for name in self.files if name == f"{part}.safetensors" or name.startswith(f"{part}/"))
        return TensorFiles([self.folder / name for name in sorted(named)])


Pieces = Mapping[str, Mapping[str, HeldRows]]
"""What this process adds to a checkpoint: by part ("weights", ...) and name."""


def save_checkpoint(folder: Path, position: RunPosition, pieces: Pieces, world: World | None = None) -> Path:
    """Writes a checkpoint of `folder`, unless it is there. All processes call it, each with what it holds.

    Raises `Unwritten`, in all of them, if one of them cannot write; nothing of it is left then.
    """
    world = world or World()
    target = folder / f"{_PREFIX}{position.images:012d}"
    # All say what they will add; the first makes the folder, or finds the checkpoint there.
    size = sum(world.gather(checkpoint_bytes(pieces)))
    temporary = world.once(lambda: _begin(target, pieces, size, world.size > 1))
    if temporary is None:
        return target
    try:
        # Each writes its part. An error travels as a value, so that nobody waits for a process that gave up.
        written = world.gather(_written(temporary, pieces, world))
        world.once(lambda: _finish(temporary, target, position, written))
    finally:
        if world.first:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def checkpoint_bytes(pieces: Pieces) -> int:
    """Bytes that this process adds to a checkpoint, near enough."""
    return sum(piece.size for some in pieces.values() for piece in some.values())


_Written = dict[str, list[int | str]] | UserError
"""The fingerprints of what a process wrote, or why it could not."""


def _begin(target: Path, pieces: Pieces, size: int, several: bool) -> Path | None:
    """An empty folder to write into; None if the checkpoint is there."""
    folder = target.parent
    with writing_file("A checkpoint", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if target.name in os.listdir(folder):
            fsync(folder)  # it may have got its name in a try that failed after that
            return None
        require_room(folder, size)
        temporary = folder / f"{_HALF}{uuid.uuid4().hex}"
        temporary.mkdir()
        for part in pieces if several else ():
            (temporary / part).mkdir()
    return temporary


def _written(temporary: Path, pieces: Pieces, world: World) -> _Written:
    one_of = f"{world.rank + 1:05d}-of-{world.size:05d}"
    files = [f"{part}.safetensors" if world.size == 1 else f"{part}/{one_of}.safetensors" for part in pieces]
    try:
        with writing_file("A checkpoint", temporary.parent):
            for name, some in zip(files, pieces.values(), strict=True):
                sharded_files.write_shards(temporary / name, some)
                fsync(temporary / name)
            # Read back for the manifest: it says what the disk holds.
            return {name: _fingerprint(temporary / name) for name in files}
    except UserError as error:
        return error


def _finish(temporary: Path, target: Path, position: RunPosition, written: list[_Written]) -> None:
    # If one process could not write, there is no checkpoint.
    for one in written:
        if isinstance(one, UserError):
            raise one
    with writing_file("A checkpoint", temporary.parent):
        # The position, and the manifest of all files, each on the disk before the next.
        place = temporary / _PLACE
        place.write_text(json.dumps(asdict(position)), encoding="utf-8")
        fsync(place)
        manifest = {place.name: _fingerprint(place)}
        for one in written:
            manifest |= {} if isinstance(one, UserError) else one
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        fsync(temporary / _MANIFEST)
        # The names within the folders, and only then its own.
        for inner in temporary.iterdir():
            if inner.is_dir():
                fsync(inner)
        fsync(temporary)
        rename(temporary, target)
        fsync(target.parent)


def latest(folder: Path, last_good: int | None = None) -> Saved | None:
    """The newest checkpoint that verifies, or None if the run has none yet.

    With `last_good`, the newest that was saved after a good step up to that one, or None. `UserError` if the disk
    cannot be read, or if every checkpoint is damaged.
    """
    _remove_half_written(folder)
    # From the newest on; a damaged one is set aside, and the one before it tried.
    for candidate in reversed(whole_checkpoints(folder)):
        saved = _checked(candidate)
        if isinstance(saved, Saved):
            if last_good is None or _is_good(saved.position, last_good):
                return saved
        else:
            _set_aside(candidate, saved)
    if last_good is None and any(_DAMAGED.fullmatch(name) for name in _names(folder)):
        raise UserError(
            "Every checkpoint of this run is damaged",
            where=str(folder),
            rule="A run is never restarted over the checkpoints of an older one",
            fix="Restore a checkpoint, or give the new run another run.dir",
        )
    return None


def _remove_half_written(folder: Path) -> None:
    for name in _names(folder):
        if name.startswith(_HALF):
            shutil.rmtree(folder / name, ignore_errors=True)


def _set_aside(damaged: Path, problem: str) -> None:
    """Renames it, for the user to look at."""
    aside = damaged.with_name(f"{damaged.name}-{uuid.uuid4().hex[:6]}.bad")
    with writing_file("A damaged checkpoint's other name", damaged):
        rename(damaged, aside)
    log.warning("checkpoint %s is damaged (%s); set aside as %s", damaged.name, problem, aside.name)


def _is_good(position: RunPosition, last_good: int) -> bool:
    return position.step <= last_good and position.health.failed == 0


def _position(text: str, where: Path) -> RunPosition:
    try:
        fields = json.loads(text)
        health = fields.pop("health", {})  # checkpoints of before there were guards have none
        pairs = {key: tuple((one, two) for one, two in health.get(key, ())) for key in ("recent", "returns")}
        return RunPosition(**fields, health=Health(health.get("failed", 0), **pairs))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"This checkpoint is intact, but this version cannot read its position ({error})",
            where=str(where / _PLACE),
            rule="A run continues with the version of terminus that it was begun with, or a newer one",
            fix="Install that version, or move the checkpoint away to continue from the one before it",
        ) from error


def _checked(folder: Path) -> Saved | str:
    """The checkpoint, or how it differs from its manifest. `UserError` if the disk does not let us see."""
    with reading_file("A checkpoint", folder):
        try:
            manifest: object = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if not isinstance(manifest, dict) or _PLACE not in manifest:
                return "its manifest names no position"
            for name, expected in cast("dict[str, object]", manifest).items():
                if not _matches(folder / name, expected):
                    return f"{name} does not match its manifest"
            position = _position((folder / _PLACE).read_text(encoding="utf-8"), folder)
            return Saved(position, folder, tuple(cast("dict[str, object]", manifest)))
        # A missing file is damage; any other error of the disk is not, and leaves through `reading_file`.
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            return f"{error.strerror}: {os.path.relpath(error.filename or folder, folder)}"
        except (ValueError, RecursionError):
            return "its manifest is not readable"


def _matches(file: Path, expected: object) -> bool:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) or not isinstance(expected, list):
        return False
    # The size first: that needs no reading.
    return status.st_size == expected[0] and _fingerprint(file) == expected


def _fingerprint(file: Path) -> list[int | str]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def prune(folder: Path, keep: int, milestones: int | None = None) -> None:
    """Removes all but the newest `keep`, and the first at or after each multiple of `milestones` images.

    What cannot be removed stays until the next time, with a warning.
    """
    spared: set[int] = set()
    try:
        there = whole_checkpoints(folder)
    except UserError as error:
        log.warning("%s Old checkpoints stay", error)
        return
    for old in there[:-keep]:
        # The first one after each multiple of `milestones` stays.
        passed = images_of(old) // milestones if milestones else 0
        if passed and passed not in spared:
            spared.add(passed)
            continue
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a good name.
        doomed = folder / f"{_HALF}{uuid.uuid4().hex}"
        try:
            rename(old, doomed)
        except OSError as error:
            log.warning("checkpoint %s cannot be removed (%s)", old.name, error.strerror or error)
            continue
        shutil.rmtree(doomed, ignore_errors=True)


def images_of(path: Path) -> int:
    """Images seen by a checkpoint, as its name says."""
    return int(path.name.removeprefix(_PREFIX))


def copy_into(targets: Mapping[str, HeldRows], stored: TensorFiles, some: bool = False) -> None:
    """Restores weights or averages in place, so that whatever points at them keeps doing so.

    With `some`, the targets are a part of what was stored. Raises `UserError` for a checkpoint of another network.
    """
    theirs = {name: stored.shape(name) for name in stored.names}
    ours = {name: target.shape for name, target in targets.items()}
    # The same names on both sides or, with `some`, ours among theirs.
    names = ours.keys() if some else theirs.keys() | ours.keys()
    if odd := sorted(name for name in names if theirs.get(name) != ours.get(name)):
        raise UserError(
            f"This checkpoint is of another network ({len(odd)} tensors differ, the first is {odd[0]})",
            rule="A run continues with the networks that it was begun with",
            fix="Restore the model that the run was begun from, or give the new run another run.dir",
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.local.copy_(stored.read(name, target.rows))


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were not set aside, oldest first; what is called otherwise is not ours.

    `UserError` if the disk cannot be read.
    """
    return sorted((folder / name for name in _names(folder) if _NAME.fullmatch(name)), key=images_of)


def _names(folder: Path) -> list[str]:
    with reading_file("The checkpoints", folder):
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
