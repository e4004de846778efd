"""Folders and files that are whole or not there, and what a user reads when a disk fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.summary.writer import event_file_writer

from terminus.errors import UserError
from terminus.training.monitor.journal import Journal, LogRow, read_journal
from terminus.training.saving.atomic_files import DiskFull, whole_folder, writing_file


def row(step: int) -> LogRow:
    return LogRow(step, 4 * step, 0, 0.5, 0.5, 1e-3, float("nan") if step == 2 else 0.1, {}, 1.0, 4.0)


def half_written(target: Path) -> None:
    with whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise UserError("half")


def fill_the_disk() -> None:
    with writing_file("The log", Path("/dev/full")), open("/dev/full", "w") as file:
        file.write("x")


def test_a_folder_is_replaced_at_the_end_or_not_at_all(tmp_path: Path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with whole_folder(target) as folder:
            (folder / "weights").write_text(content)
    with pytest.raises(UserError, match="half"):
        half_written(target)
    assert (target / "weights").read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_kill_left_behind_goes_with_the_next(tmp_path: Path):
    (tmp_path / ".model-0123").mkdir()
    with whole_folder(tmp_path / "model"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_one_paragraph():
    with pytest.raises(UserError, match=r"/dev/full: The log cannot be written \(No space left on device\)"):
        fill_the_disk()


def test_a_log_on_a_full_disk_is_the_user_s_to_solve_and_continues(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with Journal(tmp_path, 0) as journal:
        journal.write(row(1))
    journal = Journal(tmp_path, 1)
    journal._file.close()
    journal._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    journal.write(row(2))
    assert "its rows wait in memory" in caplog.text
    with pytest.raises(DiskFull, match="The log cannot be written"):
        journal.__exit__(None, None, None)
    with Journal(tmp_path, 1) as journal:
        journal.write(row(2))
    assert [one["step"] for one in read_journal(tmp_path / "log.jsonl")] == [1, 2]


def test_the_log_is_json_also_where_numbers_are_not_finite(tmp_path: Path):
    with Journal(tmp_path, 0) as journal:
        journal.write(row(2))
    text = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in text
    assert '"gradient_norm": null' in text


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_tensorboard_shows_the_start_under_the_run_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Files are named by second and by a count of the process, and read in the order of their names: within this one
    # second, the tenth of a process would come before its ninth. Runs that continue are other processes.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    measured = replace(row(1), validation={"all": 0.25})
    with Journal(tmp_path, 0, "A run / of mine") as journal:
        journal.write(measured, {"all": 0.5})
    with Journal(tmp_path, 0, "A run / of mine") as journal:  # killed before the first checkpoint, and begun again
        journal.write(measured, {"all": 0.5})
    with Journal(tmp_path, 1, "A run / of mine") as journal:
        journal.write(replace(row(2), validation={"all": 0.125}))
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["A run _ of mine"]
    curve = scalars(tmp_path / "tensorboard" / "A run _ of mine", "validation/all")
    assert curve == [(0, 0.5), (1, 0.25), (2, 0.125)]


@pytest.mark.parametrize("name", ["..", "a/../../b", "é" * 300, "", "\x1b[2J", "\0"])
def test_no_name_leads_out_of_the_run_s_folder(name: str, tmp_path: Path):
    with Journal(tmp_path, 0, name) as journal:
        journal.write(row(1))
    written = [path for path in tmp_path.rglob("events.*")]
    assert written
    assert all(len(path.relative_to(tmp_path / "tensorboard").parts) <= 2 for path in written)


DAMAGE = {
    "zeros": b"\x00\x00\x00\n", "half a row": b'{"step": 2, "loss\n', "not UTF-8": b"\xff\xfe\n", "a list": b"[2]\n",
    "another object": b"{}\n", "a step of text": b'{"step": "2"}\n', "deep": b"[" * 100_000 + b"\n",
    "an earlier step": b'{"step": 1}\n',
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_of_the_log_costs_itself(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + DAMAGE[damage] + b'{"step": 3}\n{"step": 4}\n{"step": 5')
    assert [one["step"] for one in read_journal(path)] == [1, 3, 4]
    assert "log.jsonl:2 is not readable; 1 such lines are left out" in caplog.text
    with Journal(tmp_path, 3):
        pass
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'


def test_a_log_that_lacks_rows_of_the_checkpoint_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with Journal(tmp_path, 0) as journal:
        for step in (1, 2, 3):
            journal.write(row(step))
    with Journal(tmp_path, 2):
        assert "lost" not in caplog.text
    with Journal(tmp_path, 3):
        assert "has 2 rows of 3 steps" in caplog.text
