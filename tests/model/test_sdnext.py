"""What SD.Next takes a file for, by name and size, and what users are told of it when one is written.

The expected answers are those that its own `detect_pipeline` gave (commit 058a7f0cf of 2026-07-23).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from terminus.inspection.fix import write_fixed_copy
from terminus.model import modelspec
from terminus.model.convert import convert
from terminus.model.record import Schedule
from terminus.model.sdnext import taken_for, warn

XL, OLDER, FLUX, THIRD = "Stable Diffusion XL", "Stable Diffusion 1.5", "FLUX", "Stable Diffusion 3"
HALF, FULL = 6617, 13235
"""MiB of SDXL in 16 and in 32 bits."""
VELOCITY, EPSILON = Schedule(), Schedule("epsilon", zero_terminal=False)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("ink", HALF, XL),
        ("ink", FULL, OLDER),
        ("ink-XL", FULL, XL),
        ("ink", 3310, OLDER),
        ("ink-xl", 3140, XL),
        ("ink-xl", 22400, FLUX),
        ("ink-xl", 15100, THIRD),
        ("ink-stable-diffusion-xl", 22400, XL),
        ("swan", HALF, "Wan"),
        ("TaiWan-xl-vpred", HALF, "Wan"),
        ("swan-stable-diffusion-xl", HALF, XL),
        ("lenses", HALF, "Lens"),
        ("umbria-stable-diffusion-xl", HALF, "Bria"),
        ("sanatorium", HALF, "Sana"),
        ("anima-dream", HALF, "Anima"),
        ("anima", HALF, XL),
        ("chromatic", HALF, "Chroma"),
        ("chromatic-xl", HALF, XL),
        ("influx", HALF, FLUX),
        ("kolors-like", HALF, "Kolors"),
        ("instructor", HALF, "Stable Diffusion XL Instruct"),
        ("instructor-inpaint", HALF, "Stable Diffusion XL Inpaint"),
    ],
)
def test_the_answers_of_its_own_code(name: str, size: int, expected: str):
    assert taken_for(f"{name}.safetensors", size)[0] == expected


def told(path: Path, size: int, caplog: pytest.LogCaptureFixture, schedule: Schedule = VELOCITY, channels: int = 4):
    """What is said of a file of so many MiB that was just written, without the file's name."""
    path.touch()
    os.truncate(path, size * 2**20)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "terminus"):
        warn(path, schedule, channels, sdxl=True)
    return [message.removeprefix(f"{path.name}: ") for message in caplog.messages]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "ink-vpred",
            FULL,
            'Stable Diffusion 1.5, by its 13235 MiB and no "xl" in its name; rename it to ink-xl-vpred',
        ),
        ("ink-xl-vpred", 22400, "FLUX, by its 22400 MiB; rename it to ink-xl-stable-diffusion-xl-vpred"),
        ("chromatic-vpred", HALF, 'Chroma, by "chroma" in its name; rename it to chromatic-xl-vpred'),
        ("swan-vpred", HALF, 'Wan, by "wan" in its name; rename it to swan-stable-diffusion-xl-vpred'),
        (
            "umbria-vpred",
            HALF,
            'Bria, by "bria" in its name; rename it to a name without that word, such as ...-xl-vpred',
        ),
        (
            "instruct-vpred",
            HALF,
            'Stable Diffusion XL Instruct, by "instruct" in its name; rename it to a name without that word, such as '
            "...-xl-vpred",
        ),
    ],
)
def test_a_file_that_is_taken_for_another_model(
    tmp_path: Path, name: str, size: int, message: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / f"{name}.safetensors"
    assert told(path, size, caplog) == [f"SD.Next takes it for {message}.safetensors"]
    (tmp_path / f"{name}.yaml").touch()
    assert "rename it and its .yaml to" in told(path, size, caplog)[0]


@pytest.mark.parametrize("name", ["ink-xl-vpred", "ink-vpred", "ink-xl-v_pred", "Swiss_V-Pred_XL"])
def test_good_names_are_not_spoken_of(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    assert told(tmp_path / f"{name}.safetensors", HALF, caplog) == []


def test_what_is_hidden_and_what_is_wrong_lead_to_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    hidden, wrong = told(tmp_path / "ink.safetensors", FULL, caplog)
    assert hidden.endswith("ink-xl-vpred.safetensors would tell it velocity prediction")
    assert wrong.endswith("rename it to ink-xl-vpred.safetensors")
    hidden, wrong = told(tmp_path / "ink.safetensors", FULL, caplog, channels=9)
    assert hidden.endswith("ink-xl-inpaint-vpred.safetensors would tell it inpainting and velocity prediction")
    assert wrong.endswith("rename it to ink-xl-inpaint-vpred.safetensors")
    assert [text.split()[-1] for text in told(tmp_path / "ink.safetensors", FULL, caplog, EPSILON)] == [
        "ink-xl.safetensors"
    ]


def test_convert_and_fix_speak_of_what_they_wrote(
    tmp_path: Path, random_nano: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    convert(random_nano, tmp_path / "swan-vpred.safetensors")
    assert "SD.Next" not in caplog.text, "it cannot load this small model under any name"
    monkeypatch.setattr(modelspec, "is_sdxl", lambda _: True)
    convert(random_nano, tmp_path / "swan-xl-vpred.safetensors")
    assert "swan-xl-vpred.safetensors: SD.Next takes it for Wan" in caplog.text
    caplog.clear()
    small = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "model.diffusion_model.label_emb.0.0.weight": torch.zeros(1, 2816),
        "model.diffusion_model.attn2.to_k.weight": torch.zeros(1, 2048),
    }
    save_file(small, tmp_path / "source.safetensors")
    target = write_fixed_copy(tmp_path / "source.safetensors", tmp_path / "lens-vpred.safetensors", "v-ztsnr").target
    assert "lens-vpred.safetensors: SD.Next takes it for Lens" in caplog.text
    assert "rename it and its .yaml" in caplog.text
    assert load_file(target).keys() > small.keys()
