"""A model on disk: what is written is what is read, and what cannot be trusted is refused with one paragraph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from terminus.errors import UserError
from terminus.model.components import Components, load_components, save_components
from terminus.model.record import Record, Schedule, load_record

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture
def copy(random_nano: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(random_nano, tmp_path / "model"))


def tensors(components: Components) -> dict[str, Tensor]:
    """Of every network, with the network's name in front."""
    vision = components.vision
    assert vision is not None
    parts = {
        "unet": components.unet,
        "vae": components.vae.autoencoder,
        "text_encoder_1": components.text_encoders.text_encoder_1,
        "text_encoder_2": components.text_encoders.text_encoder_2,
        "vision": vision,
    }
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_survive_the_disk_bit_for_bit(random_nano: Path, tmp_path: Path, dtype: torch.dtype):
    """In fp16 too: the fixture was stored so, hence holds nothing that fp16 would round."""
    before = load_components(random_nano)
    if dtype == torch.float32:
        before.unet.conv_in.weight.data += 1e-7  # what only fp32 can hold
    save_components(before, tmp_path, dtype)
    after = tensors(load_components(tmp_path))
    assert after.keys() == tensors(before).keys()
    assert all(torch.equal(value, after[key]) for key, value in tensors(before).items())
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.float32}
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype}


def test_a_weight_that_fp16_cannot_hold_is_not_written_as_infinity(random_nano: Path, tmp_path: Path):
    components = load_components(random_nano)
    components.unet.conv_in.bias.data[0] = 70000.0
    with pytest.raises(OverflowError, match=r"conv_in\.bias does not fit"):
        save_components(components, tmp_path)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(), Schedule("epsilon", zero_terminal=False), Schedule(beta_start=0.001, beta_end=0.02, timesteps=500),
        Schedule("flow", shift=3.0),
    ],
)  # fmt: skip
def test_the_record_survives_the_disk(random_nano: Path, tmp_path: Path, schedule: Schedule):
    record = Record(
        schedule, {"kind": "min_snr", "gamma": 5.0}, caption_dropout=0.1, images_seen=10**9, parents=("a", "b"),
        licence="MIT", native_pixels=32,
    )  # fmt: skip
    save_components(replace(load_components(random_nano), record=record), tmp_path)
    assert load_components(tmp_path).record == record


def test_the_schedulers_file_decides_what_is_sampled(copy: Path):
    """`terminus.json` repeats the schedule for readers; a folder whose files disagree follows diffusers' file."""
    change_json(copy / "scheduler" / "scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=False)
    assert load_record(copy).schedule == Schedule("epsilon", zero_terminal=False)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: openrail++\ntags:\n- x\n---\n# A model\n", "openrail++"),
        ("---\nlicense: other\nlicense_name: 'flux-1'\n---\n", "flux-1"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n---\n", None),
        ("license: mit\n", None),
        ("---\ntags: []\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: \xff\n---\n", None),
    ],
)
def test_a_folders_licence_is_that_of_its_model_card(copy: Path, card: str, licence: str | None):
    (copy / "README.md").write_bytes(card.encode("latin-1"))
    assert load_record(copy).licence == licence
    record = json.loads((copy / "terminus.json").read_text())
    (copy / "terminus.json").write_text(json.dumps({**record, "licence": "cc0-1.0"}))
    assert load_record(copy).licence == "cc0-1.0", "what we recorded goes before"


def test_a_folder_that_terminus_did_not_write_has_an_empty_record(copy: Path):
    (copy / "terminus.json").unlink()
    shutil.rmtree(copy / "vision")
    components = load_components(copy)
    assert components.record == Record()
    assert components.vision is None
    assert components.native_pixels == 32


@pytest.mark.parametrize("folder", TEXT_ENCODERS)
def test_text_encoder_keys_are_written_in_the_older_form(random_nano: Path, folder: str):
    stored = load_file(random_nano / folder / "model.safetensors").keys()
    assert {key.split(".")[0] for key in stored} <= {"text_model", "text_projection"}
    assert "text_model.embeddings.token_embedding.weight" in stored
    assert ("text_projection.weight" in stored) == (folder == "text_encoder_2")


@pytest.mark.parametrize("folder", TEXT_ENCODERS)
def test_text_encoder_keys_are_read_in_both_forms(random_nano: Path, copy: Path, folder: str):
    path = copy / folder / "model.safetensors"
    change_tensors(path, lambda stored: {key.removeprefix("text_model."): value for key, value in stored.items()})
    expected = tensors(load_components(random_nano))
    assert all(torch.equal(value, expected[key]) for key, value in tensors(load_components(copy)).items())


def test_buffers_of_old_files_are_ignored(copy: Path):
    position_ids = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    change_tensors(copy / "text_encoder" / "model.safetensors", lambda stored: stored | position_ids)
    load_components(copy)


def test_the_end_of_text_token_is_the_last(random_nano: Path, copy: Path):
    """CLIP pools where the ids are highest, or at eos_token_id: only the last id is both."""
    text = load_components(random_nano).text_encoders
    for tokenizer, text_encoder in ((text.tokenizer_1, text.text_encoder_1), (text.tokenizer_2, text.text_encoder_2)):
        assert tokenizer.eos_token_id == text_encoder.config.eos_token_id == len(tokenizer) - 1
    path = copy / "tokenizer" / "vocab.json"
    change_json(path, extra=max(json.loads(path.read_text()).values()) + 1)
    with pytest.raises(UserError, match="expects it last"):
        load_components(copy)


def test_the_second_tokenizer_pads_with_token_0_and_the_first_with_the_end(random_nano: Path):
    text = load_components(random_nano).text_encoders
    first, second = text.tokens(["a dog"])
    assert (first[0, -1], second[0, -1]) == (text.tokenizer_1.eos_token_id, 0)
    assert first.shape == second.shape == (1, 32)


def test_captions_are_cut_and_padded_as_the_tokenizer_would(random_nano: Path, caplog: pytest.LogCaptureFixture):
    text = load_components(random_nano).text_encoders
    captions = ["", "a dog", "tree " * 30, "tree " * 31, "a" * 500, "日本語 🦊", "<|endoftext|> a"]
    for tokenizer, ids in zip((text.tokenizer_1, text.tokenizer_2), text.tokens(captions), strict=True):
        theirs = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        assert torch.equal(ids, theirs)
    assert [record.args[0] for record in caplog.records if record.name == "terminus"] == [33, 502] * 2


def use_pickle(folder: Path, component: str, stem: str) -> None:
    stored = folder / component / f"{stem}.safetensors"
    torch.save(load_file(stored), stored.with_name(f"{stem}.bin"))
    stored.unlink()


@pytest.mark.parametrize(
    ("component", "stem"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_pickles_are_never_opened(copy: Path, component: str, stem: str):
    use_pickle(copy, component, stem)
    with pytest.raises(UserError, match="pickles and are never opened") as caught:
        load_components(copy)
    assert str(copy / component) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("unet", ["diffusers_modules.local.evil", "UNet2DConditionModel"]),
        ("unet", ["diffusers", "UNet3DConditionModel"]),
        ("vae", ["os", "system"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("tokenizer", None),
    ],
)
def test_classes_that_a_folder_names_are_not_imported(copy: Path, name: str, pair: object):
    change_json(copy / "model_index.json", **{name: pair})
    with pytest.raises(UserError, match=f"{name} is .*no class that a file names is imported"):
        load_components(copy)


def test_weights_of_another_shape(copy: Path):
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    change_tensors(path, lambda stored: stored | {"conv_in.bias": torch.zeros(3)})
    with pytest.raises(UserError, match=r"conv_in.bias is \[3\], the configuration says \[16\]"):
        load_components(copy)


def test_missing_and_unknown_weights_are_both_told(copy: Path):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    change_tensors(path, lambda stored: {("x" + k if k == "encoder.conv_in.bias" else k): v for k, v in stored.items()})
    with pytest.raises(UserError, match=r"1 keys are missing, .*encoder.conv_in.bias.*1 keys are unknown, .*xencoder"):
        load_components(copy)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder_2/model", "vision/model"])
def test_weights_that_are_not_numbers(copy: Path, part: str, bad: float):
    path = copy / f"{part}.safetensors"

    def spoil(stored: dict[str, Tensor]) -> dict[str, Tensor]:
        name = sorted(stored)[0]
        stored[name].view(-1)[-1] = bad
        return stored

    change_tensors(path, spoil)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        load_components(copy)


@pytest.mark.parametrize("damage", [b"", b"not safetensors", b"\xff" * 64])
def test_a_damaged_file(copy: Path, damage: bytes):
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(damage)
    with pytest.raises(UserError, match="not a safetensors file"):
        load_components(copy)


def test_a_truncated_file(copy: Path):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a safetensors file"):
        load_components(copy)


@pytest.mark.parametrize(
    "name",
    [
        *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"),
        *("text_encoder/config.json", "tokenizer/tokenizer_config.json"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "not JSON", "[]"])
def test_json_files_that_are_missing_or_broken(copy: Path, name: str, damage: str):
    if damage == "missing":
        (copy / name).unlink()
    else:
        (copy / name).write_text(damage)
    with pytest.raises(UserError) as caught:
        load_components(copy)
    assert str(caught.value).startswith(f"{copy / name}: This ")


def test_an_index_may_not_name_a_path(copy: Path):
    stored = copy / "unet" / "diffusion_pytorch_model.safetensors"
    stored.rename(copy / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(copy / "elsewhere.safetensors"), "../elsewhere.safetensors")}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names a path"):
        load_components(copy)


def test_shards_are_one_model(random_nano: Path, copy: Path):
    stored = copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(stored)
    stored.unlink()
    names = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(whole)}
    for part in set(names.values()):
        save_file({key: value for key, value in whole.items() if names[key] == part}, copy / "unet" / part)
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    expected = load_components(random_nano).unet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in load_components(copy).unet.state_dict().items())


def test_text_encoders_and_unet_must_belong_together(random_nano: Path, tmp_path: Path):
    components = load_components(random_nano)
    config = CLIPTextConfig.from_dict(components.text_encoders.text_encoder_1.config.to_dict() | {"hidden_size": 16})
    narrow = replace(components.text_encoders, text_encoder_1=CLIPTextModel(config))
    save_components(replace(components, text_encoders=narrow), tmp_path)
    with pytest.raises(UserError, match="reads a context of 64, the text encoders give 48"):
        load_components(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "No model is here"), ("./owner/name", "No model is here"), ("owner/name", "on the hub")],
)
def test_a_model_that_is_not_there_is_one_paragraph(tmp_path: Path, monkeypatch, name: str, message: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        load_components(name)
    assert "\n" not in str(caught.value)
