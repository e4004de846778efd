"""`terminus inspect --fix` on sources that are odd: it corrects them, or says why not, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from terminus.errors import UserError
from terminus.inspection.fix import write_fixed_copy
from terminus.model.detect import detect
from terminus.model.header import read_header
from terminus.model.record import Schedule

UNET = "model.diffusion_model.input_blocks.0.0.weight"


def test_an_adapter_gets_no_labels_of_a_model(tmp_path: Path):
    names = [f"lora_unet_input_blocks_4_1_proj_in.lora_{which}.weight" for which in ("down", "up")]
    save_file({name: torch.zeros(4, 4) for name in names}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="holds no UNet"):
        write_fixed_copy(tmp_path / "lora.safetensors", tmp_path / "x-vpred.safetensors", "v-ztsnr")
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_file_in_eight_bits_is_corrected_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    weight = torch.randn(8, 9, 3, 3).to(dtype)
    save_file({UNET: weight}, tmp_path / "x.safetensors")
    target = write_fixed_copy(tmp_path / "x.safetensors", tmp_path / "y-vpred.safetensors", "v-ztsnr").target
    assert detect(target).schedule == Schedule()
    stored = load_file(target)[UNET]
    assert stored.dtype == dtype
    assert torch.equal(stored.view(torch.uint8), weight.view(torch.uint8))


def test_a_moving_average_alone_is_corrected(tmp_path: Path):
    save_file({"model_ema.diffusion_modelinput_blocks00weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    target = write_fixed_copy(tmp_path / "x.safetensors", tmp_path / "y-vpred.safetensors", "v").target
    assert "v_pred" in read_header(target).tensors


@pytest.mark.parametrize(("decided", "kept"), [("v", False), ("v-ztsnr", True), ("epsilon", False)])
def test_what_one_trainer_was_told_goes_where_it_is_wrong(tmp_path: Path, decided: str, kept: bool):
    told = json.dumps({"rescale_noise_scheduler_to_zero_terminal_snr": True})
    save_file({UNET: torch.zeros(8, 4, 3, 3)}, tmp_path / "x.safetensors", metadata={"ot_config": told})
    name = "y.safetensors" if decided == "epsilon" else "y-vpred.safetensors"
    target = write_fixed_copy(tmp_path / "x.safetensors", tmp_path / name, decided).target
    assert detect(target).conflicts == ()
    assert ("ot_config" in read_header(target).metadata) == kept


def test_empty_markers_are_filled(tmp_path: Path):
    """NoobAI's and ComfyUI's are empty; the rest of the labels is right."""
    save_file({UNET: torch.randn(8, 9, 3, 3)}, tmp_path / "x.safetensors")
    right = write_fixed_copy(tmp_path / "x.safetensors", tmp_path / "right-vpred.safetensors", "v-ztsnr").target
    with pytest.raises(UserError, match="Nothing is wrong"):
        write_fixed_copy(right, tmp_path / "y-vpred.safetensors")
    empty = dict.fromkeys(("v_pred", "ztsnr"), torch.zeros(0))
    save_file(load_file(right) | empty, tmp_path / "empty-vpred.safetensors", metadata=read_header(right).metadata)
    fixed = write_fixed_copy(tmp_path / "empty-vpred.safetensors", tmp_path / "y-vpred.safetensors")
    assert [problem.split(",")[0] for problem in fixed.problems] == [f"the tensor {name} is empty" for name in empty]
    assert {name: read_header(fixed.target).tensors[name].shape for name in empty} == dict.fromkeys(empty, (1,))


def test_a_copy_of_a_folder_that_is_read_only_can_be_written(tmp_path: Path, random_nano: Path):
    source = shutil.copytree(random_nano, tmp_path / "source")
    unet = source / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet) | {"v_pred": torch.zeros(0)}, unet, metadata={"format": "pt"})
    everything = [source, *source.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        target = write_fixed_copy(source, tmp_path / "target", "v").target
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
    for path in (target, *target.rglob("*")):
        assert path.stat().st_mode & stat.S_IWUSR, path
    assert detect(target).schedule == Schedule(zero_terminal=False)


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path, random_nano: Path):
    source = shutil.copytree(random_nano, tmp_path / "source")
    os.mkfifo(source / "unet" / "pipe")
    with pytest.raises(UserError, match="named pipe"):
        write_fixed_copy(source, tmp_path / "target", "v")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_configuration_in_the_way_is_seen_before_the_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_file({UNET: torch.zeros(320, 9, 3, 3)}, tmp_path / "x.safetensors")
    (tmp_path / "y-vpred.yaml").write_text("mine")
    monkeypatch.setattr("terminus.inspection.fix.write_safetensors", lambda *_: pytest.fail("it was written"))
    with pytest.raises(UserError, match="exists already"):
        write_fixed_copy(tmp_path / "x.safetensors", tmp_path / "y-vpred.safetensors", "v-ztsnr")
