"""What is written into a picture, read back as other programs read it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from terminus.conditioning import Size
from terminus.model.record import Schedule
from terminus.sampling.metadata import Origin, attach, parameters, save, version
from terminus.sampling.solvers import SOLVERS

ORIGIN = Origin(
    prompt="a red apple, on a black background",
    negative="blurry",
    seed=7,
    steps=28,
    solver="dpmpp_2m",
    guidance=4.0,
    rescale=0.7,
    size=Size(height=832, width=1216),
    precision="fp32",
    model="gamma-v2",
    model_hash="0123456789abcdef" * 4,
    schedule=Schedule(),
)
# The documented shape of the last line: `Key: value`, where a value is a JSON string or has no comma.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def fields(text: str) -> dict[str, str]:
    pairs = FIELD.findall(text.splitlines()[-1])
    return {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}


def reread(tmp_path: Path, origin: Origin) -> Image.Image:
    picture = Image.new("RGB", (4, 4))
    attach(picture, origin)
    save(picture, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as again:
        again.load()
        return again


def test_parameters_read_as_a1111_writes_them():
    text = parameters(ORIGIN)
    assert text.splitlines()[:2] == ["a red apple, on a black background", "Negative prompt: blurry"]
    assert fields(text) == {
        "Steps": "28",
        "Sampler": "DPM++ 2M",
        "Schedule type": "SGM Uniform",
        "CFG scale": "4",
        "Seed": "7",
        "Size": "1216x832",
        "Model hash": "0123456789",
        "Model": "gamma-v2",
        "Prediction": "v",
        "Noise Schedule": "Zero Terminal SNR",
        "CFG rescale": "0.7",
        "Version": f"Terminus {version()}",
    }


def test_what_does_not_apply_is_left_out():
    leaky = Schedule(prediction="epsilon", zero_terminal=False)
    text = parameters(replace(ORIGIN, negative="", rescale=0.0, schedule=leaky))
    assert "Negative prompt" not in text
    assert fields(text)["Prediction"] == "epsilon"
    assert fields(text).keys().isdisjoint({"Noise Schedule", "CFG rescale"})


@pytest.mark.parametrize("name", ['my, "best": model', "a: b", "x\ny", "模型"])
def test_a_model_name_with_the_lines_own_punctuation_survives(name: str):
    read = fields(parameters(replace(ORIGIN, model=name)))
    assert read["Model"] == name
    assert read["Version"] == f"Terminus {version()}"


def test_every_solver_has_the_name_that_others_know():
    names = [fields(parameters(replace(ORIGIN, solver=solver)))["Sampler"] for solver in SOLVERS]
    assert len(set(names)) == len(SOLVERS)


@pytest.mark.parametrize(
    "prompt", ["plain", "", "two\nlines", "café – 犬 🍎", "Steps: 3, Sampler: x, Seed: 9, Size: 1x1"]
)
def test_our_json_repeats_the_picture(tmp_path: Path, prompt: str):
    ours = json.loads(reread(tmp_path, replace(ORIGIN, prompt=prompt)).info["terminus"])
    assert ours.pop("version") == version()
    ours["size"] = Size(**ours["size"])
    ours["schedule"] = Schedule(**ours["schedule"])
    assert Origin(**ours) == replace(ORIGIN, prompt=prompt)


def test_xmp_says_that_a_model_made_it(tmp_path: Path):
    packet = ElementTree.fromstring(reread(tmp_path, ORIGIN).info["xmp"])
    description = packet.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description is not None
    source = description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_saving_never_overwrites(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        save(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == b"mine"
