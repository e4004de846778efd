"""`terminus inspect`: right facts, from headers alone, about good files, broken ones and hostile ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from terminus.errors import UserError
from terminus.inspection.command import fix_command as print_fix
from terminus.inspection.command import inspect
from terminus.inspection.fix import write_fixed_copy
from terminus.model.components import load_components
from terminus.model.detect import detect
from terminus.model.header import read_header
from terminus.model.record import Schedule
from terminus.model.weights import SHIPPED

NANO = SHIPPED["nano"]
UNET = NANO / "unet" / "diffusion_pytorch_model.safetensors"


def facts(path: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    inspect(str(path), as_json=True)
    return json.loads(capsys.readouterr().out)


def shown(path: Path | str, capsys: pytest.CaptureFixture[str]) -> str:
    inspect(str(path))
    return capsys.readouterr().out


def test_the_shipped_model(capsys: pytest.CaptureFixture[str]):
    found = facts("nano", capsys)
    assert (found["kind"], found["prediction"], found["zero_terminal"]) == ("model folder", "velocity", True)
    assert found["spacing"] == "trailing"
    assert found["task"] == "text to image (4 input channels)"
    assert found["conflicts"] == found["missing"] == []
    assert found["licence"] == "apache-2.0"
    assert found["weighting"] == {"floor": 0.0, "form": "augmented", "gamma": 5.0, "kind": "min_snr"}
    assert found["parents"] == json.loads((NANO / "terminus.json").read_text())["parents"]
    assert found["evidence"][0]["source"] == "scheduler/scheduler_config.json"
    tensors = load_file(UNET)
    assert found["components"]["unet"]["parameters"] == sum(value.numel() for value in tensors.values())
    assert found["components"]["unet"]["dtypes"] == ["F16"]
    assert set(found["components"]) == {"unet", "vae", "text_encoder", "text_encoder_2", "vision"}


def test_hashes_are_those_of_the_file_and_of_its_tensors(capsys: pytest.CaptureFixture[str]):
    raw = UNET.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    whole, tensors = (hashlib.sha256(part).hexdigest() for part in (raw, raw[start:]))
    for path in ("nano", UNET):
        hashes = facts(path, capsys)["hashes"]
        assert (hashes["sha256"], hashes["model_hash"], hashes["tensors_sha256"]) == (whole, whole[:10], tensors)


def test_the_lines_are_aligned_and_whole(capsys: pytest.CaptureFixture[str]):
    lines = shown("nano", capsys).splitlines()
    assert lines[0] == f"model folder  {NANO}"
    at = {line.index(word) for line, word in ((line, word) for line in lines for word in ("velocity", "yes", "trailing")
          if line.startswith("  ") and f"  {word}" in line)}  # fmt: skip
    assert len(at) == 1
    assert any(line.endswith(facts("nano", capsys)["hashes"]["sha256"]) for line in lines)
    assert "terminus.json: velocity, zero terminal SNR" in "\n".join(lines)


WEIGHTS = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3),
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (4, 2048),
    "model.diffusion_model.label_emb.0.0.weight": (4, 4),
    "first_stage_model.decoder.conv_in.weight": (2, 2),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (3,),
    "model_ema.diffusion_modelinput_blocks00weight": (2, 2),
}
"""Enough of a single file to be told apart; inspection reads no network."""


def single(path: Path, metadata: dict[str, str], *markers: str) -> Path:
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in WEIGHTS.items()}
    save_file(tensors | {marker: torch.zeros(0) for marker in markers}, path, metadata=metadata)
    return path


def test_a_single_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metadata = {
        "modelspec.title": "Nine channels", "modelspec.author": "A. Painter", "modelspec.license": "mit",
        "modelspec.trigger_phrase": "in the style of", "modelspec.prediction_type": "v-zsnr",
        "modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 5000, "else": "x",
    }  # fmt: skip
    found = facts(single(tmp_path / "a-vpred.safetensors", metadata, "v_pred", "ztsnr"), capsys)
    assert (found["kind"], found["architecture"]) == ("single file", "SDXL")
    assert found["task"] == "inpainting (9 input channels)"
    assert (found["prediction"], found["zero_terminal"], found["conflicts"]) == ("velocity", True, [])
    assert found["missing"] == ["text_encoder_2"]
    assert found["ema"] is True
    assert found["licence"] == "mit"
    assert found["about"]["trigger_phrase"] == "in the style of"
    assert found["about"]["thumbnail"] == "5023 characters"
    assert found["other_metadata"] == ["else"]
    assert [e["source"] for e in found["evidence"]] == [
        "marker tensors", "metadata modelspec.prediction_type", "file name",
    ]  # fmt: skip


def test_conflicts_and_a_wrong_hash_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metadata = {"modelspec.prediction_type": "epsilon", "modelspec.hash_sha256": "0x" + "0" * 64}
    path = single(tmp_path / "x.safetensors", metadata, "v_pred")
    found = facts(path, capsys)
    assert found["prediction"] == "velocity"
    assert found["hashes"]["stated"] == "wrong"
    assert len(found["conflicts"]) == 2
    right = found["hashes"]["tensors_sha256"]
    again = facts(single(tmp_path / "y.safetensors", {"modelspec.hash_sha256": f"0x{right}"}, "v_pred"), capsys)
    assert (again["hashes"]["stated"], again["conflicts"]) == ("right", [])


def test_an_impossible_file_can_still_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = facts(single(tmp_path / "x.safetensors", {}, "ztsnr"), capsys)
    assert (found["prediction"], found["zero_terminal"]) == ("epsilon", True)
    assert "no such model exists" in found["conflicts"][0]


def test_a_file_with_the_average_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shapes = {"input_blocks00weight": (320, 4, 3, 3), "label_emb00weight": (4, 4),
              "input_blocks41transformer_blocks0attn2to_kweight": (4, 2048)}  # fmt: skip
    tensors = {f"model_ema.diffusion_model{name}": torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors | {"first_stage_model.x": torch.zeros(1), "v_pred": torch.zeros(0)}, tmp_path / "x.safetensors")
    found = facts(tmp_path / "x.safetensors", capsys)
    assert (found["kind"], found["architecture"], found["prediction"]) == ("single file", "SDXL", "velocity")
    assert found["task"] == "text to image (4 input channels)"
    assert (found["missing"], found["ema"]) == (["text_encoder", "text_encoder_2"], False)


@pytest.mark.parametrize(("width", "name"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x")])
def test_older_models_are_named(tmp_path: Path, width: int, name: str, capsys: pytest.CaptureFixture[str]):
    unet = {
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, width),
    }
    save_file(
        {f"model.diffusion_model.{n}": torch.zeros(shape) for n, shape in unet.items()}, tmp_path / "x.safetensors"
    )
    assert facts(tmp_path / "x.safetensors", capsys)["architecture"] == name


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "vae.x"], "a FLUX model or one of its kind"),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "a Stable Diffusion 3 model or one of its kind"),
        (["input_blocks.0.0.weight"], "a UNet alone, not a whole model"),
        (["who.knows"], "something else; its first of 1 tensors is 'who.knows'"),
    ],
)
def test_other_networks_are_named(tmp_path: Path, names: list[str], what: str, capsys: pytest.CaptureFixture[str]):
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    found = facts(tmp_path / "x.safetensors", capsys)
    assert (found["kind"], found["what"]) == ("tensors", what)


def lora(path: Path, names: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    tensors = {name: torch.full(shape, 4.0, dtype=torch.float16) for name, shape in names.items()}
    save_file(tensors, path, metadata=metadata)
    return path


KOHYA = {
    "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (8, 64),
    "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": (64, 8),
    "lora_unet_input_blocks_4_1_proj_in.alpha": (),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (8, 32),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (32, 8),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": (),
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (KOHYA, {"method": ["LoRA"], "naming": "kohya", "modules": {"unet": 1, "text_encoder": 1}, "ranks": [8]}),
        (
            {"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 8),
             "unet.mid_block.attentions.0.proj_in.lora_B.weight": (8, 4),
             "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector": (8,)},
            {"method": ["LoRA", "DoRA"], "naming": "diffusers", "modules": {"unet": 1}, "ranks": [4]},
        ),
        (
            {"lora_unet_a.hada_w1_a": (9, 3), "lora_unet_a.hada_w1_b": (3, 7), "lora_unet_a.hada_w2_a": (9, 3),
             "lora_unet_a.hada_w2_b": (3, 7), "lora_unet_a.alpha": ()},
            {"method": ["LoHa"], "naming": "kohya", "modules": {"unet": 1}, "ranks": [3]},
        ),
        (
            {"base_model.model.mid_block.x.lora_A.weight": (2, 8),
             "base_model.model.mid_block.x.lora_B.weight": (8, 2)},
            {"method": ["LoRA"], "naming": "peft", "modules": {"unet": 1}, "ranks": [2]},
        ),
    ],
    ids=["kohya", "diffusers DoRA", "LoHa", "peft"],
)  # fmt: skip
def test_adapters(tmp_path: Path, names: dict, expected: dict, capsys: pytest.CaptureFixture[str]):
    found = facts(lora(tmp_path / "a.safetensors", names), capsys)
    assert found["kind"] == "adapter"
    assert {key: found[key] for key in expected} == expected
    assert found["alphas"] == ([4.0] if any(name.endswith("alpha") for name in names) else [])
    assert found["prediction"] is None


def test_what_an_adapter_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0", "ss_sd_model_name": "gamma.safetensors",
        "ss_v_parameterization": "True", "ss_zero_terminal_snr": "True", "ss_network_dim": "8",
        "ss_tag_frequency": json.dumps({"1_a": {"cat": 3, "dog": 5}, "2_b": {"cat": 4}}),
    }  # fmt: skip
    found = facts(lora(tmp_path / "a.safetensors", KOHYA, metadata), capsys)
    assert (found["prediction"], found["zero_terminal"]) == ("velocity", True)
    assert found["base_model"] == "sdxl_base_v1-0, gamma.safetensors"
    assert found["training"] == {"network_dim": "8"}
    assert found["tags"] == ["cat", "dog"]


@pytest.mark.parametrize("tags", ["{", "[1]", '{"a": 1}', '{"a": {"b": "c"}}', "[" * 100_000])
def test_odd_tag_counts_do_no_harm(tmp_path: Path, tags: str, capsys: pytest.CaptureFixture[str]):
    path = lora(tmp_path / "a.safetensors", KOHYA, {"ss_tag_frequency": tags})
    assert facts(path, capsys)["kind"] == "adapter"


def test_an_adapter_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lora(tmp_path / "adapter_model.safetensors", KOHYA)
    assert facts(tmp_path, capsys)["kind"] == "adapter"


@pytest.mark.parametrize(("part", "what"), [("unet", "a UNet"), ("vae", "an autoencoder"), ("text_encoder", "a CLIP")])
def test_single_networks(part: str, what: str, capsys: pytest.CaptureFixture[str]):
    for path in (NANO / part, next((NANO / part).glob("*.safetensors"))):
        found = facts(path, capsys)
        assert found["kind"] == "tensors"
        assert found["what"].startswith(what)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a run"
    (folder / "checkpoints" / "images-000000000096").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("run: {name: teal, dir: x}\nmodel: {start: nano}\ntraining: {images: 192}\n")
    rows = [{"step": step, "images_seen": 32 * step, "loss": 1 / step} for step in (1, 2, 3)]
    cut = '{"step": 4, "images_'
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + cut)
    (folder / "data.json").write_text('{"table": "latents", "version": 7, "rows": 12}')
    return folder


def test_a_run_that_is_not_finished(run: Path, capsys: pytest.CaptureFixture[str]):
    found = facts(run, capsys)
    assert (found["kind"], found["name"], found["start"]) == ("run", "teal", "nano")
    assert (found["images_seen"], found["images_asked"], found["finished"], found["model"]) == (96, 192, None, None)
    assert found["last_step"] == {"step": 3, "images_seen": 96, "loss": 1 / 3}
    assert found["checkpoints"] == ["images-000000000096"]
    assert found["data_version"] == 7


def test_a_finished_run_shows_its_model(run: Path, random_nano: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(random_nano, run / "model")
    (run / "facts.json").write_text(json.dumps({"finished": "2026-11-22T10:00:00+00:00", "images_seen": 192}))
    found = facts(run, capsys)
    assert found["finished"].startswith("2026")
    assert found["model"]["prediction"] == "velocity"
    text = shown(run, capsys)
    assert "its model" in text
    assert text.index("its model") > text.index("last step")


def test_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 1, Size: 8x8")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png", pnginfo=chunks)
    found = facts(tmp_path / "cat.png", capsys)
    assert (found["kind"], found["made_by"]) == ("image", "a1111")
    assert found["facts"]["Prompt"] == "a cat"
    chunks.add_text("workflow", long := "x" * 5000 + "the end")
    Image.new("RGB", (8, 8)).save(tmp_path / "long.png", pnginfo=chunks)
    assert facts(tmp_path / "long.png", capsys)["texts"]["workflow"] == long
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.webp")
    (tmp_path / "plain.webp").rename(tmp_path / "an image by content.bin")
    assert facts(tmp_path / "an image by content.bin", capsys)["made_by"] == "none"


EVIL = "\x1b]0;owned\x07\x1b[2J[bold red]a[/bold red]\u202eevil\nsecond line"


def test_nothing_from_a_file_reaches_the_terminal_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metadata = {"modelspec.title": EVIL, "modelspec.prediction_type": EVIL, f"key{EVIL}": "x", "ss_output_name": EVIL}
    paths = [
        single(tmp_path / "a\x1b[31m.safetensors", metadata),
        lora(tmp_path / "b.safetensors", KOHYA | {f"lora_unet_{EVIL}.lora_down.weight": (1, 1)}, metadata),
        lora(tmp_path / "c.safetensors", {EVIL: (1,)}, metadata),
    ]
    for path in paths:
        text = shown(path, capsys)
        assert all(char == "\n" or char.isprintable() for char in text)
        assert "[bold red]" in text
        inspect(str(path), as_json=True)
        raw = capsys.readouterr().out
        assert all(char == "\n" or (char.isprintable() and char.isascii()) for char in raw)


def test_long_metadata_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metadata = {"modelspec.description": "x" * 10**6, "modelspec.author": "y" * 10**6, "z" * 10**6: "z"}
    path = single(tmp_path / "a.safetensors", metadata)
    text = shown(path, capsys)
    assert len(text) < 6000
    assert facts(path, capsys)["about"]["description"].endswith("(1000000 characters)")


def test_numbers_that_json_does_not_know(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "log.jsonl").write_text('{"step": 1, "loss": NaN, "error": Infinity}\n')
    assert facts(run, capsys)["last_step"] == {"step": 1, "loss": None, "error": None}
    save_file({name: torch.full(shape, torch.nan) for name, shape in KOHYA.items()}, tmp_path / "n.safetensors")
    assert facts(tmp_path / "n.safetensors", capsys)["alphas"] == [None, None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.safetensors", b"", "This is an empty file"),
        ("model.ckpt", b"\x80\x02}q\x00.", "a pickle"),
        ("model.safetensors", b"PK\x03\x04 and so on", "zip"),
        ("model.gguf", b"GGUF\3\0\0\0 and so on", "a GGUF file.*the safetensors file of the same model"),
        ("note.txt", b"hello, this is a text and no model", "This is a text file"),
        ("broken.png", b"\x89PNG\r\n\x1a\nbroken", "image"),
    ],
)
def test_other_files_are_one_paragraph(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        inspect(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_places_with_nothing_to_inspect(tmp_path: Path):
    with pytest.raises(UserError, match="an empty folder"):
        inspect(str(tmp_path))
    with pytest.raises(UserError):
        inspect(str(tmp_path / "nothing here"))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="no UNet"):
        inspect(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-this-name/model", "", ".", "a/b/c/d"])
def test_odd_names_are_input_errors(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        inspect(name)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="not a file"):
        inspect(str(tmp_path / "pipe.safetensors"))


def test_a_model_folder_with_a_broken_part(tmp_path: Path, random_nano: Path):
    folder = shutil.copytree(random_nano, tmp_path / "m")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="Git LFS pointer"):
        inspect(str(folder))


@pytest.fixture(scope="module")
def nano_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as `terminus convert` writes it."""
    from terminus.model.convert import convert

    path = tmp_path_factory.mktemp("single") / "nano-vpred.safetensors"
    convert("nano", path)
    return path


def test_what_convert_writes_is_read_back(nano_file: Path, capsys: pytest.CaptureFixture[str]):
    single, folder = facts(nano_file, capsys), facts("nano", capsys)
    same = ("prediction", "zero_terminal", "spacing", "weighting", "images_seen", "caption_dropout", "licence",
            "parents", "native_pixels", "conflicts", "missing", "architecture", "task")  # fmt: skip
    assert {key: single[key] for key in same} == {key: folder[key] for key in same}
    assert single["hashes"]["stated"] == "right"
    assert single["evidence"][0]["source"] == "metadata terminus"
    assert single["components"].keys() == folder["components"].keys()  # a table and markers are none: they are evidence
    assert {"marker tensors", "alphas_cumprod"} <= {said["source"] for said in single["evidence"]}
    for network in ("unet", "vae", "text_encoder", "vision"):
        assert single["components"][network]["parameters"] == folder["components"][network]["parameters"]


def relabelled(source: Path, target: Path, metadata: dict[str, str] | None = None, drop: tuple[str, ...] = ()) -> Path:
    header = read_header(source)
    tensors = {name: value for name, value in load_file(source).items() if name not in drop}
    save_file(tensors, target, metadata=dict(header.metadata) | (metadata or {}))
    return target


def networks(path: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(path).items() if name not in ("v_pred", "ztsnr", "alphas_cumprod")}


def test_a_right_checkpoint_is_not_copied(tmp_path: Path, nano_file: Path):
    for source, target in ((NANO, "copy"), (nano_file, "copy-vpred.safetensors")):
        with pytest.raises(UserError, match="Nothing is wrong"):
            write_fixed_copy(source, tmp_path / target)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "drop", "problem"),
    [
        ({}, ("v_pred", "ztsnr"), "v_pred is missing"),
        ({}, ("alphas_cumprod",), "alphas_cumprod is missing"),
        ({"modelspec.prediction_type": "epsilon"}, (), "prediction_type says epsilon"),
        ({"modelspec.prediction_type": "v"}, (), "prediction_type is 'v'"),
        ({"ss_zero_terminal_snr": "False"}, (), "ss_zero_terminal_snr says False"),
    ],
)
def test_a_file_is_corrected(tmp_path: Path, nano_file: Path, metadata: dict, drop: tuple[str, ...], problem: str):
    source = relabelled(nano_file, tmp_path / "wrong.safetensors", metadata, drop)
    before = source.read_bytes()
    fixed = write_fixed_copy(source, tmp_path / "right-vpred.safetensors")
    assert any(problem in text for text in fixed.problems)
    assert source.read_bytes() == before
    detection = detect(fixed.target)
    assert (detection.schedule, detection.conflicts) == (Schedule(), ())
    assert read_header(fixed.target).metadata == read_header(nano_file).metadata
    old, new = networks(nano_file), networks(fixed.target)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    with pytest.raises(UserError, match="Nothing is wrong"):
        write_fixed_copy(fixed.target, tmp_path / "again-vpred.safetensors")


@pytest.mark.parametrize(
    ("decided", "name", "expected"),
    [("v", "v-vpred", Schedule(zero_terminal=False)), ("epsilon", "eps", Schedule("epsilon", zero_terminal=False))],
)
def test_a_decision_overrides_every_label(
    tmp_path: Path, nano_file: Path, decided: str, name: str, expected: Schedule, capsys: pytest.CaptureFixture[str]
):
    target = write_fixed_copy(nano_file, tmp_path / f"{name}.safetensors", decided).target
    assert (detect(target).schedule, detect(target).conflicts) == (expected, ())
    found = facts(target, capsys)
    assert (found["hashes"]["stated"], found["conflicts"]) == ("right", [])
    assert ("v_pred" in read_header(target).tensors, "ztsnr" in read_header(target).tensors) == (decided == "v", False)
    back = write_fixed_copy(target, tmp_path / "back-vpred.safetensors", "v-ztsnr").target
    assert back.read_bytes() == nano_file.read_bytes()


def test_an_unlabelled_file_of_sdxl_gets_its_side_car(tmp_path: Path):
    source = single(tmp_path / "plain.safetensors", {})
    assert detect(source).schedule.prediction == "epsilon"
    target = write_fixed_copy(source, tmp_path / "right-vpred.safetensors", "v-ztsnr").target
    assert "in_channels: 9" in target.with_suffix(".yaml").read_text()
    sources = [e.source for e in detect(target).evidence]
    assert "side-car .yaml" in sources
    assert detect(target).conflicts == ()


def test_an_impossible_file_needs_a_decision(tmp_path: Path):
    source = single(tmp_path / "x.safetensors", {}, "ztsnr")
    with pytest.raises(UserError, match="--as v-ztsnr"):
        write_fixed_copy(source, tmp_path / "y.safetensors")
    assert detect(write_fixed_copy(source, tmp_path / "y.safetensors", "v-ztsnr").target).schedule == Schedule()


def test_what_nothing_says_is_not_made_up(tmp_path: Path):
    """OneTrainer's file and its configuration: velocity, and no word on the schedule."""
    source = single(tmp_path / "x.safetensors", {}, "v_pred")
    source.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    with pytest.raises(UserError, match=r"Nothing says whether .* zero terminal SNR.*--probe.*--as v-ztsnr"):
        write_fixed_copy(source, tmp_path / "y-vpred.safetensors")
    fixed = write_fixed_copy(source, tmp_path / "y-vpred.safetensors", "v-ztsnr").target
    assert (detect(fixed).schedule, detect(fixed).conflicts) == (Schedule(), ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas is set"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample is true"),
        ({"_class_name": "DDPMScheduler", "clip_sample": None}, ""),
    ],
)
def test_settings_that_spoil_images_elsewhere_are_corrected(
    tmp_path: Path, random_nano: Path, changes: dict, words: str
):
    source = shutil.copytree(random_nano, tmp_path / "wrong")
    config = source / "scheduler" / "scheduler_config.json"
    right = json.loads(config.read_text())
    config.write_text(json.dumps(right | changes))
    if not words:
        with pytest.raises(UserError, match="Nothing is wrong"):
            write_fixed_copy(source, tmp_path / "right")
        return
    fixed = write_fixed_copy(source, tmp_path / "right")
    assert [words in problem for problem in fixed.problems] == [True]
    assert json.loads((fixed.target / "scheduler" / "scheduler_config.json").read_text()) == right


def test_a_folder_is_corrected(tmp_path: Path, random_nano: Path):
    source = shutil.copytree(random_nano, tmp_path / "wrong")
    config = source / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"timestep_spacing": "leading"}))
    unet = source / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet) | {"v_pred": torch.zeros(0)}, unet, metadata={"format": "pt"})
    assert any("leading" in problem for problem in write_fixed_copy(source, tmp_path / "right").problems)
    for decided, expected in (("v", Schedule(zero_terminal=False)), ("v-ztsnr", Schedule())):
        target = write_fixed_copy(source, tmp_path / f"as-{decided}", decided).target
        assert (detect(target).schedule, detect(target).conflicts) == (expected, ())
        assert load_components(target).record.schedule == expected
        assert json.loads((target / "terminus.json").read_text())["images_seen"] == 0
    assert json.loads(config.read_text())["timestep_spacing"] == "leading"


def test_a_copy_may_not_be_misnamed_or_overwrite(tmp_path: Path, nano_file: Path):
    wrong = relabelled(nano_file, tmp_path / "wrong.safetensors", {"modelspec.prediction_type": "epsilon"})
    for target, decided, message in (
        ("a-vpred.safetensors", "epsilon", "The name says velocity prediction"),
        ("a-ztsnr.safetensors", "epsilon", "would contradict"),
        ("my-flow.safetensors", None, "flow"),
        ("folder", None, "a .safetensors file"),
        ("wrong.safetensors", None, "Nothing is overwritten"),
        ("x.safetensors", "sample", "cannot be 'sample'"),
    ):
        with pytest.raises(UserError, match=message):
            write_fixed_copy(wrong, tmp_path / target, decided)
    with pytest.raises(UserError, match="a folder"):
        write_fixed_copy(NANO, tmp_path / "a.safetensors", "v")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.safetensors"]


def test_the_words_of_a_correction(tmp_path: Path, nano_file: Path, capsys: pytest.CaptureFixture[str]):
    wrong = relabelled(nano_file, tmp_path / "wrong.safetensors", {"modelspec.prediction_type": "\x1b[31m"})
    print_fix(str(wrong), str(tmp_path / "right-vpred.safetensors"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.rstrip().endswith("right-vpred.safetensors")
