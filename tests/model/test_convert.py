"""Folder to file to folder: every bit comes back, nothing is overwritten, and what would not survive is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from terminus.config.errors import Origin
from terminus.config.source import parse_yaml, plain_tree
from terminus.errors import UserError
from terminus.model import modelspec
from terminus.model.architecture import SDXL
from terminus.model.components import load_components
from terminus.model.convert import convert
from terminus.model.detect import detect
from terminus.model.foreign import sdxl_configs
from terminus.model.header import read_header
from terminus.model.parts import CheckpointParts, read_folder
from terminus.model.record import Record, Schedule
from terminus.model.weights import SHIPPED

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(random_nano: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_nano, tmp_path / "model"))


def contents(folder: Path) -> dict[str, object]:
    """Every file: JSON as its content, tensors as their bytes and precisions, the rest as bytes."""
    result: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            result[name] = json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
            result[name] = {
                key: (str(v.dtype), v.shape, v.view(torch.uint8).numpy().tobytes()) for key, v in tensors.items()
            }
        else:
            result[name] = path.read_bytes()
    return result


@pytest.mark.parametrize("model", ["nano", "random"])
def test_folder_file_folder(random_nano: Path, tmp_path: Path, model: str):
    source = random_nano if model == "random" else "nano"
    convert(source, tmp_path / "a-vpred.safetensors")
    convert(tmp_path / "a-vpred.safetensors", tmp_path / "folder")
    expected = contents(random_nano if model == "random" else SHIPPED["nano"])
    expected = {name: value for name, value in expected.items() if not name.startswith(("README", "training"))}
    assert contents(tmp_path / "folder") == expected


def test_a_folder_of_transformers_newer_form(random_nano: Path, copy: Path, tmp_path: Path):
    """Text encoders without the `text_model.` in front: the same file comes out."""
    for text_encoder in ("text_encoder", "text_encoder_2"):
        path = copy / text_encoder / "model.safetensors"
        tensors = {name.removeprefix("text_model."): value for name, value in load_file(path).items()}
        save_file(tensors | {"embeddings.position_ids": torch.arange(32)[None]}, path)
    one, two = convert(random_nano, tmp_path / "1-vpred.safetensors"), convert(copy, tmp_path / "2-vpred.safetensors")
    assert (
        read_header(one.target).metadata["modelspec.hash_sha256"]
        == read_header(two.target).metadata["modelspec.hash_sha256"]
    )


def test_equal_models_are_equal_bytes(random_nano: Path, tmp_path: Path):
    files = [convert(random_nano, tmp_path / f"{name}-vpred.safetensors").target for name in "ab"]
    again = convert(convert(files[0], tmp_path / "folder").target, tmp_path / "c-vpred.safetensors").target
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_file(again).keys() == load_file(files[0]).keys()
    assert convert(files[0], tmp_path / "d-vpred.safetensors").target.read_bytes() == files[0].read_bytes()


def test_bytes_depend_on_no_hash_seed_and_no_place(random_nano: Path, tmp_path: Path):
    """Another process, which orders its sets otherwise, stands elsewhere and gives a relative name."""
    for name, shard_size in (("x-vpred.safetensors", None), ("folder", "100KB")):
        convert(random_nano, tmp_path / "here" / name, shard_size=shard_size)
    code = (
        "from terminus.model.convert import convert\n"
        f"convert({os.path.relpath(random_nano, tmp_path)!r}, 'there/x-vpred.safetensors')\n"
        "convert('there/x-vpred.safetensors', 'there/folder', shard_size='100KB')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"}, check=True)
    files = {path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert len(files) > 20
    for name in files:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_precisions(copy: Path, tmp_path: Path, precision: str, dtype: torch.dtype):
    path = copy / UNET
    tensors = load_file(path)
    save_file({name: value.float() for name, value in tensors.items()}, path)
    converted = convert(copy, tmp_path / "x-vpred.safetensors", precision=precision)
    stored = load_file(converted.target)
    tables = {name: stored.pop(name).dtype for name in ("v_pred", "ztsnr", "alphas_cumprod")}
    assert set(tables.values()) == {torch.float32}
    assert {value.dtype for value in stored.values()} == {dtype}


def test_a_precision_that_does_not_exist(random_nano: Path, tmp_path: Path):
    with pytest.raises(UserError, match="'fp8' is not a precision"):
        convert(random_nano, tmp_path / "x-vpred.safetensors", precision="fp8")


def test_what_becomes_one_matrix_may_have_several_precisions_if_one_is_named(copy: Path, tmp_path: Path):
    path = copy / "text_encoder_2" / "model.safetensors"
    name = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name].float()}, path)
    with pytest.raises(UserError, match=r"several precisions.*Name one"):
        convert(copy, tmp_path / "x-vpred.safetensors")
    file = convert(copy, tmp_path / "x-vpred.safetensors", precision="fp16").target
    folder = convert(file, tmp_path / "folder").target
    assert torch.equal(load_file(folder / "text_encoder_2" / "model.safetensors")[name], tensors[name])


def test_shards_are_counted_in_the_precision_that_is_written(copy: Path, tmp_path: Path):
    path = copy / UNET
    save_file({name: value.float() for name, value in load_file(path).items()}, path)
    folder = convert(copy, tmp_path / "folder", precision="fp16", shard_size="200KB").target
    sizes = [file.stat().st_size for file in (folder / "unet").glob("*.safetensors")]
    assert len(sizes) > 1
    assert sorted(sizes)[1] > 150_000  # all but the last are nearly full
    index = json.loads((folder / f"{UNET}.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(v.numel() for v in load_file(path).values())
    assert load_components(folder).record == load_components(copy).record


def test_each_network_keeps_its_precision(copy: Path, tmp_path: Path):
    path = copy / UNET
    save_file({name: value.bfloat16() for name, value in load_file(path).items()}, path)
    convert(copy, tmp_path / "x-vpred.safetensors")
    convert(tmp_path / "x-vpred.safetensors", tmp_path / "folder")
    assert contents(tmp_path / "folder") == contents(copy)


@pytest.mark.parametrize(
    ("part", "weight", "in_file"),
    [
        ("vae/diffusion_pytorch_model", "decoder.conv_in.bias", "first_stage_model.decoder.conv_in.bias"),
        ("text_encoder_2/model", "text_model.final_layer_norm.bias", "conditioner.embedders.1.model."),
    ],
)
def test_what_fp16_cannot_hold(copy: Path, tmp_path: Path, part: str, weight: str, in_file: str):
    path = copy / f"{part}.safetensors"
    tensors = {name: value.float() for name, value in load_file(path).items()}
    tensors[weight][0] = 70000.0
    save_file(tensors, path)
    target = tmp_path / "x-vpred.safetensors"
    with pytest.raises(UserError, match=rf"{in_file}.* does not fit torch\.float16.*bf16"):
        convert(copy, target, precision="fp16")
    with pytest.raises(UserError, match=rf"{part.split('/')[0]}: {weight} does not fit torch\.float16.*bf16"):
        convert(copy, tmp_path / "folder", precision="fp16")
    assert [left.name for left in tmp_path.iterdir()] == [copy.name]
    convert(copy, target)


def test_nothing_is_overwritten_and_nothing_is_left_behind(copy: Path, tmp_path: Path):
    target = tmp_path / "out" / "x-vpred.safetensors"
    convert(copy, target)
    before = target.read_bytes()
    for name in (target, target.parent, copy):
        with pytest.raises(UserError, match="exists already"):
            convert("nano", name)
    target.with_name("y-vpred.yaml").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        convert(copy, target.with_name("y-vpred.safetensors"))
    (target.parent / "z-vpred.safetensors").symlink_to("nowhere")
    with pytest.raises(UserError, match="exists already"):
        convert(copy, target.parent / "z-vpred.safetensors")
    assert target.read_bytes() == before
    (copy / UNET).write_bytes(b"")
    with pytest.raises(UserError):
        convert(copy, tmp_path / "out" / "new-vpred.safetensors")
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "x-vpred.safetensors",
        "y-vpred.yaml",
        "z-vpred.safetensors",
    ]


def test_a_write_that_fails_leaves_nothing(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("terminus.model.writing._sync", full)
    for name in ("x-vpred.safetensors", "folder"):
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            convert(copy, tmp_path / "out" / name)
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["my-flow-vpred", "bigASPv25-vpred", "NoobAI-RF"])
def test_names_that_mean_another_model(random_nano: Path, tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"SD\.Next decides by the name"):
        convert(random_nano, tmp_path / f"{name}.safetensors")


def test_an_epsilon_model_may_not_be_called_velocity(copy: Path, tmp_path: Path):
    rewrite(copy / "scheduler" / "scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=False)
    with pytest.raises(UserError, match="The name says velocity prediction, the model predicts epsilon"):
        convert(copy, tmp_path / "my-V-Pred.safetensors")
    convert(copy, tmp_path / "my.safetensors")


def test_a_name_that_does_not_say_velocity_is_warned_of(
    random_nano: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, "terminus"):
        convert(random_nano, tmp_path / "flowers.safetensors")
    assert "flowers-vpred.safetensors would tell it" in caplog.text
    caplog.clear()
    convert(random_nano, tmp_path / "flowers-VPred.safetensors")
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin"])
def test_pickles_are_no_targets_and_no_sources(random_nano: Path, tmp_path: Path, name: str):
    with pytest.raises(UserError, match="pickles"):
        convert(random_nano, tmp_path / name)
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="pickles"):
        convert(tmp_path / name, tmp_path / "x.safetensors")


def test_shards(random_nano: Path, tmp_path: Path):
    from diffusers import UNet2DConditionModel

    folder = convert(random_nano, tmp_path / "shards", shard_size="100KB").target
    names = sorted(path.name for path in (folder / "unet").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"diffusion_pytorch_model-00001-of-{len(names):05d}.safetensors"
    expected = load_components(random_nano).unet.state_dict()
    for unet in (
        load_components(folder).unet,
        UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32),
    ):
        assert all(torch.equal(value, expected[name]) for name, value in unet.state_dict().items())
    convert(folder, tmp_path / "x-vpred.safetensors")
    convert(tmp_path / "x-vpred.safetensors", tmp_path / "whole")
    assert contents(tmp_path / "whole") == contents(random_nano)
    with pytest.raises(UserError, match="is not a size"):
        convert(random_nano, tmp_path / "other", shard_size="many")
    with pytest.raises(UserError, match="has no shards"):
        convert(random_nano, tmp_path / "y-vpred.safetensors", shard_size="1GB")
    with pytest.raises(UserError, match="one set of weights"):
        convert(random_nano, tmp_path / "y-vpred.safetensors", ema=True)


def test_a_folder_says_to_diffusers_what_the_model_is(tmp_path: Path):
    folder = convert("nano", tmp_path / "folder").target
    said = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    right = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
             "clip_sample": False, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
             "num_train_timesteps": 1000, "_class_name": "EulerDiscreteScheduler"}  # fmt: skip
    assert {key: said[key] for key in right} == right
    assert not said.keys() & {"trained_betas"}


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_scheduler_of_the_target_samples_as_the_model_was_trained(copy: Path, tmp_path: Path):
    """A ZTSNR model whose folder starts its steps at 946, or names another class, is given what it needs."""
    path = copy / "scheduler" / "scheduler_config.json"
    expected = json.loads(path.read_text())
    rewrite(path, _class_name="DDIMScheduler", timestep_spacing="leading", clip_sample=True)
    rewrite(
        copy / "model_index.json", scheduler=["diffusers", "DDIMScheduler"], safety_checker=["diffusers", "Checker"]
    )
    folder = convert(copy, tmp_path / "folder").target
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text()) == expected
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert index["safety_checker"] == [None, None]


@pytest.mark.parametrize("ramp", ["karras", "exponential", "beta"])
def test_a_ramp_that_wastes_the_steps_of_a_ztsnr_model_is_not_kept(copy: Path, tmp_path: Path, ramp: str):
    path = copy / "scheduler" / "scheduler_config.json"
    expected = json.loads(path.read_text())
    rewrite(path, **{f"use_{ramp}_sigmas": True})
    folder = convert(copy, tmp_path / "folder").target
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text()) == expected


@pytest.mark.parametrize("sample_size", [None, [8, 16]])
def test_a_unet_that_does_not_say_its_size(copy: Path, tmp_path: Path, sample_size: object):
    """ModelSpec wants a resolution from everyone; that of SDXL's latent stands for one that is not said."""
    rewrite(copy / "unet" / "config.json", sample_size=sample_size)
    rewrite(copy / "terminus.json", native_pixels=None)
    assert load_components(copy).native_pixels == 128 * 4
    said = read_header(convert(copy, tmp_path / "x-vpred.safetensors").target).metadata
    assert said["modelspec.resolution"] == "512x512"


def test_the_words_of_a_file_are_carried_over_and_what_is_lost_is_told(
    random_nano: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file = convert(random_nano, tmp_path / "a-vpred.safetensors").target
    words = {"modelspec.author": "A. Painter", "modelspec.tags": "ink", "modelspec.vae_dtype": "bf16,fp32"}
    words["modelspec.usage_hint"] = "gently"
    stored = dict(read_header(file).metadata)
    save_file(load_file(file), tmp_path / "b-vpred.safetensors", metadata=stored | words | {"workflow": "{}"})
    caplog.clear()
    again = convert(tmp_path / "b-vpred.safetensors", tmp_path / "c-vpred.safetensors").target
    assert read_header(again).metadata == stored | words
    assert [record.message for record in caplog.records if "carried over" in record.message] == [
        "b-vpred.safetensors: its metadata holds 1 entries that are not carried over: workflow"
    ]
    caplog.clear()
    convert(again, tmp_path / "folder")
    assert "3 entries that are not carried over: modelspec.author, modelspec.tags, modelspec.vae_dtype" in caplog.text
    caplog.clear()
    convert(file, tmp_path / "another")
    assert caplog.text == ""


def test_text_encoders_are_loaded_in_the_precision_of_the_rest(copy: Path, tmp_path: Path):
    """Whatever the source says: transformers would obey `torch_dtype`, and diffusers does not look at it."""
    for text_encoder in ("text_encoder", "text_encoder_2"):
        rewrite(copy / text_encoder / "config.json", torch_dtype="float16", dtype="float16")
    file = convert(copy, tmp_path / "x-vpred.safetensors").target
    for source, target in ((copy, "one"), (file, "two")):
        folder = convert(source, tmp_path / target).target
        for text_encoder in ("text_encoder", "text_encoder_2", "vision"):
            said = json.loads((folder / text_encoder / "config.json").read_text())
            assert (said["dtype"], "torch_dtype" in said) == ("float32", False)


def test_a_leaky_epsilon_model_keeps_its_scheduler(copy: Path, tmp_path: Path):
    path = copy / "scheduler" / "scheduler_config.json"
    rewrite(path, prediction_type="epsilon", rescale_betas_zero_snr=False, timestep_spacing="leading", steps_offset=1)
    convert(copy, tmp_path / "x.safetensors")
    folder = convert(tmp_path / "x.safetensors", tmp_path / "folder").target
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text()) == json.loads(path.read_text())


def test_markers_in_a_folder_are_evidence_and_no_weights(copy: Path, tmp_path: Path):
    path = copy / UNET
    save_file(load_file(path) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    assert load_components(copy).record.schedule == Schedule()
    folder = convert(convert(copy, tmp_path / "x-vpred.safetensors").target, tmp_path / "folder").target
    assert "v_pred" not in load_file(folder / UNET)


def test_a_folder_that_terminus_did_not_write_gets_no_record(copy: Path, tmp_path: Path):
    (copy / "terminus.json").unlink()
    shutil.rmtree(copy / "vision")
    convert(copy, tmp_path / "x-vpred.safetensors")
    folder = convert(tmp_path / "x-vpred.safetensors", tmp_path / "folder").target
    assert not (folder / "terminus.json").exists()
    assert not (folder / "vision").exists()
    assert load_components(folder).record == Record()


def test_early_names_of_the_vae_are_converted_and_loaded(random_nano: Path, copy: Path, tmp_path: Path):
    path, early = (
        copy / "vae" / "diffusion_pytorch_model.safetensors",
        {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
    )
    tensors = load_file(path)
    for new, old in early.items():
        tensors = {
            name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for name, value in tensors.items()
        }
    save_file(tensors, path)
    assert load_components(copy).vae.id == load_components(random_nano).vae.id
    convert(copy, tmp_path / "folder")
    assert contents(tmp_path / "folder") == contents(random_nano)


def parts_of_sdxl(channels: int, schedule: Schedule) -> CheckpointParts:
    return CheckpointParts("", "", {}, sdxl_configs(channels), {}, Record(schedule), {}, {}, {})


@pytest.mark.parametrize("channels", [4, 9])
def test_the_side_car_says_velocity_and_the_channels(channels: int):
    parts = parts_of_sdxl(channels, Schedule())
    assert modelspec.needs_side_car(parts)
    assert not modelspec.needs_side_car(parts_of_sdxl(channels, Schedule("epsilon", zero_terminal=False)))
    tree = plain_tree(parse_yaml(modelspec.side_car(parts), lambda row, column: Origin(f"{row}:{column}", "", 0)))
    params = tree["model"]["params"]
    assert params["network_config"]["params"]["in_channels"] == channels
    assert params["network_config"]["params"]["transformer_depth"] == list(SDXL.unet.transformer_layers)
    denoiser = params["denoiser_config"]["params"]
    classes = {name: denoiser[f"{name}_config"]["target"].rsplit(".", 1)[1] for name in ("weighting", "scaling")}
    assert classes == {"weighting": "VWeighting", "scaling": "VScaling"}
    assert len(params["conditioner_config"]["params"]["emb_models"]) == 5
    said = modelspec.modelspec_metadata(parts)
    inpainting = "-inpainting" if channels == 9 else ""
    assert said["modelspec.architecture"] == f"stable-diffusion-xl-v1-base{inpainting}"
    assert (said["modelspec.resolution"], said["ss_base_model_version"]) == ("1024x1024", "sdxl_base_v1-0")


def test_the_side_car_is_written_beside_the_file_and_believed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(modelspec, "is_sdxl", lambda parts: True)
    converted = convert(copy, tmp_path / "x-vpred.safetensors")
    assert converted.files == (tmp_path / "x-vpred.safetensors", tmp_path / "x-vpred.yaml")
    sources = {evidence.source: evidence for evidence in detect(converted.target).evidence}
    assert sources["side-car .yaml"].prediction == "velocity"


def test_what_was_written_is_told(random_nano: Path, tmp_path: Path):
    file = convert(random_nano, tmp_path / "x-vpred.safetensors")
    assert (file.files, file.size, file.says) == ((file.target,), file.target.stat().st_size, "v-zsnr")
    folder = convert(file.target, tmp_path / "folder")
    assert folder.tensors == file.tensors == sum(len(t) for t in read_folder(random_nano).tensors.values())
    assert set(folder.files) == {path for path in folder.target.rglob("*") if path.is_file()}
