"""A finished run, put together from its files: what training leaves, without the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _finished(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rich.console import Console

    from terminus.config.load import dump, load
    from terminus.evaluation.command import evaluate
    from terminus.evaluation.settings import QUICK
    from terminus.training.recipe import Recipe

    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(random_nano, folder / "model")
    recipe = load(
        "nano", Recipe, ["run.developer=A. Nother", "run.licence=apache-2.0", "data.store=runs/no-such-store"]
    ).value
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    rows = [
        {"step": i, "loss": 0.5 + 0.1 / i, "error": 0.6, "learning_rate": 1e-5 * i, "images_per_second": 10.0 + i}
        for i in range(1, 11)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "data.json").write_text(json.dumps({"table": "latents", "version": 3, "rows": 13785}), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    settings = replace(
        QUICK, extreme_images=4, color_images=1, light_images=2, sampling=replace(QUICK.sampling, steps=2)
    )
    evaluate(str(folder / "model"), folder, settings, Console(quiet=True))
    return folder


FACTS = {
    "steps": 400,
    "images_seen": 12800,
    "epochs": 0.9678,
    "epochs_of": {"drawings": 0.5, "photographs": 2.25},
    "skipped_steps": 0,
    "train_rows": 13226,
    "validation_rows": 559,
    "data_version": 3,
    "train_seconds": 4321.0,
    "images_per_second_median": 15.5,
    "parameters": {"unet": 1234567, "vae": 89012, "text_encoder": 345, "text_encoder_2": 678},
    "model_bytes": 12345678,
    "checkpoint_bytes": 98765432,
    "validation_before": {"all": 0.71234, "000-099": 0.9},
    "validation_after": {"all": 0.31234, "000-099": 0.8},
    "environment": {
        "hardware": "Some CPU @ 2.10GHz",
        "cpu_count": 2,
        "python": "3.11.9",
        "platform": "Linux x86_64",
        "packages": {"torch": "2.13.0", "diffusers": "0.42.1"},
    },
    "begun_from": "shipped",
    "finished": "2026-11-21T20:00:00+00:00",
}


@pytest.fixture
def run(_finished: Path, tmp_path: Path) -> Path:
    """A finished, evaluated run that a test may spoil."""
    return Path(shutil.copytree(_finished, tmp_path / "run"))


@pytest.fixture
def edit() -> Callable[..., None]:
    """edit(file, {"a.b": value}): changes one JSON or YAML file of a run."""

    def change(path: Path, values: dict[str, object]) -> None:
        from ruamel.yaml import YAML

        yaml = YAML(typ="safe")
        tree = yaml.load(path) if path.suffix == ".yaml" else json.loads(path.read_text(encoding="utf-8"))
        for key, value in values.items():
            *parents, last = key.split(".")
            node = tree
            for parent in parents:
                node = node[int(parent)] if isinstance(node, list) else node[parent]
            node[last] = value
        if path.suffix == ".yaml":
            yaml.dump(tree, path)
        else:
            path.write_text(json.dumps(tree), encoding="utf-8")

    return change
