"""Folders that others wrote: nothing in them is run, and what does not fit is one paragraph."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from terminus.errors import UserError
from terminus.inspection.checkpoint import network_headers
from terminus.model.components import load_components, load_text_encoders
from terminus.model.convert import convert
from terminus.model.detect import detect
from terminus.model.header import read_header
from terminus.model.text_encoders import load_tokenizer, save_tokenizer
from terminus.model.weights import read_tensors, resolve


@pytest.fixture
def model(random_nano: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_nano, tmp_path / "model")


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_no_code_that_a_folder_names_is_fetched(model: Path, key: str):
    rewrite(model / "text_encoder" / "config.json", **{key: "kernels-community/anything"})
    assert load_text_encoders(model).text_encoder_1.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("text_encoder/config.json", {"hidden_size": -4}, "does not describe a CLIPTextModel"),
        ("unet/config.json", {"norm_num_groups": 0}, "does not describe a UNet"),
        ("unet/config.json", {"block_out_channels": 7}, "does not describe a UNet"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, "its text encoder reads 32"),
        ("terminus.json", {"native_pixels": "many"}, "record is not readable"),
        ("terminus.json", {"caption_dropout": [1]}, "record is not readable"),
    ],
)
def test_what_does_not_fit_is_said(model: Path, file: str, changes: dict[str, object], words: str):
    rewrite(model / file, **changes)
    with pytest.raises(UserError, match=words):
        load_components(model)


@pytest.mark.parametrize("index", [{}, {"weight_map": 3}, {"weight_map": {"a": "../x.safetensors"}}])
def test_an_index_is_data(tmp_path: Path, index: dict[str, object]):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="index"):
        read_tensors(tmp_path, "model")


def numbered(path: Path, number: float) -> None:
    save_file({"a": torch.tensor([number])}, path)


def read(folder: Path) -> list[float]:
    return read_tensors(folder, "model")["a"].tolist()


def test_the_most_precise_variant_is_read_and_inspected(tmp_path: Path):
    """As SDXL's own repository has them, side by side; shards of a variant have an index of that variant."""
    shard, index = "model.fp16-00001-of-00001.safetensors", tmp_path / "model.safetensors.index.fp16.json"
    numbered(tmp_path / shard, 1)
    with pytest.raises(UserError, match="No weights are here"):
        read(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    assert read(tmp_path) == [1]
    for number, variant in enumerate((".fp16", ".bf16", ".fp32", ""), 2):
        numbered(tmp_path / f"model{variant}.safetensors", number)
        numbered(tmp_path / f"model{variant}.non_ema.safetensors", -1)
        assert read(tmp_path) == [number]
        assert [header.path.name for header in network_headers(tmp_path)] == [f"model{variant}.safetensors"]


def test_a_folder_of_variants_is_the_model(random_nano: Path, model: Path, tmp_path: Path):
    for path in model.glob("*/*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    one, two = (
        convert(source, tmp_path / f"{n}-vpred.safetensors").target for n, source in enumerate((random_nano, model))
    )
    assert load_file(one).keys() == load_file(two).keys()
    assert read_header(one).metadata["modelspec.hash_sha256"] == read_header(two).metadata["modelspec.hash_sha256"]


def test_a_hub_id_is_found_in_the_local_cache(random_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Offline, as the hub's own client laid it out; the model is called by the repository's name, not by its commit."""
    repository = tmp_path / "hub" / "models--painter--ink-ztsnr-vpred"
    commit = "0" * 40
    for number, path in enumerate(sorted(path for path in random_nano.rglob("*") if path.is_file())):
        blob, link = (
            repository / "blobs" / str(number),
            repository / "snapshots" / commit / path.relative_to(random_nano),
        )
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    written = convert("painter/ink-ztsnr-vpred", tmp_path / "x-vpred.safetensors").target
    assert read_header(written).metadata["modelspec.title"] == "ink-ztsnr-vpred"
    said = [e for e in detect(resolve("painter/ink-ztsnr-vpred")).evidence if e.source == "file name"]
    assert [(e.prediction, e.zero_terminal) for e in said] == [("velocity", True)]
    with pytest.raises(UserError, match="on the hub could be reached"):
        convert("painter/other", tmp_path / "y-vpred.safetensors")


def test_a_folder_around_a_single_file(tmp_path: Path):
    numbered(tmp_path / "ink-vpred.safetensors", 1)
    for use in (load_components, lambda folder: convert(folder, tmp_path / "target")):
        with pytest.raises(UserError, match=r"no model_index.json.*name that: .*ink-vpred\.safetensors"):
            use(tmp_path)


@pytest.mark.parametrize("value", [["epsilon"], {}, "sample", None])
def test_a_prediction_that_is_unknown_is_one_paragraph(model: Path, value: object):
    rewrite(model / "scheduler" / "scheduler_config.json", prediction_type=value)
    with pytest.raises(UserError, match=r"prediction_type is .*Known: epsilon, v_prediction"):
        load_components(model)


def test_merges_of_older_tokenizers_are_read(model: Path):
    folder = model / "tokenizer"
    expected = load_tokenizer(folder)("a red apple").input_ids
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert load_tokenizer(folder)("a red apple").input_ids == expected


def test_a_tokenizer_is_written_as_it_is_not_as_it_was_used(model: Path, tmp_path: Path):
    tokenizer = load_tokenizer(model / "tokenizer")
    save_tokenizer(tokenizer, tmp_path / "fresh")
    tokenizer(["a", "b"], padding="max_length", truncation=True, max_length=8)
    save_tokenizer(tokenizer, tmp_path / "used")
    assert (tmp_path / "fresh" / "tokenizer.json").read_bytes() == (tmp_path / "used" / "tokenizer.json").read_bytes()
