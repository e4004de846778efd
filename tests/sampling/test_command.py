"""`terminus sample` through the command line's own door."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from terminus import Terminus, cli
from terminus.sampling.files import write_new
from terminus.sampling.metadata import read_image_metadata, save_image, settings_of

QUICK = ("--steps", "1", "--size", "16x16")


def sample(model: Path, out: Path, *options: str) -> int:
    return cli.main(["sample", str(model), "--out", str(out), *options])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_images_are_numbered_named_by_seed_and_printed(random_nano: Path, tmp_path: Path, capsys):
    out = tmp_path / "new" / "folder"
    assert sample(random_nano, out, "--prompt", "a dog", "--seed", "7", *QUICK) == 0
    assert names(out) == ["00001-7.png"]
    assert capsys.readouterr().out == f"{out / '00001-7.png'}\n"
    assert sample(random_nano, out, "--prompt", "a dog", "--prompt", "", "--count", "2", "--seed", "7", *QUICK) == 0
    assert names(out)[:5] == ["00001-7.png", "00002-7.png", "00003-8.png", "00004-7.png", "00005-8.png"]
    assert names(out)[5:] == ["samples.png"]
    with Image.open(out / "00005-8.png") as image:
        assert image.size == (16, 16)
        said = json.loads(image.info["terminus"])
        assert image.info["parameters"].endswith(f"Version: Terminus {said['version']}")
    assert (said["prompt"], said["seed"], said["steps"]) == ("", 8, 1)


def test_nothing_is_overwritten(random_nano: Path, tmp_path: Path):
    for _ in range(2):
        assert sample(random_nano, tmp_path, "--prompt", "a dog", "--count", "2", *QUICK) == 0
        written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    first = ["00001-0.png", "00002-1.png", "00003-0.png", "00004-1.png"]
    assert sorted(written) == [*first, "samples-2.png", "samples.png"]
    (tmp_path / "00041-mine.jpg").write_bytes(b"")
    assert sample(random_nano, tmp_path, "--prompt", "a dog", *QUICK) == 0
    assert "00042-0.png" in names(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in written} == written


def test_the_options_reach_the_image(random_nano: Path, tmp_path: Path):
    given = {"negative": "a cat", "seed": "3", "steps": "2", "guidance": "2.5", "solver": "euler", "size": "32x16"}
    options = [word for key, value in given.items() for word in (f"--{key}", value)]
    assert sample(random_nano, tmp_path, "--prompt", "a dog", *options) == 0
    with Image.open(tmp_path / "00001-3.png") as image:
        said = json.loads(image.info["terminus"])
    assert {key: said[key] for key in given} == {
        **given,
        **{"seed": 3, "steps": 2, "guidance": 2.5, "size": {"width": 32, "height": 16}},
    }


def test_a_negative_prompt_without_guidance_is_said_to_do_nothing(random_nano: Path, tmp_path: Path, capsys):
    options = ("--prompt", "a dog", "--negative", "a cat", "--guidance", "1", *QUICK)
    assert sample(random_nano, tmp_path, *options) == 0
    assert "no effect at guidance 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solver", "dpm_2m"], "Did you mean `dpmpp_2m`?"),
        (["--steps", "0"], "0 sampling steps"),
        (["--steps", "1001"], "1001 sampling steps"),
        (["--size", "40x40"], "multiples of 16 from 16 to 128"),
        (["--size", "4096x32"], "The nearest is 128x32"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--size", "999999x999999"], "This model cannot draw 999999x999999"),
        (["--size", "1:1000000"], "shape 1:1000000. The longer side of a shape is at most 16 times the shorter"),
        (["--count", "0"], "count 0"),
        (["--seed", "-1"], "seed -1"),
        (["--seed", str(2**63)], "seed 9223372036854775808"),
        (["--guidance", "nan"], "guidance nan"),
        (["--guidance", "inf"], "guidance inf"),
    ],
)
def test_bad_input_is_one_paragraph_and_no_file(random_nano: Path, tmp_path: Path, options, message: str, capsys):
    assert sample(random_nano, tmp_path, "--prompt", "a dog", *options) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert names(tmp_path) == []


def test_an_out_folder_that_cannot_be_is_found_before_the_model_is_loaded(
    random_nano: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Terminus, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert sample(random_nano, out, "--prompt", "a dog") == 2
        assert f"error: {out}: This folder cannot be made" in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path: Path, capsys):
    assert sample(tmp_path / "nowhere", tmp_path / "out", "--prompt", "a dog") == 2
    assert "No model is here" in capsys.readouterr().err


def test_nothing_is_written_for_a_model_or_size_that_cannot_be(random_nano: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert sample(tmp_path / "nowhere", out, "--prompt", "a dog") == 2
    assert sample(random_nano, out, "--prompt", "a dog", "--size", "33x33") == 2
    assert not out.exists()


def test_a_long_prompt_is_read_whole_and_nobody_complains(random_nano: Path, tmp_path: Path):
    command = [sys.executable, "-m", "terminus", "sample", str(random_nano), "--out", str(tmp_path), "--prompt"]
    result = subprocess.run([*command, "word " * 200, *QUICK], capture_output=True, text=True, check=True, timeout=60)
    loading, progress = result.stderr.splitlines()
    assert loading.startswith("loading PyTorch")
    assert progress.startswith("sample: 1/1 steps, ")


def test_a_terminal_without_unicode_and_a_closed_output_do_not_fail_the_drawing(random_nano: Path, tmp_path: Path):
    command = shlex.join([sys.executable, "-m", "terminus", "sample", str(random_nano), "--prompt", "é", *QUICK])
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.check_output(f"{command} --out 'é {tmp_path.name}'", shell=True, env=ascii_only, cwd=tmp_path)
    assert shown == rf"\xe9 {tmp_path.name}/00001-0.png".encode() + b"\n"
    assert subprocess.run(f"{command} --out closed >&-", shell=True, cwd=tmp_path, check=False).returncode == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(folder / "in.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 24))
    mask.save(folder / "mask.png")
    return folder


@pytest.mark.parametrize(
    ("options", "task", "size"),
    [
        (["--image", "in.png", "--strength", "0.5"], "img2img", (32, 32)),
        (["--image", "in.png", "--mask", "mask.png", "--feather", "2", "--fill", "grey"], "inpaint", (32, 32)),
        (["--image", "in.png", "--mask", "mask.png", "--padding", "4"], "inpaint", (32, 32)),
        (["--image", "in.png", "--outpaint", "16,0,0,16"], "outpaint", (48, 48)),
        (["--image", "in.png", "--upscale", "2"], "upscale", (64, 64)),
        (["--hires", "2:0.5"], "text2img", (64, 64)),
        (["--size", "2:1", "--variation", "0.2", "--interval", "0.2:0.9"], "text2img", (48, 16)),
    ],
)
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_tasks_from_the_command_line(
    random_nano: Path, images: Path, tmp_path: Path, monkeypatch, options: list[str], task: str, size, kind: str
):
    monkeypatch.chdir(images)
    given = ["--prompt", "a dog", "--steps", "2", "--format", kind, *options]
    assert sample(random_nano, tmp_path, *given) == 0
    facts = read_image_metadata(tmp_path / f"00001-0.{kind}")
    assert settings_of(facts).task == task
    with Image.open(tmp_path / f"00001-0.{kind}") as image:
        assert image.size == size


# --- again


AGAIN: dict[str, tuple[str, list[str], list[str]]] = {
    "png": ("from a prompt", ["--hires", "1.5:0.5", "--variation", "0.2"], []),
    "jpeg": ("image to image", ["--strength", "0.5"], ["--image", "in.png"]),
    "webp": (
        "inpainting",
        ["--feather", "2"],
        [
            *("--image", "in.png", "--mask", "mask.png", "--lora", "STEERING/ink.safetensors:0.7"),
            *("--control", "controlnet:STEERING/edges:in.png:0.8"),
        ],
    ),
}
"""By format: the task, how it is drawn, and what has to be given again."""


@pytest.mark.parametrize("kind", AGAIN)
def test_an_image_is_drawn_again_from_its_own_words(
    random_nano: Path, images: Path, steering: Path, tmp_path: Path, monkeypatch, capsys, kind: str
):
    monkeypatch.chdir(images)
    _, how, files = AGAIN[kind]
    files = [word.replace("STEERING", str(steering)) for word in files]
    options = ["--prompt", "a {red|green|blue} dog", "--seed", "5", "--steps", "2", "--format", kind, *how, *files]
    assert sample(random_nano, tmp_path, *options) == 0
    first, second = (tmp_path / f"{number}-5.{kind}" for number in ("00001", "00002"))
    assert sample(random_nano, tmp_path, "--again", str(first), "--format", kind, "--device", "cpu", *files) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(first), str(second)]
    assert printed.err.splitlines()[-1] == f"Every pixel is that of {first}."
    assert second.read_bytes() == first.read_bytes()


def test_other_pixels_than_the_files_are_said(random_nano: Path, tmp_path: Path, capsys):
    assert sample(random_nano, tmp_path, "--prompt", "a dog", *QUICK) == 0
    with Image.open(tmp_path / "00001-0.png") as image:
        save_image(image.crop((0, 0, 16, 8)), tmp_path / "smaller.png")
        old = image.getpixel((3, 4))
        image.putpixel((3, 4), (old[0] ^ 2, *old[1:]))
        save_image(image, tmp_path / "painted.png")
    for name, said in (
        ("painted.png", "1 of 256 differ, by up to 2 of 255."),
        ("smaller.png", "it is 16x8 pixels, what was drawn 16x16."),
    ):
        assert sample(random_nano, tmp_path, "--again", str(tmp_path / name)) == 0
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == f"These are not the pixels of {tmp_path / name}: {said}"


def test_a_precision_that_no_option_names_is_the_images_own(random_nano: Path, tmp_path: Path, capsys):
    (drawn,) = Terminus.load(random_nano, "cpu").text2img("a dog", steps=1, precision="bf16")
    save_image(drawn, tmp_path / "a.png")
    assert sample(random_nano, tmp_path, "--again", str(tmp_path / "a.png"), "--device", "cpu") == 0
    assert capsys.readouterr().err == f"Every pixel is that of {tmp_path / 'a.png'}.\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "0"], "--again cannot be combined with --seed. An image is drawn again as it says itself"),
        (["--prompt", "a dog", "--steps", "28"], "--again cannot be combined with --prompt, --steps."),
        (["--image", "in.png"], "This image is drawn again from neither image nor mask"),
        (["--again", "in.png"], "This image does not say how to draw it again"),
        (["--again", "gone.png"], "gone.png"),
        (["--lora", "gone.safetensors"], "gone.safetensors: File not found"),
        (["--format", "gif"], "--format gif"),
    ],
)
def test_what_cannot_be_drawn_again_is_said_before_the_model_is_loaded(
    random_nano: Path, images: Path, tmp_path: Path, monkeypatch, capsys, options: list[str], message: str
):
    monkeypatch.chdir(images)
    assert sample(random_nano, tmp_path, "--prompt", "a dog", *QUICK) == 0
    monkeypatch.setattr(Terminus, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert sample(random_nano, tmp_path / "out", "--again", str(tmp_path / "00001-0.png"), *options) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


# --- what files say, and what goes wrong


def test_private_images_say_only_that_a_model_made_them(random_nano: Path, tmp_path: Path):
    assert sample(random_nano, tmp_path, "--prompt", "secret", "--private", *QUICK) == 0
    data = (tmp_path / "00001-0.png").read_bytes()
    assert b"secret" not in data
    assert b"trainedAlgorithmicMedia" in data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask", "mask.png"], "--mask without --image"),
        (["--strength", "0.5"], "--strength without --image"),
        (["--image", "in.png", "--strength", "nan"], "strength nan"),
        (["--image", "in.png", "--strength", "0"], "strength 0"),
        (["--image", "in.png", "--mask", "mask.png", "--upscale", "2"], "--mask cannot be combined with --upscale"),
        (["--image", "in.png", "--feather", "2"], "--feather without --mask"),
        (["--image", "in.png", "--outpaint", "1,2,3"], "LEFT,TOP,RIGHT,BOTTOM"),
        (["--image", "in.png", "--mask", "mask.png", "--fill", "blur"], "There is no fill `blur`"),
        (["--image", "in.png", "--hires", "2"], "--hires cannot be combined with --image"),
        (["--hires", "two"], "FACTOR:STRENGTH"),
        (["--hires", "1:2:3"], "FACTOR:STRENGTH"),
        (["--image", "gone.png"], "gone.png"),
        (["--spacing", "karras"], "karras"),
        (["--interval", "1"], "LOW:HIGH"),
        (["--format", "gif"], "--format gif"),
        (["--sign", "gone.pem"], "CERTIFICATES,KEY"),
        (["--prompt", "(a:99)"], "99"),
        (["--lora", "gone.safetensors"], "gone.safetensors"),
        (["--lora", "in.png:x"], "FILE[:WEIGHT]"),
        (["--control", "controlnet"], "KIND:FOLDER:IMAGE"),
        (["--control", "controlnet:a:b:x"], "KIND:FOLDER:IMAGE"),
        (["--control", "controlnet:a:b:1:2"], "KIND:FOLDER:IMAGE"),
        (["--control", "controlnet:gone:in.png"], "gone: File not found"),
        (["--control", "controlnet:.:in.png"], "config.json"),
        (["--control", "canny:.:in.png"], "canny"),
        (["--lora", "a" * 300], "File not found"),
        (["--lora", "~nobody-of-this-name/a:0.5"], "File not found"),
        (["--out", "a" * 300], "File name too long"),
        (["--count", str(10**12)], "1 to 100,000"),
        (["--image", "in.png", "--upscale", "2", "--size", "32x32"], "Upscaling takes no size"),
        (["--image", "in.png", "--outpaint", "99999,99999,0,0"], "Images have sides up to"),
        (["--image", "."], "not a regular file"),
    ],
)
def test_wrong_options_are_one_paragraph_and_no_file(
    random_nano: Path, images: Path, tmp_path: Path, monkeypatch, capsys, options: list[str], message: str
):
    monkeypatch.chdir(images)
    assert sample(random_nano, tmp_path / "out", "--prompt", "a dog", *options) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_two_commands_may_draw_into_one_folder(random_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second finds its next name taken by the time that it has drawn."""
    monkeypatch.setattr("terminus.sampling.command._next_number", lambda out: 1)
    for _ in range(2):
        assert sample(random_nano, tmp_path, "--prompt", "a dog", "--count", "2", *QUICK) == 0
    assert names(tmp_path) == [
        *("00001-0.png", "00002-0.png", "00002-1.png", "00003-1.png"),
        *("samples-2.png", "samples.png"),
    ]


def test_what_the_disk_refuses_is_said(random_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("terminus.sampling.command.save_image", full)
    assert sample(random_nano, tmp_path, "--prompt", "a dog", *QUICK) == 2
    assert "00001-0.png: This image cannot be written (No space left on device)" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done_and_says_so(
    random_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def interrupted(path: Path, data: bytes) -> None:
        if path.name == "00003-2.png":
            signal.raise_signal(signal.SIGINT)
        write_new(path, data)

    monkeypatch.setattr("terminus.sampling.metadata.write_new", interrupted)
    assert sample(random_nano, tmp_path, "--prompt", "a dog", "--count", "4", *QUICK) == 130
    printed = capsys.readouterr()
    assert names(tmp_path) == ["00001-0.png", "00002-1.png"]
    assert printed.out.splitlines() == [str(tmp_path / name) for name in names(tmp_path)]
    assert f"Stopped: 2 of 4 images are in {tmp_path}." in printed.err.replace("\n", "")
    assert "Traceback" not in printed.err


def test_what_a_format_cannot_hold_is_kept_as_png(random_nano: Path, tmp_path: Path, capsys):
    """That is found out after the drawing, which must not be lost."""
    long = "a dog" + " " * 19_000 + "here"  # few tokens, and more than JPEG's 64 KiB in UTF-16
    options = ("--prompt", long, "--negative", long, "--format", "jpeg", *QUICK)
    assert sample(random_nano, tmp_path, *options) == 0
    assert names(tmp_path) == ["00001-0.png"]
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / '00001-0.png'}\n"
    assert "It is saved as PNG" in printed.err
    assert settings_of(read_image_metadata(tmp_path / "00001-0.png")).prompt == long
