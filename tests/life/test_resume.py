"""A run can be ended at any instant; the same command continues it, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from terminus.config.load import Loaded
from terminus.errors import Stopped, UserError
from terminus.training import run
from terminus.training.monitor import energy
from terminus.training.monitor.energy_counters import find_rapl
from terminus.training.recipe import Recipe

from .conftest import losses, same_end
from .forked import Forked

Build = Callable[..., Loaded[Recipe]]


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from terminus.config.load import load

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run.train(load(prepared / "recipe.yaml", Recipe, [f"run.dir={folder}", "training.loader_threads=0"]))
    return folder


def test_the_run_leaves_what_it_promises(undisturbed: Path):
    names = {path.name for path in undisturbed.iterdir()}
    assert {"recipe.yaml", "data.json", "log.jsonl", "facts.json", "checkpoints", "model", "tensorboard"} <= names
    assert len(losses(undisturbed)) == 12
    assert len(list((undisturbed / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("threads", [0, 2])
def test_stopped_by_a_signal(undisturbed: Path, recipe: Build, tmp_path: Path, threads: int, monkeypatch):
    """SIGTERM inside step 5 of 12, between two checkpoints."""
    real = run.run_loop

    def stopping(step, state, loader, settings, hooks):
        record = hooks.record

        def recording(row):
            record(row)
            if row.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        real(step, state, loader, settings, replace(hooks, record=recording))

    monkeypatch.setattr(run, "run_loop", stopping)
    with pytest.raises(Stopped):
        run.train(recipe(f"training.loader_threads={threads}"))
    assert (tmp_path / "run" / "checkpoints" / "images-000000000040").is_dir()
    monkeypatch.undo()
    run.train(recipe(f"training.loader_threads={threads}"))
    same_end(undisturbed, tmp_path / "run")


def test_energy_of_all_sessions_is_measured(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One joule a step: 5 before a signal, then a second session, in the folder that stands for RAPL's."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, content in {"name": "package-0", "max_energy_range_uj": "1000000000", "energy_uj": "0"}.items():
        (zone / name).write_text(content)
    monkeypatch.setattr(energy, "find_counters", lambda device, first: find_rapl(zone.parent))
    real = run.run_loop

    def counted(step, state, loader, settings, hooks):
        def recording(row):
            hooks.record(row)
            (zone / "energy_uj").write_text(str(int((zone / "energy_uj").read_text()) + 1_000_000))
            if row.step == 5 and not (tmp_path / "run" / "model").exists():
                os.kill(os.getpid(), signal.SIGTERM)

        real(step, state, loader, settings, replace(hooks, record=recording))

    monkeypatch.setattr(run, "run_loop", counted)
    with pytest.raises(Stopped):
        run.train(recipe())
    run.train(recipe())
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["energy"]["joules"] == {"RAPL": pytest.approx(12.0)}
    assert facts["energy"]["seconds"] >= facts["train_seconds"]


def test_killed_at_any_instant(undisturbed: Path, prepared: Path, tmp_path: Path):
    """kill -9 from outside, three times at different steps, then to the end."""
    folder = tmp_path / "run"
    command = ("train", str(prepared / "recipe.yaml"), f"run.dir={folder}")
    for rows in (2, 6, 9):
        process = Forked(*command)
        wait_for_rows(folder / "log.jsonl", rows, process)
        process.kill()
        code, said = process.end()
        assert code == -signal.SIGKILL, said
    code, said = Forked(*command).end()
    assert code == 0, said
    same_end(undisturbed, folder)


def wait_for_rows(log: Path, rows: int, process: Forked | subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b"\n") >= rows):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_signal_exits_with_75(prepared: Path, tmp_path: Path):
    folder = tmp_path / "run"
    recipe = str(prepared / "recipe.yaml")
    command = [sys.executable, "-m", "terminus", "train", recipe, f"run.dir={folder}", "training.images=4000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_rows(folder / "log.jsonl", 2, process)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "same command continues" in printed
    assert "Traceback" not in printed


def test_a_longer_run_continues_a_finished_one(undisturbed: Path, recipe: Build, tmp_path: Path):
    run.train(recipe("training.images=48"))
    run.train(recipe("training.images=96"))
    assert [row[0] for row in losses(tmp_path / "run")] == [row[0] for row in losses(undisturbed)]
    left = load_file(tmp_path / "run" / "checkpoints" / "images-000000000096" / "weights.safetensors")
    right = load_file(undisturbed / "checkpoints" / "images-000000000096" / "weights.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_another_recipe_in_the_same_folder_is_refused(recipe: Build):
    run.train(recipe("training.images=8"))
    with pytest.raises(UserError, match=r"training.seed was 0 and is now 7"):
        run.train(recipe("training.images=8", "training.seed=7"))


def test_two_runs_in_one_folder_are_refused(recipe: Build, tmp_path: Path):
    (tmp_path / "run").mkdir()
    short = recipe("training.images=8")
    with run._locked(tmp_path / "run"), pytest.raises(UserError, match="Another process"):
        run.train(short)
