"""Saving beside training: the state of its moment, one at a time, waiting for room where there is none."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from terminus.errors import UserError
from terminus.training.distributed.sharded_files import HeldRows, held
from terminus.training.monitor.journal import Journal, LogRow, read_journal
from terminus.training.recipe import Checkpoints
from terminus.training.saving import atomic_files, checkpoint
from terminus.training.saving import saver as saving
from terminus.training.saving.atomic_files import DiskFull, Unwritten
from terminus.training.saving.checkpoint import RunPosition
from terminus.training.saving.saver import Saver, require_checkpoint_room

MB = 1 << 20


def position(images: int) -> RunPosition:
    return RunPosition(images // 4, images, 1.0)


def tensors(value: float, size: int = 4) -> dict[str, dict[str, HeldRows]]:
    return {"weights": {"a": held(torch.full((size,), value))}}


def saver(folder: Path, flush: Callable[[], None] = lambda: None) -> Saver:
    return Saver(folder, Checkpoints(), flush)


def newest(folder: Path) -> tuple[int, float]:
    saved = checkpoint.latest(folder)
    assert saved is not None
    with saved.tensors("weights") as stored:
        return saved.position.images, stored.read("a")[0].item()


def test_what_is_written_is_the_state_of_the_moment_it_was_asked_for(tmp_path: Path):
    go = threading.Event()
    state = tensors(1.0)

    def waiting() -> None:
        go.wait(10)

    with saver(tmp_path, flush=waiting) as one:
        one.save(position(4), state)
        state["weights"]["a"].local.fill_(9.0)
        assert checkpoint.whole_checkpoints(tmp_path) == []
        go.set()
    assert newest(tmp_path) == (4, 1.0)


def test_one_at_a_time_in_order_and_pruned(tmp_path: Path):
    with saver(tmp_path) as one:
        for images in (4, 8, 12):
            one.save(position(images), tensors(images))
    assert [checkpoint.images_of(path) for path in checkpoint.whole_checkpoints(tmp_path)] == [8, 12]


def test_without_memory_for_a_copy_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert saving.free_memory() > MB
    monkeypatch.setattr(saving, "free_memory", lambda: 0)
    with saver(tmp_path) as one:
        one.save(position(4), tensors(1.0))
        assert newest(tmp_path) == (4, 1.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(saving, "SOON", (0.0, 0.0))
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.01)


@pytest.mark.usefixtures("hasty")
def test_what_the_thread_met_is_raised_in_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving, "LIMIT_SECONDS", 0.05)
    (tmp_path / "checkpoints").write_text("in the way")
    one = saver(tmp_path / "checkpoints")
    one.save(position(4), tensors(1.0))
    with pytest.raises(UserError, match="A checkpoint cannot be written"):
        one.join()


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 4 MB; skipped where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.02)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room there is."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(folder).f_bavail == 0
    return path


@pytest.mark.parametrize("foretold", [True, False], ids=["the file system says so", "found out while writing"])
def test_a_full_disk_is_waited_for(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, foretold: bool
):
    """The checkpoint before stays whole, training is not held up, and the newest state is what is saved in the end."""
    if not foretold:  # a quota, or a network file system
        monkeypatch.setattr(checkpoint, "require_room", lambda folder, size: None)
    folder = small_disk / "checkpoints"
    size = 200_000  # 0.8 MB
    with saver(folder) as one:
        one.save(position(4), tensors(1.0, size), wait=True)
        filler = fill(small_disk)
        one.save(position(8), tensors(2.0, size))
        while "Trying again" not in caplog.text:
            one.check()
        one.save(position(12), tensors(3.0, size))  # takes the place of the one that waits
        assert [checkpoint.images_of(path) for path in checkpoint.whole_checkpoints(folder)] == [4]
        with pytest.raises(DiskFull, match="What was saved before is untouched"):
            saver(folder).save(position(12), tensors(3.0, size), wait=True, patient=False)
        filler.unlink()
    assert newest(folder) == (12, 3.0)
    assert "the disk takes checkpoints again" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["images-000000000004", "images-000000000012"]


def test_no_room_for_too_long_ends_the_run(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving, "LIMIT_SECONDS", 0.05)
    fill(small_disk)
    one = saver(small_disk)
    one.save(position(4), tensors(1.0, 200_000))
    with pytest.raises(DiskFull):
        one.join()


def test_room_for_all_checkpoints_is_asked_for_before_the_first_step(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saving, "MARGIN_BYTES", 0)
    folder = small_disk / "a"
    require_checkpoint_room(folder, MB, keep=2, saves=9)
    with pytest.raises(DiskFull, match="GB are needed"):
        require_checkpoint_room(folder, 2 * MB, keep=2, saves=9)
    require_checkpoint_room(folder, 2 * MB, keep=2, saves=1)  # a run that saves once
    require_checkpoint_room(folder, 99 * MB, keep=2, saves=0)  # one that is done but for its model
    for images in (4, 8):  # those that are there need no more room
        checkpoint.save_checkpoint(folder, position(images), tensors(1.0))
    require_checkpoint_room(folder, 3 * MB, keep=2, saves=9)


def a_row(step: int) -> LogRow:
    """About 1 KB: the first to meet a full disk ends in the middle of a page that is there already."""
    return LogRow(step, 4 * step, 0, 0.5, 0.5, 1e-3, 0.1, {f"{i:03d}-band": 1 / 3 for i in range(40)}, 1.0, 4.0)


def test_the_log_goes_on_when_there_is_room_and_no_line_is_torn(small_disk: Path):
    with Journal(small_disk, 0) as journal:
        journal.write(a_row(1))
        filler = fill(small_disk)
        for step in range(2, 12):
            journal.write(a_row(step))
        with pytest.raises(DiskFull):
            journal.sync()
        filler.unlink()
        journal.write(a_row(12))
    assert [one["step"] for one in read_journal(small_disk / "log.jsonl")] == list(range(1, 13))


def test_rows_that_wait_for_room_are_undone_like_those_that_are_written(small_disk: Path):
    """The first of them may be on the disk in part: it is one row afterwards, and whole."""
    with Journal(small_disk, 0) as journal:
        journal.write(a_row(1))
        filler = fill(small_disk)
        for step in range(2, 12):
            journal.write(a_row(step))
        filler.unlink()
        journal.undo(5, 1)
        journal.write(a_row(12))
    rows = list(read_journal(small_disk / "log.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if row.get("undone") == 1] == list(range(6, 12))


class Failing:
    """A system call that fails so often before it works, for paths of checkpoints."""

    def __init__(self, real: Callable[..., object], number: int, times: float, done: bool = False) -> None:
        self.real, self.number, self.times, self.done = real, number, times, done

    def __get__(self, one: object, kind: type) -> Callable[..., object]:
        return partial(self, one)  # of a method

    def __call__(self, *arguments: object, **options: object) -> object:
        if self.times <= 0:
            return self.real(*arguments, **options)
        self.times -= 1
        if self.done:  # the server did it, and its answer was lost
            self.real(*arguments, **options)
        raise OSError(self.number, os.strerror(self.number))


CALLS = {
    "mkdir": (os, "mkdir"), "listdir": (os, "listdir"), "statvfs": (saving.checkpoint, "require_room"),
    "tensors": (saving.checkpoint.sharded_files, "save_file"), "fsync": (os, "fsync"), "rename": (os, "rename"),
    "text": (Path, "write_text"),
}  # fmt: skip


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", CALLS)
def test_one_error_costs_a_try_and_not_the_run(
    tmp_path: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with saver(tmp_path) as one:
        one.save(position(4), tensors(1.0), wait=True)
        place, name = CALLS[call]
        # The first call of mkdir is for a folder that is there, whose error pathlib ignores.
        failing = Failing(getattr(place, name), number, 2 if call == "mkdir" else 1)
        with monkeypatch.context() as broken:
            broken.setattr(place, name, failing)
            one.save(position(8), tensors(2.0), wait=True, patient=False)
        assert failing.times == 0
    assert newest(tmp_path) == (8, 2.0)
    assert f"A checkpoint cannot be written ({os.strerror(number)})" in caplog.text
    assert "the disk takes checkpoints again: saved at 8 images" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-000000000004", "images-000000000008"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO], ids=["asked twice", "an error after it was done"])
@pytest.mark.usefixtures("hasty")
def test_a_rename_that_was_done_and_reported_as_failed(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with saver(tmp_path) as one, monkeypatch.context() as broken:
        broken.setattr(os, "rename", Failing(os.rename, number, 1, done=True))
        one.save(position(4), tensors(1.0), wait=True)
    assert newest(tmp_path) == (4, 1.0)
    assert ("Trying again" in caplog.text) == (number == errno.EIO)


@pytest.mark.usefixtures("hasty")
def test_errors_without_end_end_the_run_and_all_else_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(saving, "LIMIT_SECONDS", 0.05)
    journal = Journal(tmp_path, 0)
    one = saver(tmp_path / "checkpoints", journal.sync)
    one.save(position(4), tensors(1.0), wait=True)
    journal.write(row(1))
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", Failing(os.rename, errno.EIO, float("inf")))
        one.save(position(8), tensors(2.0))
        with pytest.raises(Unwritten, match=r"Input/output error.*What was saved before is untouched"):
            one.join()
    journal.__exit__(None, None, None)
    assert newest(tmp_path / "checkpoints") == (4, 1.0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["images-000000000004"]
    assert [one["step"] for one in read_journal(tmp_path / "log.jsonl")] == [1]
    assert "gave up; the newest checkpoint is at 4 images" in caplog.text


@pytest.mark.usefixtures("hasty")
def test_a_signal_waits_for_a_few_tries_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "rename", Failing(os.rename, errno.EIO, float("inf")))
    with pytest.raises(Unwritten):
        saver(tmp_path).save(position(4), tensors(1.0), wait=True, patient=False)


def test_rows_wait_for_a_disk_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    class Broken:
        def __init__(self, file: Any) -> None:
            self.file, self.errors = file, 2

        def write(self, data: bytes) -> int:
            if self.errors > 0:
                self.errors -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self.file.write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    with Journal(tmp_path, 0) as journal:
        journal._file = Broken(journal._file)
        for step in (1, 2, 3):
            journal.write(row(step))
    assert "the log cannot be written (Input/output error): its rows wait in memory" in caplog.text
    assert [one["step"] for one in read_journal(tmp_path / "log.jsonl")] == [1, 2, 3]


def row(step: int) -> LogRow:
    return LogRow(step, 4 * step, 0, 0.5, 0.5, 1e-3, 0.1, {}, 1.0, 4.0)


def test_the_error_of_a_full_disk_is_known_by_its_number():
    assert atomic_files.is_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert not atomic_files.is_full(OSError(errno.EROFS, os.strerror(errno.EROFS)))
