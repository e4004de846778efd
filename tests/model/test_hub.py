"""Models by id, from a hub on loopback: what is fetched, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from terminus.errors import UserError
from terminus.model.naming import HubId, parse_hub_id
from terminus.model.weights import model_name, resolve
from tests.data.hub import COMMIT, Hub, hub


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub({}, monkeypatch, str(tmp_path / "home")) as running:
        yield running


def fill(server: Hub, *names: str) -> None:
    server.files.update({name: name.encode() for name in names})


def fetched(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("owner/name", HubId("owner/name", None, None)),
        ("owner/name@v1.0", HubId("owner/name", None, "v1.0")),
        ("owner/name/some file-vpred.safetensors", HubId("owner/name", "some file-vpred.safetensors", None)),
        ("owner/na.me/deep/file.safetensors@refs/pr/3", HubId("owner/na.me", "deep/file.safetensors", "refs/pr/3")),
        ("folder/file.safetensors", None), ("./owner/name", None), ("/owner/name", None), ("../name", None),
        ("name", None), ("owner/name/folder", None), ("~owner/name", None),
    ],
)  # fmt: skip
def test_what_is_an_id(text: str, model: HubId | None):
    assert parse_hub_id(text) == model


def test_of_each_network_the_most_precise_weights_alone_are_fetched(server: Hub):
    wanted = [
        "model_index.json", "README.md", "scheduler/scheduler_config.json", "tokenizer/merges.txt",
        "unet/config.json", "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.bf16.safetensors", "text_encoder/model.safetensors",
    ]  # fmt: skip
    unwanted = [
        "sd_xl_base_1.0.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors", "text_encoder/model.onnx", "text_encoder/pytorch_model.bin",
        "pipeline.py", "old/unet/diffusion_pytorch_model.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors",
        "safety_checker/model.safetensors", "checkpoint-500/optimizer.safetensors", "checkpoint-500/config.json",
    ]  # fmt: skip
    fill(server, *wanted, *unwanted)
    folder = resolve("owner/name")
    assert fetched(folder) == set(wanted)
    assert (folder.name, model_name(folder)) == (COMMIT, "name")


def test_a_repository_of_one_single_file_is_that_file(server: Hub):
    fill(server, "[ink]-vpred.safetensors", "README.md", "image.png", "loras/style.safetensors")
    file = resolve("owner/name")
    assert file.name == "[ink]-vpred.safetensors"
    assert file.read_bytes() == b"[ink]-vpred.safetensors"
    assert fetched(file.parent) == {file.name}


def test_of_several_single_files_one_is_to_be_named(server: Hub):
    fill(server, "a.safetensors", "b.safetensors")
    with pytest.raises(
        UserError, match=r"2 single files.*Name one: owner/name/a.safetensors, owner/name/b.safetensors"
    ):
        resolve("owner/name")
    assert resolve("owner/name/b.safetensors").read_bytes() == b"b.safetensors"
    with pytest.raises(UserError, match="no file of this name"):
        resolve("owner/name/c.safetensors")
    assert not any("resolve" in line and "a.safetensors" in line for line in server.asked)


def test_what_was_fetched_needs_no_network(server: Hub, monkeypatch: pytest.MonkeyPatch):
    fill(server, "a-vpred.safetensors")
    online = resolve("owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.asked.clear()
    assert resolve("owner/name/a-vpred.safetensors") == online
    with pytest.raises(UserError, match=r"cannot be known without the hub.*Name one: owner/name/a-vpred.safetensors"):
        resolve("owner/name")
    assert server.asked == []


def test_a_download_that_fails_is_not_a_model(server: Hub, monkeypatch: pytest.MonkeyPatch):
    fill(server, "model_index.json", "unet/diffusion_pytorch_model.safetensors")

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("terminus.model.hub.snapshot_download", full)
    with pytest.raises(UserError, match=r"owner/name: This model could not be downloaded \(.*No space left"):
        resolve("owner/name")


def test_a_revision_that_is_not_there_is_not_another_one(server: Hub):
    fill(server, "a.safetensors")
    resolve("owner/name")
    with pytest.raises(UserError, match="on the hub could be reached"):
        resolve(f"owner/name@{'f' * 40}")
