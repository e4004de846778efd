"""How runs end: by a signal at an awkward moment, while the model is written, or because there is nothing left."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from terminus.config.load import Loaded, load
from terminus.data.store import Store
from terminus.errors import Stopped, UserError
from terminus.training import run
from terminus.training.assemble import TrainingSetup
from terminus.training.recipe import Recipe
from terminus.training.validation import HeldOutSet

from .conftest import losses
from .forked import Forked

Build = Callable[..., Loaded[Recipe]]

SHORT = ("training.images=16", "training.validation.every_images=8")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that nothing disturbed, to compare with."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run.train(load(prepared / "recipe.yaml", Recipe, [*SHORT, f"run.dir={folder}"]))
    return folder


@pytest.mark.parametrize("measurement", [1, 2], ids=["before the first step", "while validating"])
def test_a_signal_while_measuring(
    recipe: Build,
    undisturbed: Path,
    tmp_path: Path,
    measurement: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    real, count = HeldOutSet.measure, 0

    def measure(self, step, world):
        nonlocal count
        count += 1
        if count == measurement:
            terminate()
        return real(self, step, world)

    monkeypatch.setattr(HeldOutSet, "measure", measure)
    with caplog.at_level(logging.INFO), pytest.raises(Stopped, match=r"^Stopped at \d+ images; everything is saved\.$"):
        run.train(recipe(*SHORT))
    assert "topped" not in caplog.text  # the command line says it, once
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == measurement - 1
    run.train(recipe(*SHORT))
    assert losses(tmp_path / "run") == losses(undisturbed)


def exporting(monkeypatch: pytest.MonkeyPatch, during: Callable[[Path], None]) -> None:
    """Something happens when half of the model is written."""
    real = run.assemble

    def assemble(recipe, view) -> TrainingSetup:
        parts = real(recipe, view)

        def export(folder: Path, images: int) -> None:
            (folder / "unet").mkdir()
            during(folder)
            (folder / "unet").rmdir()
            parts.export(folder, images)

        return replace(parts, export=export)

    monkeypatch.setattr(run, "assemble", assemble)


def test_a_signal_during_the_export_lets_it_finish(recipe: Build, undisturbed: Path, monkeypatch: pytest.MonkeyPatch):
    exporting(monkeypatch, lambda folder: terminate())
    model = run.train(recipe(*SHORT))
    assert contents(model) == contents(undisturbed / "model")


KILLED = """
import os, signal
from terminus.training import assemble

def save(components, folder):
    (folder / "unet").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)

assemble.save_components = save
"""


def test_killed_during_the_export(recipe: Build, prepared: Path, undisturbed: Path, tmp_path: Path):
    """Killed by itself with half a model on the disk; the same command completes it."""
    folder = tmp_path / "run"
    child = Forked("train", str(prepared / "recipe.yaml"), *SHORT, f"run.dir={folder}", before=KILLED)
    code, said = child.end()
    assert code == -signal.SIGKILL, said
    assert not (folder / "model").exists()
    assert not (folder / "facts.json").exists()
    assert list(folder.glob(".model-*"))
    model = run.train(recipe(*SHORT))
    assert contents(model) == contents(undisturbed / "model")
    assert not list(folder.glob(".model-*"))


@pytest.mark.parametrize("images", [16, 8])
def test_a_finished_run_is_left_as_it_is(recipe: Build, tmp_path: Path, images: int, caplog: pytest.LogCaptureFixture):
    run.train(recipe("training.images=16"))
    folder = tmp_path / "run"
    facts = folder / "facts.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"finished": "2020-01-01T00:00:00+00:00"}))
    before = contents(folder)
    caplog.set_level("INFO")
    assert run.train(recipe(f"training.images={images}")) == folder / "model"
    assert "nothing to do" in caplog.text
    assert contents(folder) == before


def test_another_licence_reaches_a_finished_model_and_its_facts_stay(recipe: Build, tmp_path: Path):
    run.train(recipe("training.images=8"))
    facts = (tmp_path / "run" / "facts.json").read_bytes()
    model = run.train(recipe("training.images=8", "run.licence=mit"))
    assert json.loads((model / "terminus.json").read_text())["licence"] == "mit"
    assert (tmp_path / "run" / "facts.json").read_bytes() == facts


def test_a_rate_that_follows_the_run_s_length_cannot_change_unnoticed(recipe: Build):
    open_end = "training.learning_rate={warmup_images: 0, period_images: null}"
    run.train(recipe("training.images=16", open_end))
    with pytest.raises(UserError, match="period_images was 16 and is now 24"):
        run.train(recipe("training.images=24", open_end))
    run.train(recipe("training.images=24", "training.learning_rate={warmup_images: 0, period_images: 16}"))


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_run_folder_that_cannot_be(recipe: Build, tmp_path: Path, place: str):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / ("run" if place == "below a file" else "")
    with pytest.raises(UserError, match="The run's folder cannot be written"):
        run.train(recipe(*SHORT, f"run.dir={folder}"))


def test_spaces_and_quotes_in_paths(recipe: Build, tmp_path: Path):
    folder = tmp_path / 'it\'s a "run" é 🍎'
    model = run.train(recipe("training.images=8", f"run.dir={json.dumps(str(folder), ensure_ascii=False)}"))
    assert model == folder / "model"
    run.train(recipe("training.images=16", f"run.dir={json.dumps(str(folder), ensure_ascii=False)}"))


def test_a_store_that_is_gone_or_another(recipe: Build, prepared: Path, tmp_path: Path):
    store = tmp_path / "data"
    here = ("training.images=16", f"data.store={store}")
    with pytest.raises(UserError, match="no prepared data here"):
        run.train(recipe(*here))
    shutil.copytree(prepared / "data", store)
    run.train(recipe("training.images=8", f"data.store={store}"))
    pin = tmp_path / "run" / "data.json"
    pinned = json.loads(pin.read_text())
    assert pinned["rows"] == Store(str(store)).latents.count()
    pin.write_text(json.dumps(pinned | {"rows": pinned["rows"] - 1}))
    with pytest.raises(UserError, match="when this run was begun"):
        run.train(recipe(*here))
    pin.write_text("{")
    (tmp_path / "run" / "sessions.jsonl").unlink()  # which says the same
    with pytest.raises(UserError, match=r"data\.json"):
        run.train(recipe(*here))


def test_a_plain_diffusers_folder_is_continued(recipe: Build, random_nano: Path, tmp_path: Path):
    plain = shutil.copytree(random_nano, tmp_path / "plain")
    (plain / "terminus.json").unlink()
    model = run.train(recipe("training.images=8", f"model.start={plain}"))
    assert json.loads((model / "terminus.json").read_text())["images_seen"] == 8


def test_a_device_that_is_not_there(recipe: Build):
    for name in ("cuda:99", "gpu", "mps"):
        with pytest.raises(UserError, match="cannot be used"):
            run.train(recipe(*SHORT, f"run.device={name}"))
