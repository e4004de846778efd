"""Several processes train as one does: the same batches in the same order, and any number of them continues a run."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from terminus.config.load import Loaded, load
from terminus.errors import UserError
from terminus.training import run
from terminus.training.distributed.process_group import joined
from terminus.training.recipe import Recipe

from .torchrun import ends, launch, train

Build = Callable[..., Loaded[Recipe]]

CUT = ("training.micro_batch=2", "training.accumulation=4", "training.checkpoints.every_images=16")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run.train(load(prepared / "recipe.yaml", Recipe, [f"run.dir={folder}", *CUT]))
    return folder


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def close(one: object, two: object, tolerance: float = TOLERANCE) -> bool:
    """Equal structure, and numbers equal within the tolerance."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key], tolerance) for key in one)
    return one == two or (isinstance(one, float) and one == pytest.approx(two, rel=tolerance))


def same_course(one: Path, two: Path) -> None:
    """The same steps with the same losses, and the same model but for rounding."""
    clock = {"seconds", "images_per_second"}
    left, right = rows(one), rows(two)
    assert len(left) == len(right) == 12
    for ours, theirs in zip(left, right, strict=True):
        for key in ours.keys() - clock:
            assert close(ours[key], theirs[key]), (ours["step"], key, ours[key], theirs[key])
    for file in sorted((one / "model").glob("*/*.safetensors")):
        mine, others = load_file(file), load_file(two / file.relative_to(one))
        assert mine.keys() == others.keys()
        for name, tensor in mine.items():  # float16: a last bit may differ
            assert (tensor.float() - others[name].float()).abs().max() <= 2e-3 * tensor.float().abs().max() + 1e-6, name
    configs = {path.relative_to(one): path.read_text() for path in (one / "model").glob("*/config.json")}
    assert configs
    assert all((two / path).read_text() == text for path, text in configs.items())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(((2, 32, "optimizer", 1), (1, 64, "optimizer", 1), (4, 96, "optimizer", 1)), id="2-1-4"),
        pytest.param(((2, 48, "full", 1), (1, 96, "full", 1)), id="FSDP 2, alone"),
        pytest.param(((4, 48, "full", 2), (2, 96, "full", 1)), id="HSDP 2x2, FSDP 2", marks=pytest.mark.slow),
    ],
)
def test_any_number_continues_and_all_do_what_one_does(
    alone: Path, prepared: Path, tmp_path: Path, chain: Sequence[tuple[int, int, str, int]]
):
    folder = tmp_path / "run"
    for processes, images, shard, replicas in chain:
        parallel = f"training.parallel={{shard: {shard}, replicas: {replicas}}}"
        found = train(
            prepared / "recipe.yaml", processes, f"run.dir={folder}", *CUT, f"training.images={images}", parallel
        )
        assert [code for code, _ in found] == [0] * processes, found
    same_course(alone, folder)
    for left, right in zip(rows(alone)[:1], rows(folder)[:1], strict=True):
        assert left["loss"] == right["loss"]  # the very same samples, noise and timesteps


@pytest.mark.timeout(600)
def test_text_encoders_and_unet_are_sharded_together(prepared: Path, tmp_path: Path):
    """With checkpointed blocks, an average on the CPU, and previews that the shards draw together."""
    overrides = (
        *CUT, "training.images=16", "objective.train_text_encoders=both", "training.activation_checkpointing=full",
        "training.ema.device=cpu",
        "training.preview={every_images: 16, prompts: [a], steps: 2}", "training.parallel={shard: full}",
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    run.train(load(prepared / "recipe.yaml", Recipe, [f"run.dir={one}", *overrides]))
    found = train(prepared / "recipe.yaml", 2, f"run.dir={two}", *overrides)
    assert [code for code, _ in found] == [0, 0], found
    for left, right in zip(rows(one), rows(two), strict=True):
        assert all(close(left[key], right[key]) for key in left.keys() - {"seconds", "images_per_second"})
    for path in (one / "model").glob("*/config.json"):
        assert path.read_text() == (two / path.relative_to(one)).read_text()
    assert (two / "previews" / "images-000000000016.png").is_file()


def test_one_signal_stops_all_with_everything_saved(prepared: Path, tmp_path: Path):
    folder = tmp_path / "run"
    running = launch(2, "train", str(prepared / "recipe.yaml"), f"run.dir={folder}", *CUT)
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").is_file() or len((folder / "log.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        assert all(one.poll() is None for one in running)
        time.sleep(0.05)
    running[1].send_signal(signal.SIGTERM)
    found = ends(running)
    assert [code for code, _ in found] == [75, 75], found
    assert "The same command continues" in found[0][1]
    steps = len(rows(folder))
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    assert newest.name == f"images-{8 * steps:012d}"
    assert sorted(path.name for path in (newest / "weights").iterdir()) == [
        "00001-of-00002.safetensors",
        "00002-of-00002.safetensors",
    ]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR is not set"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "RANK is 2 of 2 processes",
        ),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 tasks"),
    ],
)
def test_a_launcher_that_says_too_little(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said), joined("auto"):
        pass


def test_a_recipe_that_cannot_be_shared_is_refused_once(prepared: Path, tmp_path: Path):
    found = train(prepared / "recipe.yaml", 2, f"run.dir={tmp_path / 'run'}", "training.accumulation=3")
    assert [code for code, _ in found] == [2, 2]
    assert "multiple of 2" in found[0][1]
    assert found[1][1] == ""
    assert not (tmp_path / "run").exists()
