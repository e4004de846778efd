"""A wrong argument is told before anything heavy is imported, whatever the verb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.swift import answers_soon
from tests.house.test_command_line import SURFACE

HEAVY = ("torch", "diffusers", "transformers", "daft", "lance", "numpy", "PIL")
SAMPLE = ("sample", "nano", "--prompt", "a dog", "--out", "new")
WRONG: list[tuple[tuple[str, ...], str]] = [
    ((*SAMPLE, "--size", "big"), "WIDTHxHEIGHT"),
    ((*SAMPLE, "--size", "1:1000000"), "at most 16 times"),
    ((*SAMPLE, "--interval", "1"), "LOW:HIGH"),
    ((*SAMPLE, "--interval", "0.8:0.2"), "guidance interval"),
    ((*SAMPLE, "--steps", "0"), "0 sampling steps"),
    ((*SAMPLE, "--guidance", "nan"), "guidance nan"),
    ((*SAMPLE, "--rescale", "2"), "rescale 2"),
    ((*SAMPLE, "--variation", "2"), "variation 2"),
    ((*SAMPLE, "--solver", "dpm_2m"), "Did you mean `dpmpp_2m`?"),
    ((*SAMPLE, "--spacing", "caras"), "Did you mean `karras`?"),
    ((*SAMPLE, "--count", "0"), "count 0"),
    ((*SAMPLE, "--seed", "-1"), "seed -1"),
    ((*SAMPLE, "--format", "gif"), "Known: png"),
    ((*SAMPLE, "--sign", "one.pem"), "CERTIFICATES,KEY"),
    ((*SAMPLE, "--sign", "one.pem,two.pem"), "one.pem: File not found"),
    ((*SAMPLE, "--compile", "on"), "Known: off, blocks, graphs"),
    ((*SAMPLE, "--offload", "all"), "Known: none, model"),
    ((*SAMPLE, "--device", "gpu"), "auto, cpu, cuda"),
    ((*SAMPLE, "--lora", "style.safetensors: File not found"), "style.safetensors: File not found"),
    ((*SAMPLE, "--control", "canny"), "KIND:FOLDER:IMAGE"),
    ((*SAMPLE, "--control", "contrlnet:.:file"), "Did you mean `controlnet`?"),
    ((*SAMPLE, "--image", "nowhere.png"), "nowhere.png: File not found"),
    ((*SAMPLE, "--image", "file", "--mask", "nowhere.png"), "nowhere.png: File not found"),
    ((*SAMPLE, "--image", "file", "--strength", "2"), "strength 2"),
    ((*SAMPLE, "--image", "file", "--upscale", "9"), "1 to 8 times"),
    ((*SAMPLE, "--image", "file", "--outpaint", "1"), "LEFT,TOP,RIGHT,BOTTOM"),
    ((*SAMPLE, "--image", "file", "--outpaint", "0,0,0,0"), "at least one of them above 0"),
    ((*SAMPLE, "--image", "file", "--mask", "file", "--fill", "gray"), "Did you mean `grey`?"),
    ((*SAMPLE, "--image", "file", "--mask", "file", "--feather", "-1"), "feather -1"),
    ((*SAMPLE, "--hires", "big"), "FACTOR or FACTOR:STRENGTH"),
    ((*SAMPLE, "--hires", "9"), "hires factor 9"),
    ((*SAMPLE, "--strength", "0.5"), "--strength without --image"),
    ((*SAMPLE[:2], "--out", "new"), "Missing option '--prompt'"),
    ((*SAMPLE[:2], "--out", "new", "--again", "file", "--steps", "3"), "--again cannot be combined with --steps"),
    ((*SAMPLE[:2], "--out", "new", "--again", "nowhere.png"), "nowhere.png: File not found"),
    ((*SAMPLE[:4], "--out", "file"), "file is a file"),
    (("sample", "nnao", "--prompt", "a dog", "--out", "new"), "Did you mean `nano`?"),
    (("demo", "--out", "file"), "file is a file"),
    (("train", "nanoo"), "Did you mean `nano`"),
    (("train", "nano", "training"), "This is not an override"),
    (("train", "nano", "data.sources.7.path=x"), "has no entry `7`"),
    (("train", "broken.yaml"), "broken.yaml:1"),
    (("train", "nano", "--gpu", "h100"), "need --plan"),
    (("train", "nano", "--plan", "--gpu", "h1000"), "There is no GPU"),
    (("prepare", "nanoo"), "Did you mean `nano`"),
    (("prepare", "nano", "--images", "3"), "need --plan"),
    (("prepare", "nano", "--plan", "--gpu", "h1000"), "There is no GPU"),
    (("caption", "captio"), "Did you mean `caption`"),
    (("data", "list", "nanoo"), "Did you mean `nano`"),
    (("data", "verify", "nowhere"), "nowhere"),
    (("config", "show", "nanoo"), "Did you mean `nano`"),
    (("config", "explain", "nanoo"), "Did you mean `nano`"),
    (("config", "schema", "nanoo"), "Did you mean `nano`"),
    (("config", "import", "nowhere", "--out", "new.yaml"), "no such file"),
    (("config", "import", "file", "--out", "new.json"), "no name of a recipe"),
    (("evaluate", "nnao", "--out", "new"), "Did you mean `nano`?"),
    (("evaluate", "nano", "--out", "file"), "file is a file"),
    (("evaluate", "nano", "--out", "new", "--bias", "nowhere.yaml"), "nowhere.yaml: There is no such file"),
    (("evaluate", "nano", "--out", "new", "--bias", "empty"), "empty: This folder is no file of questions"),
    (("card", "nowhere"), "nowhere"),
    (("publish", "nowhere", "owner/name"), "nowhere"),
    (("publish", "nowhere", "name"), "is no repository"),
    (("serve", "nnao"), "Did you mean `nano`?"),
    (("serve", "empty"), "model_index.json: This file is missing"),
    (("sample", "empty", "--prompt", "a dog", "--out", "new"), "model_index.json: This file is missing"),
    (("serve", "--folder", "file"), "file is a file"),
    (("serve", "--host", "0.0.0.0"), "without --token-file"),
    (("serve", "--root-path", "/a?b"), "/a?b"),
    (("serve", "--expand", "ftp://here"), "--expand ftp://here"),
    (("serve", "--safety", "empty"), "This is no image classifier"),
    (("serve", "--sign", "empty"), "CERTIFICATES,KEY"),
    (("inspect", "nnao"), "Did you mean `nano`?"),
    (("inspect", "file", "--as", "v"), "--as needs --fix"),
    (("inspect", "nano", "--fix", "new", "--as", "eps"), "Known: v-ztsnr, v, epsilon"),
    (("inspect", "nano", "--fix", "file"), "This exists already"),
    (("convert", "nnao", "new"), "Did you mean `nano`?"),
    (("convert", "nano", "new", "--precision", "f16"), "Did you mean `fp16`?"),
    (("convert", "nano", "new", "--shard-size", "big"), "5GB"),
    (("convert", "nano", "new.safetensors", "--shard-size", "5GB"), "no shards"),
    (("convert", "nano", "file"), "This exists already"),
    (("convert", "model.ckpt", "new"), "pickles"),
    (("merge", "nano", "nnao", "--out", "new"), "Did you mean `nano`?"),
    (("merge", "nano:0.5", "nano", "--out", "new"), "The first model, nano, has a weight"),
    (("merge", "nano", "nano:half", "--out", "new"), "For example nano:0.4"),
    (("merge", "nano", "--out", "new"), "1 model is named for weighted-sum"),
    (("merge", "nano", "nano", "--method", "add-difference", "--out", "new"), "A + w (B − C)"),
    (("merge", "nano", "nano", "nano:1", "--method", "add-difference", "--out", "new"), "stands behind B"),
    (("merge", "nano", "nano", "--method", "tie", "--out", "new"), "Did you mean `ties`?"),
    (("merge", "nano", "nano", "--density", "0.5", "--out", "new"), "--density is for ties and dare"),
    (("merge", "nano", "nano", "--method", "ties", "--density", "2", "--out", "new"), "above 0 and at most 1"),
    (("merge", "nano", "nano", "--block", "middle=1", "--out", "new"), "Blocks are unet, down, mid, up"),
    (("merge", "nano", "nano", "--block", "mid", "--out", "new"), "BLOCK=WEIGHT"),
    (("merge", "nano", "nano", "--as", "eps", "--out", "new"), "Known: v-ztsnr, v, epsilon"),
    (("merge", "nano", "nano", "--rank", "4", "--out", "new"), "are for --adapter"),
    (("merge", "nano", "nano", "--out", "file"), "This exists already"),
    (("merge", "nano", "--lora", "nowhere.safetensors", "--out", "new"), "nowhere.safetensors: File not found"),
    (("merge", "nano", "nano", "--lora", "file", "--out", "new"), "--lora takes one model"),
    (("merge", "nano", "--lora", "file:nan", "--out", "new"), "A weight is a finite number"),
    (("merge", "nano", "--lora", "file", "--block", "mid=1", "--out", "new"), "not for --lora"),
    (("merge", "nano", "--adapter", "--out", "new"), "--adapter without --lora"),
    (("extract", "nano", "nnao", "--rank", "4", "--out", "new"), "Did you mean `nano`?"),
    (("extract", "nano", "nano", "--out", "new"), "Give --rank 32 or --error 0.1"),
    (("extract", "nano", "nano", "--rank", "4", "--error", "0.1", "--out", "new"), "are both given"),
    (("extract", "nano", "nano", "--rank", "0", "--out", "new"), "A rank is at least 1"),
    (("extract", "nano", "nano", "--error", "1", "--out", "new"), "from 0 to below 1"),
    (("extract", "nano", "nano", "--rank", "4", "--out", "new.safetensors"), "written as a folder"),
    (("bench", "sample", "nnao"), "Did you mean `nano`?"),
    (("bench", "sample", "nano", "--size", "wide"), "WIDTHxHEIGHT in pixels"),
    (("bench", "sample", "nano", "--against", "comfy"), "Known: diffusers"),
    (("bench", "sample", "nano", "--runs", "0"), "--runs 0"),
    (("bench", "sample", "nano", "--out", "file/below.json"), "file is a file"),
    (("bench", "vae", "nano", "--size", "big"), "WIDTHxHEIGHT"),
    (("bench", "vae", "nano", "--device", "gpu"), "auto, cpu, cuda"),
]  # fmt: skip
PROGRAM = f"""
import contextlib, io, json, sys
from terminus.cli import main
for line in sys.stdin:
    said = io.StringIO()
    before = set(sys.modules)
    with contextlib.redirect_stderr(said):
        code = main(json.loads(line))
    loaded = [name for name in {HEAVY} if name in sys.modules and name not in before]
    print(json.dumps([code, said.getvalue(), loaded]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: one file, and one recipe that is no YAML."""
    folder = tmp_path_factory.mktemp("arguments")
    (folder / "file").write_bytes(b"")
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("run: [")
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[tuple[int, str, list[str]]]:
    """Of one process that is told every wrong command, one after the other."""
    lines = "".join(json.dumps(arguments) + "\n" for arguments, _ in WRONG)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        timeout=120,
    )
    return [tuple(json.loads(line)) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("index", range(len(WRONG)), ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_argument_is_told_without_torch(index: int, answers: list[tuple[int, str, list[str]]], folder: Path):
    code, said, loaded = answers[index]
    assert code == 2, said
    assert said.startswith("error: ")
    assert WRONG[index][1] in said
    assert loaded == []
    assert not (folder / "new").exists()


def test_no_verb_is_left_out():
    told = {" ".join(arguments[: 2 if arguments[0] in ("bench", "config", "data") else 1]) for arguments, _ in WRONG}
    assert told == {"demo", *SURFACE} - {""}


def test_it_takes_half_a_second(folder: Path):
    def check(result: subprocess.CompletedProcess[str]) -> None:
        assert result.returncode == 2, result.stderr

    assert answers_soon([sys.executable, "-m", "terminus", *SAMPLE, "--size", "big"], check, cwd=str(folder))
