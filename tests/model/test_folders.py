"""Folders that others wrote: nothing in them is run, and what does not fit is one paragraph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from terminus.errors import UserError
from terminus.model.components import load_components
from terminus.model.towers import load_tokenizer, load_towers, save_tokenizer
from terminus.model.weights import read_tensors


@pytest.fixture
def model(random_nano: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_nano, tmp_path / "model")


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_no_code_that_a_folder_names_is_fetched(model: Path, key: str):
    rewrite(model / "text_encoder" / "config.json", **{key: "kernels-community/anything"})
    assert load_towers(model).tower_1.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("text_encoder/config.json", {"hidden_size": -4}, "does not describe a CLIPTextModel"),
        ("unet/config.json", {"norm_num_groups": 0}, "does not describe a UNet"),
        ("unet/config.json", {"block_out_channels": 7}, "does not describe a UNet"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, "its text tower reads 32"),
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
