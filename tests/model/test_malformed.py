"""Model files of strangers: each is refused with one paragraph, before anything in it could do harm."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from terminus.errors import UserError
from terminus.model.components import load_components, load_vae
from terminus.model.convert import convert
from terminus.model.header import read_header

UNET = "unet/diffusion_pytorch_model.safetensors"
CONV = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def good(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(random_nano, tmp_path_factory.mktemp("good") / "good-vpred.safetensors").target


@pytest.fixture
def folder(random_nano: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_nano, tmp_path / "model"))


@pytest.fixture
def file(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(good, tmp_path / "x-vpred.safetensors"))


def refused(path: Path, words: str) -> None:
    """By loading and by converting, with one paragraph, and without a file left behind."""
    for use in (load_components, lambda model: convert(model, path.with_name("target"))):
        with pytest.raises(UserError, match=words) as caught:
            use(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 2000
    assert not path.with_name("target").exists()
    assert not [other for other in path.parent.iterdir() if other.suffix == ".tmp"]


class Marker:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.PTH", "x.bin", "x.pkl", "x.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_no_pickle_is_opened(tmp_path: Path, name: str, kind: str):
    path, marker = tmp_path / name, tmp_path / "it-ran"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Marker(marker)))
    else:
        torch.save({"a": Marker(marker)}, path)
    refused(path, "pickle")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Marker(marker)))
    assert marker.exists(), "the marker works"


@pytest.mark.parametrize("stem", ["unet/diffusion_pytorch_model", "text_encoder/pytorch_model"])
def test_a_pickle_in_a_folder_is_not_opened(folder: Path, tmp_path: Path, stem: str):
    marker = tmp_path / "it-ran"
    for path in (folder / stem).parent.glob("*.safetensors"):
        path.unlink()
    (folder / f"{stem}.bin").write_bytes(pickle.dumps(Marker(marker)))
    refused(folder, "No weights are here")
    assert not marker.exists()


def test_shards_of_a_training_run_are_no_model(tmp_path: Path):
    """Their `.metadata` is a pickle, which torch would open."""
    shards, marker = tmp_path / "checkpoint", tmp_path / "it-ran"
    shards.mkdir()
    (shards / ".metadata").write_bytes(pickle.dumps(Marker(marker)))
    (shards / "__0_0.distcp").write_bytes(pickle.dumps(Marker(marker)))
    refused(shards, "model_index.json: This file is missing")
    assert not marker.exists()


def test_a_zip_of_another_name(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    refused(path, "zip archive")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1, -100_000])
def test_a_file_that_is_cut(file: Path, keep: int):
    os.truncate(file, keep if keep >= 0 else file.stat().st_size + keep)
    refused(file, "not a safetensors file")


def rewrite(path: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    metadata = dict(read_header(path).metadata)
    save_file(edit(load_file(path)), path, metadata=metadata)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t | {CONV: t[CONV][:, :3].contiguous()}, "in_channels is 4, the weights have 3 input channels"),
        (lambda t: t | {CONV: torch.full_like(t[CONV], torch.nan)}, "conv_in.weight holds NaN or infinity"),
        (lambda t: t | {CONV: torch.full_like(t[CONV], torch.inf)}, "conv_in.weight holds NaN or infinity"),
        (lambda t: t | {CONV: t[CONV].to(torch.int8)}, "conv_in.weight is int8, which is a quantised"),
        (lambda t: {k: v for k, v in t.items() if k != CONV}, "1 keys are missing, the first is conv_in.weight"),
        (lambda t: t | {"model.diffusion_model.../../etc/x": torch.zeros(1)}, "1 keys of the UNet have no name"),
        (lambda t: t | {"terminus_vision.../../etc/x": torch.zeros(1)}, "1 keys are unknown, the first is ../../etc/x"),
        (lambda t: t | {"edm_vpred.sigma_max": torch.zeros(1)}, "EDM model"),
    ],
)
def test_tensors_that_do_not_fit(file: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str):
    rewrite(file, edit)
    refused(file, words)


def test_a_name_is_never_a_path(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rewrite(file, lambda tensors: tensors | {"../../escaped": torch.zeros(1), "/escaped": torch.zeros(1)})
    target = convert(file, tmp_path / "deep" / "down" / "target").target
    assert "'../../escaped'" in caplog.text
    assert not list(tmp_path.rglob("escaped"))
    assert load_components(target).record == load_components(file).record


def test_a_name_that_stands_twice(file: Path):
    """Of tensors without elements: for any other, the library finds the gap in the file."""
    save_file(load_file(file) | {"empty_1": torch.zeros(0), "empty_2": torch.zeros(0)}, file)
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"empty_1":', b'"empty_2":', 1)
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    refused(file, "'empty_2' stands 2 times")


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def metadata(file: Path, change: Callable[[dict[str, object]], object]) -> None:
    """The same file with another `terminus` in its metadata."""
    stored = dict(read_header(file).metadata)
    content = change(json.loads(stored["terminus"]))
    text = content if isinstance(content, str) else json.dumps(content)
    save_file(load_file(file), file, metadata=stored | {"terminus": text})


def configured(network: str, **changes: object) -> Callable[[dict[str, object]], object]:
    def change(content: dict[str, object]) -> object:
        configs = content["configs"]
        assert isinstance(configs, dict)
        return content | {"configs": configs | {network: configs[network] | changes}}

    return change


BROKEN_TOKENIZERS = {
    "tokenizer": {"settings": {}, "vocabulary": [1]},
    "tokenizer_2": {"settings": {}, "vocabulary": ["a"], "merges": [["a", "b"]]},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: "", "not readable JSON"),
        (lambda content: "[]", "not an object"),
        (lambda content: DEEP, "not readable JSON"),
        (lambda content: json.dumps(content)[:-1] + ', "x": NaN}', "NaN is no number"),
        (lambda content: json.dumps(content)[:-1] + ', "x": 1e999}', "1e999 is no number"),
        (lambda content: json.dumps(content)[:-1] + ', "format": 1}', "stands in it twice"),
        (lambda content: {}, "format is None"),
        (lambda content: content | {"format": 99}, "format is 99"),
        (lambda content: content | {"configs": None}, "configs is not a JSON object"),
        (lambda content: content | {"configs": {"../x": {}}}, r"configurations of \.\./x"),
        (lambda content: content | {"tokenizers": {}}, "tokenizer is not a JSON object"),
        (lambda content: content | {"tokenizers": BROKEN_TOKENIZERS}, "the merges are|tokenizer is not readable"),
        (lambda content: content | {"record": {"images_seen": "many"}}, "record is not readable"),
        (lambda content: content | {"auto_map": {"a": "b"}}, "names code to run"),
        (lambda content: content | {"index": {"unet": ["evil", "UNet"]}}, "no class that a file names is imported"),
        (configured("unet", block_out_channels=[16, 32]), "have no name in diffusers|does not describe|do not fit"),
        (configured("unet", block_out_channels=[16, 32, 10**9]), "does not describe|do not fit"),
        (configured("unet", layers_per_block=-1), "layers_per_block is -1"),
        (configured("unet", layers_per_block=[1, 1, 1]), "all levels have equally many layers"),
        (configured("unet", layers_per_block="x" * 10**6), "layers_per_block is 'xxx"),
        (configured("vae", down_block_types=["os.system"]), "does not describe"),
        (configured("text_encoder_2", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
        (configured("text_encoder", num_hidden_layers="x"), "does not describe"),
        (configured("text_encoder", max_position_embeddings=8), "do not fit"),
    ],
)  # fmt: skip
def test_metadata_of_ours_that_is_broken(file: Path, change: Callable[[dict[str, object]], object], words: str):
    metadata(file, change)
    refused(file, words)


def test_no_code_that_metadata_names_is_fetched(file: Path):
    metadata(file, configured("text_encoder", attn_implementation="kernels-community/anything"))
    assert load_components(file).text_encoders.text_encoder_1.config._attn_implementation in ("sdpa", "eager")


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("model_index.json", {"_class_name": ["pipeline", "Evil"]}, "no class that a file names is imported"),
        ("model_index.json", {"unet": ["unet", "Evil"]}, "no class that a file names is imported"),
        ("model_index.json", {"custom_pipeline": "evil.py"}, "names code to run"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "names code to run"),
        ("unet/config.json", {"trust_remote_code": True}, "names code to run"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": "evil.T"}}, "names code to run"),
        ("unet/config.json", {"block_out_channels": [16, 32, 10**9]}, "does not describe|do not fit"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "schedule is not readable"),
        ("scheduler/scheduler_config.json", {"beta_start": -1}, "schedule is not readable"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "Epsilon prediction on a schedule"),
    ],
)
def test_configurations_that_want_more_than_numbers(folder: Path, name: str, values: dict[str, object], words: str):
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    change_json(folder / name, **values)
    refused(folder, words)


@pytest.mark.parametrize("text", [DEEP, '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', "[" * 10**6])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_bombs(folder: Path, name: str, text: str):
    (folder / name).write_text(text)
    refused(folder, "not readable JSON")


def test_json_that_is_too_large_to_be_a_configuration(folder: Path):
    with (folder / "unet" / "config.json").open("wb") as file:
        file.truncate(10**10)
    refused(folder, "more than any model needs")


@pytest.mark.parametrize("name", ["unet/config.json", UNET, "vae", "tokenizer/merges.txt"])
def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path, name: str):
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    refused(folder, "leads out of the model's folder")
    with pytest.raises(UserError, match="leads out"):
        load_vae(folder)


def test_the_hub_cache_is_made_of_links(random_nano: Path, tmp_path: Path):
    """`snapshots/<commit>/unet/config.json` links to `blobs/<hash>`; so may a folder as a whole be a link."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in random_nano.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(random_nano)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    (tmp_path / "link").symlink_to(snapshot)
    assert load_components(tmp_path / "link").record == load_components(random_nano).record


@pytest.mark.parametrize("damage", ["missing", "empty", "other"])
def test_shards_that_are_not_there(random_nano: Path, tmp_path: Path, damage: str):
    model = convert(random_nano, tmp_path / "model", shard_size="100KB").target
    shards = sorted((model / "unet").glob("*-of-*"))
    shards[0].unlink()
    if damage != "missing":
        shards[0].write_bytes(b"" if damage == "empty" else shards[1].read_bytes())
    words = {"missing": "does not exist", "empty": "it is empty", "other": "get the weights that are missing"}[damage]
    refused(model, words)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer/vocab.json", '{"a": "b"}', "tokenizer is not readable"),
        ("tokenizer/vocab.json", '{"a": 0, "b": 7}', "tokenizer is not readable"),
        ("tokenizer/merges.txt", "one two three\n", "tokenizer is not readable"),
        ("tokenizer/merges.txt", "never seen\n", "tokenizer is not readable"),
        ("tokenizer/tokenizer_config.json", '{"model_max_length": "x"}', "This tokenizer pads with"),
        ("tokenizer/tokenizer_config.json", '{"pad_token": "nowhere"}', "This tokenizer pads with"),
        ("tokenizer/tokenizer_config.json", '{"pad_token": {}}', "This tokenizer pads with {} to"),
        ("tokenizer/tokenizer_config.json", '{"pad_token": {"content": 7}}', "This tokenizer pads with"),
        ("tokenizer/tokenizer_config.json", '{"pad_token": [[]]}', "This tokenizer pads with"),
    ],
)
def test_tokenizers_that_are_broken(folder: Path, name: str, text: str, words: str):
    (folder / name).write_text(text)
    refused(folder, words)
