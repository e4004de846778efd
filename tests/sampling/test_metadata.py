"""What is written into an image, as other programs read it."""

from __future__ import annotations

import json
import pickle
import re
import resource
import signal
from dataclasses import replace
from io import BytesIO, FileIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from terminus.conditioning import Crop, MicroConditioning, Size
from terminus.errors import UserError
from terminus.model.record import Schedule
from terminus.sampling.generation_metadata import (
    AdapterUse,
    ControlUse,
    Enlargement,
    MaskUse,
    Variation,
    from_text,
    to_json,
)
from terminus.sampling.grid import SPACINGS as KNOWN_SPACINGS
from terminus.sampling.infotext import SAMPLERS, SPACINGS
from terminus.sampling.metadata import (
    FORMATS,
    GenerationMetadata,
    attach_metadata,
    encode_image,
    mark,
    parameters,
    read_image_metadata,
    save_image,
    settings_of,
    version,
)
from terminus.sampling.solvers import SOLVERS

ORIGIN = GenerationMetadata(
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
PLAIN = {
    "Steps": "28",
    "Sampler": "DPM++ 2M",
    "Schedule type": "SGM Uniform",
    "CFG scale": "4",
    "Seed": "7",
    "Size": "1216x832",
    "Model hash": "0123456789",
    "Model": "gamma-v2",
    "RNG": "Terminus",
    "Prediction": "v",
    "Noise Schedule": "Zero Terminal SNR",
    "CFG rescale": "0.7",
    "Version": f"Terminus {version()}",
}
INPAINTED = replace(
    ORIGIN,
    task="inpaint",
    strength=0.75,
    image_sha256="ab" * 32,
    mask=MaskUse("cd" * 32, fill="surroundings", feather=8, inverted=True, crop_padding=32),
)
EVERYTHING = replace(
    INPAINTED,
    interval=(0.1, 0.8),
    template="a {red|green} apple",
    variation=Variation(9, 0.25),
    margins=(0, 16, 0, 16),
    enlargement=Enlargement(2.0, Size(416, 608), "lanczos", steps=10, tile=64, overlap=16),
    adapters=(AdapterUse("ink, dry", "ef" * 32, 0.8), AdapterUse("wet", "01" * 32)),
    controls=(ControlUse("control", "canny", 0.5, "23" * 32, (0.0, 0.5)),),
    conditioning=MicroConditioning(Size(1, 2), Crop(3, 4), Size(5, 6)),
    negative_conditioning=MicroConditioning.uncropped(Size(7, 8)),
)
# The documented shape of the last line: `Key: value`, where a value is a JSON string or has no comma.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SUFFIXES = [".png", ".jpg", ".webp"]


def fields(text: str) -> dict[str, str]:
    pairs = FIELD.findall(text.splitlines()[-1])
    return {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}


def noise(size: int = 32) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def reread(tmp_path: Path, generation: GenerationMetadata, suffix: str = ".png", private: bool = False) -> Image.Image:
    image = noise()
    attach_metadata(image, generation)
    path = tmp_path / f"image{suffix}"
    save_image(image, path, private=private)
    with Image.open(path) as again:
        again.load()
        return again


def digital_source(image: Image.Image) -> str | None:
    packet = ElementTree.fromstring(image.info["xmp"].decode().strip("\0"))
    description = packet.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description is not None
    return description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")


def test_parameters_read_as_a1111_writes_them():
    text = parameters(ORIGIN)
    assert text.splitlines()[:2] == ["a red apple, on a black background", "Negative prompt: blurry"]
    assert fields(text) == PLAIN


def test_the_tasks_have_the_keys_that_a1111_knows():
    assert fields(parameters(INPAINTED)) == PLAIN | {
        "Denoising strength": "0.75",
        "Init image hash": "ababababab",
        "Mask blur": "8",
        "Masked content": "fill",
        "Mask mode": "Inpaint not masked",
        "Inpaint area": "Only masked",
        "Masked area padding": "32",
    }
    new = fields(parameters(EVERYTHING)).items() - fields(parameters(INPAINTED)).items()
    assert dict(new) == {
        "Size": "608x416",
        "CFG interval": "0.1-0.8",
        "Variation seed": "9",
        "Variation seed strength": "0.25",
        "Outpaint margins": "0 16 0 16",
        "Hires upscale": "2",
        "Hires steps": "10",
        "Hires upscaler": "lanczos",
        "Tile size": "64",
        "Tile overlap": "16",
        "ControlNet 0": "Module: control, Model: canny, Weight: 0.5",
        "Lora hashes": "ink, dry: efefefefefef, wet: 010101010101",
        "Lora weights": "ink, dry: 0.8, wet: 1",
    }


def test_what_does_not_apply_is_left_out():
    leaky = Schedule(prediction="epsilon", zero_terminal=False)
    text = parameters(replace(ORIGIN, negative="", rescale=0.0, schedule=leaky, interval=(0.0, 1.0)))
    assert "Negative prompt" not in text
    assert fields(text)["Prediction"] == "epsilon"
    assert fields(text).keys() == PLAIN.keys() - {"Noise Schedule", "CFG rescale"}


@pytest.mark.parametrize("name", ['my, "best": model', "a: b", "x\ny", "模型"])
def test_a_model_name_with_the_lines_own_punctuation_survives(name: str):
    read = fields(parameters(replace(ORIGIN, model=name)))
    assert read["Model"] == name
    assert read["Version"] == f"Terminus {version()}"


def test_every_solver_and_spacing_has_a_name_that_others_know():
    assert SAMPLERS.keys() >= SOLVERS.keys()
    assert SPACINGS.keys() >= KNOWN_SPACINGS.keys()
    assert len(set(SAMPLERS.values())) == len(SAMPLERS)
    read = fields(parameters(replace(ORIGIN, solver="unipc", spacing="karras")))
    assert (read["Sampler"], read["Schedule type"]) == ("UniPC", "Karras")


@pytest.mark.parametrize("generation", [ORIGIN, INPAINTED, EVERYTHING], ids=["plain", "inpainted", "everything"])
def test_our_json_repeats_the_image(generation: GenerationMetadata):
    text = to_json(generation)
    stored = json.loads(text)
    assert stored["version"] == version()
    assert stored["size"] == {"width": 1216, "height": 832}
    assert list(stored) == sorted(stored)
    assert from_text(text) == generation
    assert to_json(from_text(text)) == text


def test_only_what_was_used_is_in_our_json():
    assert json.loads(to_json(ORIGIN)).keys() == {
        *("version", "prompt", "negative", "seed", "steps", "solver", "guidance", "rescale", "size", "precision"),
        *("model", "model_hash", "schedule", "task", "spacing"),
    }


def test_half_a_character_in_a_name_does_not_cost_the_image(tmp_path: Path):
    read = reread(tmp_path, replace(ORIGIN, model="caf\udce9"))
    assert json.loads(read.info["terminus"])["model"] == "caf?"
    assert "Model: caf?" in read.info["parameters"]


@pytest.mark.parametrize("prompt", ["plain", "", "two\nlines", "café – 犬 🍎", "a\tb\x1b[2Jc", "<b>&amp;</b>]]>"])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_jpeg_and_webp_carry_the_text_where_a1111_looks(tmp_path: Path, suffix: str, prompt: str):
    generation = replace(ORIGIN, prompt=prompt)
    image = reread(tmp_path, generation, suffix)
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == parameters(generation)
    undefined = b"\x92\x86\x00\x07"  # the type that EXIF prescribes; other readers fail on any other
    assert undefined in image.info["exif"][:48]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pixels_survive(tmp_path: Path, suffix: str):
    written, read = np.asarray(noise()).astype(int), np.asarray(reread(tmp_path, ORIGIN, suffix)).astype(int)
    difference = np.abs(read - written)
    assert difference.max() == 0 if suffix != ".jpg" else difference.mean() < 4


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("private", [False, True])
def test_xmp_says_that_a_model_made_it(tmp_path: Path, suffix: str, private: bool):
    image = reread(tmp_path, ORIGIN, suffix, private)
    assert digital_source(image) == IPTC + "trainedAlgorithmicMedia"


@pytest.mark.parametrize("task", ["img2img", "inpaint", "outpaint", "upscale"])
def test_xmp_says_that_it_was_made_out_of_another(tmp_path: Path, task: str):
    image = reread(tmp_path, replace(ORIGIN, task=task))
    assert digital_source(image) == IPTC + "compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_private_image_tells_nothing_of_its_making(tmp_path: Path, suffix: str):
    image = reread(tmp_path, replace(ORIGIN, prompt="SECRET", model="SECRET", negative="SECRET"), suffix, private=True)
    assert not {"parameters", "terminus"} & image.info.keys()
    data = (tmp_path / f"image{suffix}").read_bytes()
    for encoding in ("utf-8", "utf-16-be", "utf-16-le"):
        assert "SECRET".encode(encoding) not in data
    assert b"0123456789" not in data


def test_a_sheet_is_marked_without_an_origin(tmp_path: Path):
    image = noise()
    mark(image, "inpaint")
    save_image(image, tmp_path / "sheet.webp")
    with Image.open(tmp_path / "sheet.webp") as again:
        assert digital_source(again) == IPTC + "compositeWithTrainedAlgorithmicMedia"
        assert not again.getexif()


def test_equal_images_are_equal_files():
    first, second = noise(), noise()
    attach_metadata(first, EVERYTHING)
    attach_metadata(second, EVERYTHING)
    for kind in ("PNG", "JPEG", "WEBP"):
        assert encode_image(first, kind) == encode_image(second, kind)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_never_overwrites(tmp_path: Path, suffix: str):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        save_image(noise(), path)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["image", "image.gif", "image.jpg.exe", ".png"])
def test_a_suffix_that_is_no_format(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="Known suffixes"):
        save_image(noise(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_a_format_cannot_hold_leaves_no_file(tmp_path: Path):
    for image, suffix in [
        (Image.new("RGB", (16384, 1)), ".webp"),
        (Image.new("RGBA", (8, 8)), ".jpg"),
    ]:
        with pytest.raises(UserError, match="cannot be"):
            save_image(image, tmp_path / f"image{suffix}")
    long = noise()
    attach_metadata(long, replace(ORIGIN, prompt="x" * 40_000))
    with pytest.raises(UserError, match="Save it as PNG"):
        save_image(long, tmp_path / "image.jpg")
    assert not list(tmp_path.iterdir())
    save_image(long, tmp_path / "image.png")


def test_a_full_disk_leaves_no_part_of_an_image(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_image(noise(), tmp_path / "image.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_part_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Slow(FileIO):
        def write(self, data: bytes) -> int:
            super().write(data[:100])
            signal.raise_signal(signal.SIGINT)
            return 100

    monkeypatch.setattr(Path, "open", lambda path, mode: Slow(path, mode))
    with pytest.raises(KeyboardInterrupt):
        save_image(noise(), tmp_path / "image.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pillows_own_save_keeps_what_it_can(tmp_path: Path, suffix: str):
    """The first thing that anybody tries; the mark of a generated image must not hang on knowing better."""
    image = noise()
    attach_metadata(image, EVERYTHING)
    again = pickle.loads(pickle.dumps(image))
    for number, one in enumerate((image, again)):
        one.save(tmp_path / f"{number}{suffix}")
        facts = read_image_metadata(tmp_path / f"{number}{suffix}")
        assert settings_of(facts) == EVERYTHING
        assert facts.source_type == "compositeWithTrainedAlgorithmicMedia"
    long = noise()
    attach_metadata(long, replace(ORIGIN, prompt="x" * 40_000))
    long.save(tmp_path / f"long{suffix}")
    said = read_image_metadata(tmp_path / f"long{suffix}")
    assert (said.kind, said.source_type) == ("terminus" if suffix == ".png" else "none", "trainedAlgorithmicMedia")
    with Image.open(tmp_path / f"0{suffix}") as stored:
        assert stored.size == image.size
    file = BytesIO()
    image.copy().save(file, FORMATS[suffix])
    assert b"red apple" not in file.getvalue()


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".tiff", ".ppm", ".avif"])
def test_pillows_own_save_writes_other_formats_too(tmp_path: Path, suffix: str):
    image = noise()
    attach_metadata(image, ORIGIN)
    image.save(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as again:
        assert again.size == image.size


def test_what_is_given_to_pillows_save_is_taken(tmp_path: Path):
    image, own = noise(), PngInfo()
    attach_metadata(image, ORIGIN)
    own.add_text("mine", "yes")
    image.save(tmp_path / "a.png", pnginfo=own)
    texts = read_image_metadata(tmp_path / "a.png").texts
    assert texts["mine"] == "yes"
    assert "terminus" not in texts
    assert "parameters" not in texts
    assert read_image_metadata(tmp_path / "a.png").source_type == "trainedAlgorithmicMedia"
    for number, given in enumerate(({"pnginfo": None}, {"exif": b""})):
        image.save(tmp_path / f"{number}.png", **given)
        facts = read_image_metadata(tmp_path / f"{number}.png")
        assert (facts.prompt, facts.source_type) == ("", "trainedAlgorithmicMedia")


def test_an_image_of_another_size_is_not_what_its_texts_say(tmp_path: Path):
    image = noise()
    attach_metadata(image, ORIGIN)
    save_image(image.resize((8, 8)), tmp_path / "resized.png")
    image.thumbnail((8, 8))
    image.save(tmp_path / "pillow.png")
    save_image(image, tmp_path / "ours.webp")
    for name in ("pillow.png", "ours.webp", "resized.png"):
        facts = read_image_metadata(tmp_path / name)
        assert (facts.prompt, facts.source_type) == ("", "trainedAlgorithmicMedia")
