"""The checkpoint protocol: whole or not there, verified before use, never fewer than one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from terminus.errors import UserError
from terminus.training import checkpoint
from terminus.training.checkpoint import Pieces, Position
from terminus.training.guards import Health
from terminus.training.shards import Stored, held, write


def tensors(value: float) -> Pieces:
    return {"weights": {"a": held(torch.full((3,), value))}, "average": {"a": held(torch.zeros(3))}, "optimizer": {}}


def loaded(saved: checkpoint.Saved, part: str) -> dict[str, torch.Tensor]:
    with saved.tensors(part) as stored:
        return dict(stored.items())


def save(folder: Path, images: int, keep: int = 2) -> Path:
    path = checkpoint.save(folder, Position(images // 4, images, 1.5), tensors(images))
    checkpoint.prune(folder, keep)
    return path


def test_round_trip_and_pruning(tmp_path: Path):
    for images in (4, 8, 12):
        save(tmp_path, images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-000000000008", "images-000000000012"]
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.position == Position(3, 12, 1.5)
    assert torch.equal(loaded(saved, "weights")["a"], torch.full((3,), 12.0))


def test_milestones_stay(tmp_path: Path):
    """The first at or after each multiple of 10, and the newest two; a stop between two saves makes no more of them."""
    for images in (4, 8, 12, 16, 18, 20, 24, 36, 40):
        checkpoint.save(tmp_path, Position(images // 4, images, 1.5), tensors(images))
        checkpoint.prune(tmp_path, 2, milestones=10)
    assert [checkpoint.images_of(path) for path in checkpoint.whole(tmp_path)] == [12, 20, 36, 40]


def test_the_guards_memory_comes_back_bit_for_bit(tmp_path: Path):
    health = Health(2, ((0.1, 1 / 3), (1e-300, 7.0)), ((4, 9),))
    checkpoint.save(tmp_path, Position(1, 4, 0.1, 2, health), tensors(4))
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert saved.position == Position(1, 4, 0.1, 2, health)


def test_only_a_good_one_is_gone_back_to(tmp_path: Path):
    for step, failed in ((1, 0), (2, 0), (3, 1), (4, 0)):
        checkpoint.save(tmp_path, Position(step, 4 * step, 1.0, health=Health(failed)), tensors(step))
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
    assert saved.position == Position(1, 4, 1.5)


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
    with pytest.raises(UserError, match="never starts anew"):
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

    monkeypatch.setattr(checkpoint.shards, "write", full)
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["images-000000000004"]


def test_the_tensors_of_another_network_are_refused_and_nothing_is_broadcast(tmp_path: Path):
    target = torch.zeros(3)
    for number, other in enumerate(({"a": torch.ones(1)}, {"b": torch.ones(3)}, {})):
        write(tmp_path / f"{number}", {name: held(value) for name, value in other.items()})
        with Stored([tmp_path / f"{number}"]) as stored, pytest.raises(UserError, match="of another network"):
            checkpoint.copy_into({"a": held(target)}, stored)
    assert not target.any()
