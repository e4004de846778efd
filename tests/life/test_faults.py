"""Faults of the disk around a whole run: what can be repaired is, the rest is one paragraph, and no number changes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from terminus.config.load import Loaded
from terminus.data.batch import Batch
from terminus.errors import UserError
from terminus.training.monitor.sessions import read_sessions
from terminus.training.recipe import Recipe
from terminus.training.run import train
from terminus.training.saving import saver
from terminus.training.saving.checkpoint import whole_checkpoints
from terminus.training.step import StepLoss

from .conftest import losses, wrap

Build = Callable[..., Loaded[Recipe]]
SHORT = ("training.images=48", "training.learning_rate.period_images=80")


@pytest.fixture(scope="module")
def straight(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing disturbed."""
    from terminus.config.load import load

    folder = tmp_path_factory.mktemp("straight") / "run"
    train(load(prepared / "recipe.yaml", Recipe, [f"run.dir={folder}", *SHORT]))
    return folder


def same_weights(one: Path, two: Path) -> None:
    left, right = (load_file(whole_checkpoints(run / "checkpoints")[-1] / "weights.safetensors") for run in (one, two))
    assert all(torch.equal(left[key], right[key]) for key in left.keys() | right.keys())


def steps(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.mark.parametrize("files", [("sessions.jsonl",), ("data.json", "recipe.yaml", "facts.json", "log.jsonl")])
@pytest.mark.parametrize("damage", ["cut", "emptied", "zeros", "gone"])
def test_a_run_goes_on_over_its_own_files(
    recipe: Build, straight: Path, tmp_path: Path, files: tuple[str, ...], damage: str
):
    train(recipe(*SHORT, "training.images=32"))
    run = tmp_path / "run"
    for name in files:
        content = (run / name).read_bytes()
        match damage:
            case "cut":
                (run / name).write_bytes(content[: len(content) * 2 // 3])
            case "emptied":
                (run / name).write_bytes(b"")
            case "zeros":
                (run / name).write_bytes(bytes(len(content)))
            case _:
                (run / name).unlink()
    train(recipe(*SHORT))
    same_weights(run, straight)
    if "log.jsonl" in files:
        assert set(steps(run)) < set(steps(straight))
        assert steps(run)[-2:] == steps(straight)[-2:]
        assert (run / "recipe.yaml").read_text().replace(str(run), "") == (
            (straight / "recipe.yaml").read_text().replace(str(straight), "")
        )
        assert json.loads((run / "data.json").read_text()) == json.loads((straight / "data.json").read_text())
    else:
        assert steps(run) == steps(straight)
        assert read_sessions(run)[-1].step == 4
        assert json.loads((run / "facts.json").read_text())["goodput"] is None


@pytest.mark.parametrize("name", ["data.json", "recipe.yaml"])
def test_what_only_it_knew_is_asked_for(recipe: Build, tmp_path: Path, name: str):
    train(recipe(*SHORT, "training.images=16"))
    (tmp_path / "run" / "sessions.jsonl").unlink()
    (tmp_path / "run" / name).write_bytes(b"\0")
    with pytest.raises(UserError, match=rf"{name}.*not readable.*Restore it; or|{name}.*not readable.*Restore it, or"):
        train(recipe(*SHORT))


def test_data_that_can_no_longer_be_read_ends_with_everything_saved(
    recipe: Build, prepared: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = tmp_path / "store"
    shutil.copytree(prepared / "data", store)
    (fragment,) = (store / "latents.lance" / "data").iterdir()
    content = fragment.read_bytes()

    def cut(batch: Batch, step: int, loss: StepLoss) -> StepLoss:
        if step == 2:
            os.truncate(fragment, 0)
        return loss

    short = (*SHORT, f"data.store={store}", "training.loader_threads=0")
    with monkeypatch.context() as patched:
        wrap(patched, cut)
        with pytest.raises(UserError, match=r"latents.lance: no row of this table can be read.*terminus prepare"):
            train(recipe(*short))
    assert [path.name for path in whole_checkpoints(tmp_path / "run" / "checkpoints")] == ["images-000000000024"]
    fragment.write_bytes(content)
    train(recipe(*short))
    same_weights(tmp_path / "run", straight)


def test_one_error_of_the_disk_in_every_save_changes_nothing(
    recipe: Build, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(saver, "SOON", (0.0, 0.0, 0.0))
    seen: set[str] = set()
    real = os.rename

    def failing(old: Path, new: Path) -> None:
        if str(new).find("/checkpoints/images-") > 0 and str(new) not in seen:
            seen.add(str(new))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(old, new)

    monkeypatch.setattr(os, "rename", failing)
    train(recipe(*SHORT))
    assert len(seen) == 2
    assert caplog.text.count("Trying again") == 2
    same_weights(tmp_path / "run", straight)
    assert losses(tmp_path / "run") == losses(straight)
