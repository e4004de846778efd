"""The checkpoint protocol: whole or not there, verified before use, never fewer than one."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from terminus.errors import UserError
from terminus.training.distributed.sharded_files import TensorFiles, held, write_shards
from terminus.training.guards import Health
from terminus.training.saving import checkpoint
from terminus.training.saving.checkpoint import Pieces, RunPosition


def tensors(value: float) -> Pieces:
    return {"weights": {"a": held(torch.full((3,), value))}, "average": {"a": held(torch.zeros(3))}, "optimizer": {}}


def loaded(saved: checkpoint.Saved, part: str) -> dict[str, torch.Tensor]:
    with saved.tensors(part) as stored:
        return dict(stored.items())


def save(folder: Path, images: int, keep: int = 2) -> Path:
    path = checkpoint.save_checkpoint(folder, RunPosition(images // 4, images, 1.5), tensors(images))
    checkpoint.prune(folder, keep)
    return path


def test_round_trip_and_pruning(tmp_path: Path):
    for images in (4, 8, 12):
        save(tmp_path, images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-000000000008", "images-000000000012"]
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.position == RunPosition(3, 12, 1.5)
    assert torch.equal(loaded(saved, "weights")["a"], torch.full((3,), 12.0))


def test_milestones_stay(tmp_path: Path):
    """The first at or after each multiple of 10, and the newest two; a stop between two saves makes no more of them."""
    for images in (4, 8, 12, 16, 18, 20, 24, 36, 40):
        checkpoint.save_checkpoint(tmp_path, RunPosition(images // 4, images, 1.5), tensors(images))
        checkpoint.prune(tmp_path, 2, milestones=10)
    assert [checkpoint.images_of(path) for path in checkpoint.whole_checkpoints(tmp_path)] == [12, 20, 36, 40]


def test_the_guards_memory_comes_back_bit_for_bit(tmp_path: Path):
    health = Health(2, ((0.1, 1 / 3), (1e-300, 7.0)), ((4, 9),))
    checkpoint.save_checkpoint(tmp_path, RunPosition(1, 4, 0.1, 2, health), tensors(4))
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.position == RunPosition(1, 4, 0.1, 2, health)


def test_only_a_good_one_is_gone_back_to(tmp_path: Path):
    for step, failed in ((1, 0), (2, 0), (3, 1), (4, 0)):
        checkpoint.save_checkpoint(tmp_path, RunPosition(step, 4 * step, 1.0, health=Health(failed)), tensors(step))
    steps = [saved.position.step for limit in (4, 3, 1) if (saved := checkpoint.latest(tmp_path, last_good=limit))]
    assert steps == [4, 2, 1]
    assert checkpoint.latest(tmp_path, last_good=0) is None


def test_a_checkpoint_of_before_there_were_guards(tmp_path: Path):
    folder = save(tmp_path, 4)
    fields = json.loads((folder / "position.json").read_text())
    del fields["health"]
    (folder / "position.json").write_text(json.dumps(fields))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["position.json"] = checkpoint._fingerprint(folder / "position.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.position == RunPosition(1, 4, 1.5)


def test_none_yet_is_none(tmp_path: Path):
    assert checkpoint.latest(tmp_path / "absent") is None


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "missing file", "missing manifest", "garbage manifest", "empty"]
)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(tmp_path: Path, damage: str, caplog):
    save(tmp_path, 4)
    newest = save(tmp_path, 8)
    target = newest / "weights.safetensors"
    match damage:
        case "flip":
            data = bytearray(target.read_bytes())
            data[-1] ^= 1
            target.write_bytes(bytes(data))
        case "truncate":
            target.write_bytes(target.read_bytes()[:-1])
        case "missing file":
            target.unlink()
        case "missing manifest":
            (newest / "manifest.json").unlink()
        case "empty":
            (newest / "manifest.json").write_text("{}")
        case _:
            (newest / "manifest.json").write_text("[1]")
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.position.images == 4
    assert "set aside" in caplog.text
    assert [path.suffix for path in tmp_path.glob("*.bad")] == [".bad"]


def test_all_damaged_never_starts_anew(tmp_path: Path):
    (save(tmp_path, 4) / "manifest.json").unlink()
    with pytest.raises(UserError, match="never restarted over the checkpoints"):
        checkpoint.latest(tmp_path)


def test_what_a_kill_left_behind_is_removed(tmp_path: Path):
    save(tmp_path, 4)
    (tmp_path / ".tmp-half").mkdir()
    (tmp_path / ".tmp-half" / "weights.safetensors").write_bytes(b"half")
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert not (tmp_path / ".tmp-half").exists()


def test_a_failed_save_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 4)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.sharded_files, "write_shards", full)
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000000004"]


def test_the_tensors_of_another_network_are_refused_and_nothing_is_broadcast(tmp_path: Path):
    target = torch.zeros(3)
    for number, other in enumerate(({"a": torch.ones(1)}, {"b": torch.ones(3)}, {})):
        write_shards(tmp_path / f"{number}", {name: held(value) for name, value in other.items()})
        with TensorFiles([tmp_path / f"{number}"]) as stored, pytest.raises(UserError, match="of another network"):
            checkpoint.copy_into({"a": held(target)}, stored)
    assert not target.any()


# What is no damage


@pytest.mark.parametrize(
    "name", [".DS_Store", ".nfs000000000001", "._weights.safetensors", "weights/._x.safetensors", "notes/why.txt"]
)
def test_foreign_files_are_none_of_its_business(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    newest = save(tmp_path, 8)
    (newest / name).parent.mkdir(exist_ok=True)
    (newest / name).write_bytes(b"foreign")
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.folder == newest
    assert torch.equal(loaded(saved, "weights")["a"], torch.full((3,), 8.0))
    assert not caplog.text


def test_a_copy_beside_it_is_no_checkpoint(tmp_path: Path):
    for images in (80, 112, 120):
        save(tmp_path, images, keep=9)
    backup = tmp_path / "images-000000000112-backup"
    shutil.copytree(tmp_path / "images-000000000112", backup)
    (tmp_path / "images-last").mkdir()
    assert [checkpoint.images_of(path) for path in checkpoint.whole_checkpoints(tmp_path)] == [80, 112, 120]
    checkpoint.prune(tmp_path, keep=1)
    assert [checkpoint.images_of(path) for path in checkpoint.whole_checkpoints(tmp_path)] == [120]
    assert (backup / "manifest.json").is_file()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.position.images == 120


def untouched(folder: Path, match: str) -> None:
    """The error is told, and nothing was renamed or removed."""
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(UserError, match=match) as caught:
        checkpoint.latest(folder)
    assert "nothing was renamed, removed or restarted" in str(caught.value)
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EPERM, errno.ETIMEDOUT])
@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json", "position.json"])
def test_an_error_of_the_disk_is_no_damage(tmp_path: Path, number: int, file: str, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 4)
    save(tmp_path, 8)
    real = Path.open

    def failing(path: Path, *arguments: object, **options: object) -> object:
        if path.name == file:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)  # pyright: ignore

    monkeypatch.setattr(Path, "open", failing)
    untouched(tmp_path, rf"A checkpoint cannot be read \({os.strerror(number)}\)")


def test_a_disk_that_really_fails(tmp_path: Path):
    """Address 0 of this process cannot be read: the kernel answers EIO."""
    newest = save(tmp_path, 8)
    (newest / "manifest.json").unlink()
    (newest / "manifest.json").symlink_to("/proc/self/mem")
    untouched(tmp_path, "Input/output error")


def test_no_more_files_may_be_open(tmp_path: Path):
    save(tmp_path, 8)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(UserError, match="Too many open files"):
            checkpoint.latest(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000000008"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """File modes mean nothing to root."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("shut", ["", "images-000000000008", "images-000000000008/weights.safetensors"])
def test_what_may_not_be_read_is_no_damage_and_no_beginning(shut: str):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoints"
        save(folder, 8)
        for path in (Path(name), folder, *folder.rglob("*")):
            path.chmod(0o755)
        (folder / shut).chmod(0)
        with as_nobody(), pytest.raises(UserError, match="Permission denied"):
            checkpoint.latest(folder)
        (folder / shut).chmod(0o755)
        assert [path.name for path in folder.iterdir()] == ["images-000000000008"]


def test_one_of_a_newer_version_is_no_damage(tmp_path: Path):
    folder = save(tmp_path, 4)
    fields = json.loads((folder / "position.json").read_text()) | {"phase": 2}
    (folder / "position.json").write_text(json.dumps(fields))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["position.json"] = checkpoint._fingerprint(folder / "position.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is intact, but this version cannot read its position"):
        checkpoint.latest(tmp_path)
    assert folder.is_dir()


def test_old_ones_that_cannot_be_removed_stay(tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture):
    for images in (4, 8, 12):
        save(tmp_path, images, keep=9)
    monkeypatch.setattr(os, "rename", failing_once := Failing(os.rename, errno.EBUSY, times=1))
    checkpoint.prune(tmp_path, keep=1)
    assert failing_once.times == 0
    assert [checkpoint.images_of(path) for path in checkpoint.whole_checkpoints(tmp_path)] == [4, 12]
    assert "images-000000000004 cannot be removed (Device or resource busy)" in caplog.text


class Failing:
    """A system call that fails so often, with an error, before it works."""

    def __init__(self, real, number: int, times: int) -> None:
        self.real, self.number, self.times = real, number, times

    def __call__(self, *arguments: object, **options: object) -> object:
        if self.times > 0:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number), str(arguments[0]))
        return self.real(*arguments, **options)
