"""The same seed through every interface is the image of `terminus sample`, byte for byte of the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator

import openai
import pytest
import webuiapi
from PIL import Image

from tests.serving.conftest import MODEL, STEPS, Server

PROMPT = "a flat drawing of a dog"
TEXT = ("--prompt", PROMPT, "--seed", "7", "--steps", str(STEPS))


@pytest.fixture(scope="module")
def start(server: Server) -> bytes:
    """An image to begin from: one that the server drew."""
    job = server.draw(prompt="a flat drawing of a cat on a white background", seed=3)
    return server.png(job["images"][0]["id"])


@pytest.fixture(scope="module")
def files(start: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of that image and of a mask whose left half is white."""
    folder = tmp_path_factory.mktemp("start")
    image, mask = folder / "image.png", folder / "mask.png"
    image.write_bytes(start)
    mask.write_bytes(png(half_mask(start)))
    return str(image), str(mask)


def half_mask(start: bytes) -> Image.Image:
    size = Image.open(io.BytesIO(start)).size
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_native(server: Server, sampled: Callable[..., bytes]):
    job = server.draw(prompt=PROMPT, seed=7)
    assert server.png(job["images"][0]["id"]) == sampled(*TEXT)


def test_several_that_are_drawn_at_once(server: Server, sampled: Callable[..., bytes]):
    """Jobs of other prompts that wait are drawn with it in one batch; its file is the same."""
    jobs = [server.submit(prompt=prompt, seed=7) for prompt in ("a bird", PROMPT, "a red apple")]
    done = server.until(jobs[1]["id"], "finished")
    assert server.png(done["images"][0]["id"]) == sampled(*TEXT)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"task": "image", "strength": 0.6}, ("--strength", "0.6")),
        ({"task": "inpaint", "feather": 2}, ("--mask", "MASK", "--feather", "2")),
        (
            {"task": "inpaint", "crop_to_mask": True, "padding": 8, "strength": 0.7, "fill": "grey"},
            ("--mask", "MASK", "--padding", "8", "--strength", "0.7", "--fill", "grey"),
        ),
        ({"task": "outpaint", "margins": {"right": 16}}, ("--outpaint", "0,0,16,0")),
        ({"task": "upscale", "factor": 2}, ("--upscale", "2")),
    ],
    ids=lambda value: value["task"] if isinstance(value, dict) else "",
)
def test_edits(
    server: Server, sampled: Callable[..., bytes], start: bytes, files: tuple[str, str], fields: dict, options: tuple
):
    image, mask = files
    given = {"image": server.upload(start)["id"]}
    if "MASK" in options:
        given["mask"] = server.upload(png(half_mask(start)))["id"]
    job = server.draw(prompt=PROMPT, seed=7, **given, **fields)
    assert job["state"] == "finished", job["error"]
    asked = [mask if option == "MASK" else option for option in options]
    assert server.png(job["images"][0]["id"]) == sampled(*TEXT, "--image", image, *asked)


def test_second_pass_and_settings(server: Server, sampled: Callable[..., bytes]):
    job = server.draw(
        prompt=PROMPT, seed=7, hires={"factor": 1.5, "strength": 0.5}, guidance=5.5, rescale=0.3, solver="euler",
        interval=[0.1, 0.9], negative="blue",
    )  # fmt: skip
    options = ("--hires", "1.5:0.5", "--guidance", "5.5", "--rescale", "0.3", "--solver", "euler")
    assert server.png(job["images"][0]["id"]) == sampled(*TEXT, *options, "--interval", "0.1:0.9", "--negative", "blue")


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_openai(client: openai.OpenAI, sampled: Callable[..., bytes]):
    drawn = client.images.generate(prompt=PROMPT, model=MODEL, extra_body={"seed": 7, "steps": STEPS})
    assert base64.b64decode(drawn.data[0].b64_json) == sampled(*TEXT)


def test_openai_edit(client: openai.OpenAI, sampled: Callable[..., bytes], start: bytes, files: tuple[str, str]):
    """Their mask is transparent where something is drawn anew, ours is white there."""
    image, mask = files
    cover = Image.open(io.BytesIO(start)).convert("RGBA")
    cover.putalpha(half_mask(start).point(lambda value: 255 - value))
    drawn = client.images.edit(
        image=("image.png", start), mask=("mask.png", png(cover)), prompt=PROMPT,
        extra_body={"seed": 7, "steps": STEPS},
    )  # fmt: skip
    expected = sampled(*TEXT, "--image", image, "--mask", mask)
    assert base64.b64decode(drawn.data[0].b64_json) == expected


def test_openai_stream(client: openai.OpenAI, sampled: Callable[..., bytes]):
    """Partial images are real previews: of the right size, each nearer to the image than the one before."""
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 7, "steps": 12})
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    whole = base64.b64decode(events[-1].b64_json)
    assert whole == sampled(*TEXT[:-1], "12")
    final = pixels(whole)
    gaps = [distance(pixels(base64.b64decode(event.b64_json)), final) for event in events[:2]]
    assert gaps[1] < gaps[0]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]


def pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> float:
    import numpy as np

    assert one.size == other.size
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.fixture
def a1111(server: Server) -> Iterator[webuiapi.WebUIApi]:
    one = webuiapi.WebUIApi(baseurl=f"{server.address}/sdapi/v1", sampler="DPM++ 2M", steps=STEPS)
    yield one
    one.session.close()


def same_pixels(image: Image.Image, data: bytes) -> bool:
    return image.convert("RGB").tobytes() == pixels(data).tobytes() and image.size == pixels(data).size


def test_a1111(a1111: webuiapi.WebUIApi, server: Server, sampled: Callable[..., bytes]):
    side = server.client.get("/api/v1/models").json()["models"][0]["native_size"]
    drawn = a1111.txt2img(prompt=PROMPT, seed=7, cfg_scale=4, width=side, height=side)
    expected = sampled(*TEXT)
    assert base64.b64decode(drawn.json["images"][0]) == expected
    assert drawn.info["infotexts"][0] == Image.open(io.BytesIO(expected)).info["parameters"]
    assert drawn.info["all_seeds"] == [7]


def test_a1111_image_to_image(
    a1111: webuiapi.WebUIApi, sampled: Callable[..., bytes], start: bytes, files: tuple[str, str]
):
    size = pixels(start).size
    drawn = a1111.img2img(
        images=[pixels(start)],
        prompt=PROMPT,
        seed=7,
        cfg_scale=4,
        denoising_strength=0.6,
        width=size[0],
        height=size[1],
    )
    option = f"{size[0]}x{size[1]}"
    expected = sampled(*TEXT, "--image", files[0], "--strength", "0.6", "--size", option)
    assert same_pixels(drawn.image, expected)


def test_a1111_inpainting(
    a1111: webuiapi.WebUIApi, sampled: Callable[..., bytes], start: bytes, files: tuple[str, str]
):
    drawn = a1111.img2img(
        images=[pixels(start)], mask_image=half_mask(start), mask_blur=0, inpainting_fill=1, inpaint_full_res=False,
        prompt=PROMPT, seed=7, cfg_scale=4, denoising_strength=0.6,
    )  # fmt: skip
    expected = sampled(*TEXT, "--image", files[0], "--mask", files[1], "--strength", "0.6", "--fill", "original")
    assert same_pixels(drawn.image, expected)
