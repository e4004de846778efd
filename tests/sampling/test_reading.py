"""What images say of themselves, read: ours, other programs', and what attackers write."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.record import Schedule
from terminus.sampling import infotext
from terminus.sampling.generation_metadata import AdapterUse, MaskUse, to_json
from terminus.sampling.metadata import (
    GenerationMetadata,
    attach_metadata,
    encode_image,
    parameters,
    read_image_metadata,
    save_image,
    settings_of,
)
from terminus.sampling.reading import read_bytes

ORIGIN = GenerationMetadata(
    prompt="a red apple",
    negative="blurry",
    seed=7,
    steps=28,
    solver="dpmpp_2m",
    guidance=4.0,
    rescale=0.7,
    size=Size(height=32, width=16),
    precision="fp32",
    model="gamma-v2",
    model_hash="0123456789abcdef" * 4,
    schedule=Schedule(),
)
SUFFIXES = [".png", ".jpg", ".webp"]


def png(behind: bool = False, **texts: str) -> bytes:
    """A PNG with these texts, before or behind its pixels."""
    chunks = PngInfo()
    for key, text in texts.items():
        if behind:
            chunks.add(b"tEXt", key.encode() + b"\0" + text.encode("latin-1"), after_idat=True)
        else:
            chunks.add_text(key, text)
    file = BytesIO()
    Image.new("RGB", (8, 4)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def with_exif(kind: str, tags: dict[int, object], comment: bytes | None = None) -> bytes:
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    file = BytesIO()
    Image.new("RGB", (8, 4)).save(file, kind, exif=exif)
    return file.getvalue()


def jpeg(xmp: bytes) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 4)).save(file, "JPEG", xmp=xmp)
    return file.getvalue()


# Ours


@pytest.mark.parametrize(
    "prompt", ["plain", "", "two\nlines", "café – 犬 🍎", "\x00\x1b[2J\r\n", "Steps: 3, Sampler: x, Seed: 9, Size: 1x1"]
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ours_is_read_back_whole(tmp_path: Path, suffix: str, prompt: str):
    generation = replace(
        ORIGIN, prompt=prompt, task="inpaint", mask=MaskUse("ab"), adapters=(AdapterUse("x", "cd", 0.5),)
    )
    image = Image.new("RGB", (16, 32))
    attach_metadata(image, generation)
    save_image(image, tmp_path / f"image{suffix}")
    facts = read_image_metadata(tmp_path / f"image{suffix}")
    assert (facts.kind, facts.prompt, facts.negative) == ("terminus", prompt, "blurry")
    assert facts.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    assert facts.size == Size(height=32, width=16)
    assert facts.source_type == "compositeWithTrainedAlgorithmicMedia"
    assert facts.settings == infotext.infotext_settings(generation)
    assert facts.credentials.state == "none"
    assert facts.notes == ()
    assert settings_of(facts) == generation


def test_facts_are_in_the_order_to_show_them(tmp_path: Path):
    image = Image.new("RGB", (16, 32))
    attach_metadata(image, ORIGIN)
    save_image(image, tmp_path / "a.png")
    facts = read_image_metadata(tmp_path / "a.png").facts
    assert list(facts)[:6] == ["Format", "Pixels", "Made by", "Prompt", "Negative prompt", "Steps"]
    assert list(facts.items())[-2:] == [
        ("Digital source type", "trainedAlgorithmicMedia"),
        ("Content credentials", "none"),
    ]


def test_a_private_image_still_says_that_a_model_made_it(tmp_path: Path):
    image = Image.new("RGB", (16, 32))
    attach_metadata(image, ORIGIN)
    save_image(image, tmp_path / "a.webp", private=True)
    facts = read_image_metadata(tmp_path / "a.webp")
    assert (facts.kind, facts.source_type, facts.texts) == ("none", "trainedAlgorithmicMedia", {})
    with pytest.raises(UserError, match="does not say how to draw it again"):
        settings_of(facts)


def test_our_json_is_believed_rather_than_the_text():
    facts = read_bytes(png(parameters=parameters(replace(ORIGIN, seed=8)), terminus=to_json(ORIGIN)))
    assert (facts.kind, facts.settings["Seed"]) == ("terminus", "7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "7"}, "seed"),
        ({"seed": True}, "seed"),
        ({"task": "fly"}, "task"),
        ({"size": {"width": 3}}, "size"),
        ({"size": {"width": 3, "height": 4, "depth": 5}}, "size"),
        ({"schedule": {"prediction": "velocity", "sigma": 1}}, "more than this version knows"),
        ({"wavelet": 3}, "more than this version knows; it was written by version"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_json_that_is_not_quite_ours_falls_back_to_the_text(change: dict[str, Any], message: str):
    stored = json.dumps(json.loads(to_json(ORIGIN)) | change)
    facts = read_bytes(png(parameters=parameters(ORIGIN), terminus=stored))
    assert facts.kind == "a1111"
    assert message in facts.notes[0]
    with pytest.raises(UserError, match="cannot be understood") as caught:
        settings_of(facts)
    assert message in str(caught.value)


# A1111


def test_the_text_of_a1111():
    text = (
        "masterpiece, (apple:1.2)\nSteps: 3 is a prompt too\nNegative prompt: bad,\nvery: bad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x768, "
        'Lora hashes: "a: 0123, b: \\"4567\\"", Hires prompt: "x\\ny", Denoising strength: 0.5, Version: v1.10'
    )
    for facts in (
        read_bytes(png(parameters=text)),
        read_bytes(png(behind=True, parameters=text)),
        read_bytes(with_exif("JPEG", {}, b"UNICODE\0" + text.encode("utf-16-be"))),
        read_bytes(with_exif("WEBP", {}, b"UNICODE\0" + text.encode("utf-16-le"))),
        read_bytes(with_exif("JPEG", {}, b"ASCII\0\0\0" + text.encode())),
    ):
        assert facts.kind == "a1111"
        assert facts.prompt == "masterpiece, (apple:1.2)\nSteps: 3 is a prompt too"
        assert facts.negative == "bad,\nvery: bad"
        assert facts.settings["Seed"] == "42"
        assert facts.settings["Lora hashes"] == 'a: 0123, b: "4567"'
        assert facts.settings["Hires prompt"] == "x\ny"
        assert list(facts.settings)[-1] == "Version"
        assert facts.texts["parameters"] == text


def test_a_text_without_settings_is_not_a1111s():
    facts = read_bytes(png(parameters="just: a sentence, with: colons", Title="Apples"))
    assert (facts.kind, facts.prompt) == ("none", "")
    assert facts.texts == {"parameters": "just: a sentence, with: colons", "Title": "Apples"}


# Others

GRAPH = {
    "1": {
        "class_type": "KSampler",
        "inputs": {"seed": 5, "steps": 20, "positive": ["2", 0], "latent_image": ["3", 0]},
    },
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bottle"}},
}


def test_a_graph_of_comfyui():
    graph = json.dumps(GRAPH)
    for data in (
        png(prompt=graph, workflow="{}"),
        png(behind=True, prompt=graph),
        with_exif("WEBP", {0x0110: f"prompt:{graph}", 0x010F: "workflow:{}"}),
    ):
        facts = read_bytes(data)
        assert (facts.kind, facts.prompt, facts.negative) == ("comfyui", "a bottle", "")
        assert facts.settings == {"Seed": "5", "Steps": "20"}
    alone = read_bytes(png(workflow='{"nodes": []}'))
    assert (alone.kind, alone.notes) == ("comfyui", ("the graph has no sampler that is understood",))


def test_invokeai():
    stored = {
        "generation_mode": "sdxl_img2img",
        "positive_prompt": "a cup",
        "negative_prompt": "tea",
        "width": 1024,
        "height": 768,
        "seed": 3,
        "cfg_scale": 7.5,
        "cfg_rescale_multiplier": 0.7,
        "steps": 30,
        "scheduler": "euler",
        "strength": 0.6,
        "model": {"name": "juggernaut", "hash": "blake3:01", "type": "main"},
        "positive_style_prompt": "oil",
        "loras": [{"model": {"key": "k", "name": "ink"}, "weight": 0.75}, {"model": None}, "?"],
        "app_version": "5.4.0",
    }
    facts = read_bytes(png(invokeai_metadata=json.dumps(stored), invokeai_graph="{}"))
    assert (facts.kind, facts.prompt, facts.negative) == ("invokeai", "a cup", "tea")
    assert facts.settings == {
        "Steps": "30",
        "Sampler": "euler",
        "CFG scale": "7.5",
        "Seed": "3",
        "Denoising strength": "0.6",
        "CFG rescale": "0.7",
        "Mode": "sdxl_img2img",
        "Style prompt": "oil",
        "Version": "5.4.0",
        "Size": "1024x768",
        "Model": "juggernaut",
        "Model hash": "blake3:01",
        "Loras": "ink: 0.75",
    }


def test_swarmui_and_novelai():
    swarm = {"sui_image_params": {"prompt": "a cat", "negativeprompt": "dog", "seed": 1, "cfgscale": 7, "steps": 20}}
    facts = read_bytes(png(parameters=json.dumps(swarm, indent=2)))
    assert (facts.kind, facts.prompt, facts.negative) == ("swarmui", "a cat", "dog")
    assert facts.settings == {"Steps": "20", "CFG scale": "7", "Seed": "1"}
    novel = json.dumps({"steps": 28, "scale": 5.0, "seed": 2, "uc": "lowres", "sampler": "k_euler"})
    facts = read_bytes(png(Software="NovelAI", Description="a girl", Comment=novel))
    assert (facts.kind, facts.prompt, facts.negative) == ("novelai", "a girl", "lowres")
    assert facts.settings == {"Steps": "28", "Sampler": "k_euler", "CFG scale": "5", "Seed": "2"}
    swarm["sui_image_params"] |= {"loras": ["ink", "wet"], "loraweights": ["0.5", "1"]}
    assert read_bytes(png(parameters=json.dumps(swarm))).settings["Loras"] == "ink: 0.5, wet: 1"


def test_the_characters_of_novelai():
    """Its fourth version has a caption for each, and leaves the old place of the negative prompt empty."""
    caption = {"base_caption": "two girls", "char_captions": [{"char_caption": "red hair"}, {"char_caption": "blue"}]}
    stored = {"prompt": "two girls", "uc": "", "seed": 2, "v4_prompt": {"caption": caption}}
    stored["v4_negative_prompt"] = {"caption": {"base_caption": "lowres", "char_captions": []}}
    facts = read_bytes(png(Software="NovelAI", Comment=json.dumps(stored)))
    assert (facts.prompt, facts.negative) == ("two girls\nred hair\nblue", "lowres")


def test_fooocus():
    stored = {"prompt": "a boat", "negative_prompt": "bad", "steps": 30, "resolution": "(1152, 896)", "seed": "123"}
    stored |= {"guidance_scale": 4.0, "base_model": "juggernaut", "sampler": "dpmpp_2m", "lora_combined_1": "ink : 0.1"}
    text = json.dumps(stored | {"version": "Fooocus v2.5.5"})
    # a PNG's chunk, and in a JPEG a string in the first directory, where no other program puts it
    for data in (png(parameters=text, fooocus_scheme="fooocus"), with_exif("JPEG", {0x9286: text, 0x927C: "fooocus"})):
        facts = read_bytes(data)
        assert (facts.kind, facts.prompt, facts.negative) == ("fooocus", "a boat", "bad")
        assert facts.settings == {
            **{"Steps": "30", "Sampler": "dpmpp_2m", "CFG scale": "4", "Seed": "123", "Model": "juggernaut"},
            **{"Version": "Fooocus v2.5.5", "Size": "1152x896", "Loras": "ink: 0.1"},
        }
    assert read_bytes(png(parameters='{"prompt": "a", "seed": 1}')).kind == "none"


@pytest.mark.parametrize(
    ("attribute", "inner"),
    [
        (' i:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"', ""),
        (
            "",
            "<i:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture</i:DigitalSourceType>",
        ),
        ("", '<i:DigitalSourceType r:resource="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"/>'),
    ],
)
def test_the_digital_source_type_in_each_of_its_forms(attribute: str, inner: str):
    names = (
        'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    )
    packet = f"<r:RDF {names}><r:Description{attribute}>{inner}</r:Description></r:RDF>"
    assert read_bytes(jpeg(packet.encode())).source_type == "digitalCapture"


# Nothing is trusted


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def spliced(*chunks: bytes) -> bytes:
    """A PNG with these chunks behind its header."""
    plain = png()
    return plain[:33] + b"".join(chunks) + plain[33:]


def test_compressed_bombs_are_refused():
    bomb = zlib.compress(bytes(1 << 26), 9)
    for data in (
        spliced(chunk(b"zTXt", b"parameters\0\0" + bomb)),
        spliced(chunk(b"iTXt", b"parameters\0\1\0\0\0" + bomb)),
        spliced(*[chunk(b"zTXt", b"k%d\0\0" % n + zlib.compress(bytes(1 << 20), 9)) for n in range(80)]),
    ):
        with pytest.raises(UserError, match="not a readable image"):
            read_bytes(data, "bomb.png")


def test_texts_are_bounded_and_said_to_be():
    facts = read_bytes(spliced(chunk(b"tEXt", b"parameters\0" + b"a" * ((1 << 24) + 1))))
    assert facts.texts == {}
    assert facts.notes == ("'parameters' has 16777217 characters and was left out",)
    many = read_bytes(spliced(*[chunk(b"tEXt", b"k%d\0v" % n) for n in range(500)]))
    assert len(many.texts) == 64


@pytest.mark.parametrize("key", ["terminus", "prompt", "invokeai_metadata", "parameters"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "{", "NaN", '{"a": 1e999}', "9" * 100_000, "{\x00}", "{}"]
)
def test_json_that_is_a_trap_is_data(key: str, text: str):
    facts = read_bytes(png(**{key: text}))
    assert facts.prompt == ""
    assert facts.settings == {}
    assert facts.texts[key] == text


LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{("&" + chr(97 + n) + ";") * 10}">' for n in range(10)
)


@pytest.mark.parametrize(
    "packet",
    [
        (LAUGHS + "]><l>&k;</l>").encode(),
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x><x/>'.encode("utf-16"),
        b"<x>",
        b"\xff\xfe",
        b"",
    ],
    ids=["laughs", "external", "utf-16", "open", "bytes", "empty"],
)
def test_xmp_that_is_a_trap_is_a_note(packet: bytes):
    facts = read_bytes(jpeg(packet))
    assert facts.source_type is None
    assert facts.notes == (("the XMP packet is damaged",) if packet else ())


def test_deep_xmp_does_no_harm():
    file = BytesIO()
    Image.new("RGB", (8, 4)).save(file, "WEBP", xmp=b"<a>" * 100_000 + b"</a>" * 100_000)
    assert read_bytes(file.getvalue()).source_type is None


def test_settings_do_not_stand_in_for_what_was_found_out():
    text = "p\nSteps: 1, Seed: 2, Size: 1x1, Made by: a human, Content credentials: Trusted, Digital source type: none"
    facts = read_bytes(png(parameters=text)).facts
    assert facts["Made by"].startswith("A1111")
    assert facts["Content credentials"] == "none"
    assert "Digital source type" not in facts


def test_control_characters_and_markup_are_kept_as_data():
    nasty = '"><img src=x onerror=alert(1)>\x1b]0;x\x07'
    assert read_bytes(png(parameters=f"{nasty}\nSteps: 1, Seed: 2, Size: 1x1")).prompt == nasty


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\x00"])
def test_what_is_no_image(tmp_path: Path, data: bytes):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.png: This is not a readable image"):
        read_image_metadata(tmp_path / "a.png")


def test_what_is_no_file(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none.png", Path("/dev/zero")):
        with pytest.raises(UserError, match=r"not a regular file|cannot be read"):
            read_image_metadata(path)


def test_a_link_to_a_image_is_read(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(png(Title="x"))
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert read_image_metadata(tmp_path / "link.png").texts == {"Title": "x"}


def test_every_damaged_byte_is_an_answer():
    """Each byte of the metadata turned over: facts or a UserError, nothing else."""
    for suffix in ("PNG", "JPEG", "WEBP"):
        image = Image.new("RGB", (4, 4))
        attach_metadata(image, ORIGIN)
        whole = encode_image(image, suffix)
        for place in range(0, len(whole), 7):
            broken = bytearray(whole)
            broken[place] ^= 0xFF
            for data in (bytes(broken), whole[:place]):
                try:
                    read_bytes(data)
                except UserError:
                    continue
