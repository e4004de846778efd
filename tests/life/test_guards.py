"""A step without a number changes nothing, and many take the run back: against runs that left those steps out."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from terminus.config.load import Loaded, load
from terminus.errors import Stopped, UserError
from terminus.training import guards, run, run_hooks
from terminus.training.recipe import Recipe
from terminus.training.saving.checkpoint import whole_checkpoints

from .conftest import losses, same_end, wrap

Build = Callable[..., Loaded[Recipe]]


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The loss of one sample in the first micro-batch of these steps (from 1) is not a number."""

    def change(batch, step, losses):
        first = batch.positions[0] % 8 == 0
        if step + 1 in steps and first:
            bad = losses.weighted * torch.tensor([1.0, float("nan"), 1.0, 1.0])
            return replace(losses, weighted=bad)
        return losses

    wrap(monkeypatch, change)


def leave_out(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """These steps (from 1) are computed and their update is not made."""
    real = run.run_loop

    def loop(step, state, loader, settings, hooks):
        update, apply = state.average.update, state.optimizer.step
        state.optimizer.step = lambda: None if state.position.step + 1 in steps else apply()
        state.average.update = lambda images, n: None if images // n in steps else update(images, n)
        real(step, state, loader, settings, hooks)

    monkeypatch.setattr(run, "run_loop", loop)


def same_tensors(one: Path, two: Path) -> None:
    left, right = (whole_checkpoints(folder / "checkpoints")[-1] for folder in (one, two))
    for name in ("weights", "average", "optimizer"):
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (left, right))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "PATIENCE", 3)


@pytest.fixture(scope="module")
def troubled(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with three bad steps in a row, 6 to 8, that nothing stopped, and what it said."""
    folder, said = tmp_path_factory.mktemp("troubled") / "run", io.StringIO()
    logger, handler = logging.getLogger("terminus"), logging.StreamHandler(said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "PATIENCE", 3)
        patch.setattr(logger, "handlers", [handler])
        poison(patch, 6, 7, 8)
        run.train(load(prepared / "recipe.yaml", Recipe, [f"run.dir={folder}"]))
    return folder, said.getvalue()


def test_a_step_that_is_no_number_is_as_if_it_had_been_left_out(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, 5)
    run.train(recipe())
    monkeypatch.undo()
    leave_out(monkeypatch, 5)
    run.train(recipe(f"run.dir={tmp_path / 'without'}"))
    same_tensors(tmp_path / "run", tmp_path / "without")
    (row,) = [row for row in rows(tmp_path / "run") if "skipped" in row]
    assert (row["step"], row["reason"], row["loss"]) == (5, "not finite", None)
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert (facts["skipped_steps"], facts["undone_steps"]) == (1, 0)


def test_many_take_the_run_back_to_a_good_checkpoint(
    recipe: Build, troubled: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Saved at step 4, bad in 6 to 8: steps 5 to 8 are left out with their data, and the rest is as ever."""
    folder, said = troubled
    leave_out(monkeypatch, 5, 6, 7, 8)
    run.train(recipe(f"run.dir={tmp_path / 'without'}"))
    same_tensors(folder, tmp_path / "without")
    assert "back to the weights of step 4, leaving out steps 5 to 8" in said
    log = rows(folder)
    assert [row["step"] for row in log] == list(range(1, 13))
    assert [row["step"] for row in log if row.get("undone") == 1] == [5, 6, 7, 8]
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["skipped_steps"], facts["undone_steps"]) == (4, 4)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("step", [7, 8, 9], ids=["within the trouble", "as the run goes back", "after it"])
def test_stopped_around_a_return(
    recipe: Build, troubled: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    """A stop within the trouble saves without being a place to return to."""
    poison(monkeypatch, 6, 7, 8)
    real = run_hooks.RunHooks.record

    def record(self, row):
        real(self, row)
        if row.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_hooks.RunHooks, "record", record)
        with pytest.raises(Stopped):
            run.train(recipe())
    assert len(losses(tmp_path / "run")) == step
    run.train(recipe())
    same_end(troubled[0], tmp_path / "run")


@pytest.mark.usefixtures("short")
def test_trouble_that_returns_at_once_goes_further_back_and_ends_in_the_end(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, *range(10, 100))
    with pytest.raises(UserError, match="3 steps in a row were left out, the last is step 18, and the run went back 2"):
        run.train(recipe("training.images=800"))
    position = json.loads((whole_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "position.json").read_text())
    assert position["health"]["returns"] == [[8, 12], [4, 15]]
    assert position["skipped"] == 11


@pytest.mark.usefixtures("short")
def test_without_a_checkpoint_there_is_no_way_back(recipe: Build, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, 1, 2, 3)
    with pytest.raises(UserError, match="3 steps in a row were left out, the last is step 3"):
        run.train(recipe())


def test_a_device_without_room_is_one_paragraph(recipe: Build, monkeypatch: pytest.MonkeyPatch):
    def change(batch, step, losses):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    wrap(monkeypatch, change)
    with pytest.raises(UserError, match=r"memory is full \(CUDA out of memory\)"):
        run.train(recipe())
