"""Control networks through every interface that has them: the image of `terminus sample --control`, byte for byte."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webuiapi
from PIL import Image
from playwright.sync_api import Browser, expect

from terminus import cli
from tests.serving.conftest import Server

from .conftest import Visit

MODEL = "random-nano"
PROMPT = "a flat drawing of a dog"
IDS = {"controlnet": "edges", "t2i": "sketch", "ip": "likeness"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The control image."""
    path = tmp_path_factory.mktemp("seen") / "seen.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def sampled(
    tmp_path_factory: pytest.TempPathFactory, random_nano: Path, steering: Path, seen: Path
) -> Callable[[str, float], bytes]:
    """The file that `terminus sample` writes with one control."""

    def sample(kind: str, weight: float) -> bytes:
        out = tmp_path_factory.mktemp("sampled")
        source = steering / (f"{IDS[kind]}.safetensors" if kind == "ip" else IDS[kind])
        control = f"{kind}:{source}:{seen}:{weight}"
        options = ["--prompt", PROMPT, "--seed", "7", "--steps", "4", "--control", control, "--out", str(out)]
        assert cli.main(["sample", str(random_nano), *options]) == 0
        (image,) = out.glob("0*.png")
        return image.read_bytes()

    return sample


def test_the_options_name_the_networks(steered: Server):
    offered = steered.client.get("/api/v1/options").json()["controls"]
    assert {one["kind"]: one["id"] for one in offered} == IDS
    assert all(one["title"] and one["sentence"] for one in offered)
    names = {one["id"] for one in steered.client.get("/api/v1/adapters").json()["adapters"]}
    assert names == {"ink"}, "a control network is no adapter"


@pytest.mark.parametrize("kind", IDS)
def test_the_image_is_that_of_the_command_line(
    steered: Server, seen: Path, sampled: Callable[[str, float], bytes], kind: str
):
    control = {"id": IDS[kind], "image": steered.upload(seen.read_bytes())["id"], "weight": 0.8}
    job = steered.draw(model=MODEL, prompt=PROMPT, seed=7, steps=4, controls=[control])
    assert job["state"] == "finished", job["error"]
    drawn = job["images"][0]
    assert steered.png(drawn["id"]) == sampled(kind, 0.8)
    assert drawn["request"]["controls"][0]["id"] == IDS[kind], "it is recalled with its control"
    again = steered.client.post(f"/api/v1/images/{drawn['id']}/again").json()
    assert steered.until(again["id"], "finished", "failed")["again"]["equal"] is True


def test_two_controls_and_a_part_of_the_way(steered: Server, seen: Path):
    image = steered.upload(seen.read_bytes())["id"]
    controls = [{"id": "edges", "image": image, "start": 0.25, "end": 0.75}, {"id": "likeness", "image": image}]
    job = steered.draw(model=MODEL, prompt=PROMPT, steps=4, controls=controls)
    said = job["images"][0]["metadata"]["controls"]
    assert [(one["kind"], one["name"], one.get("interval")) for one in said] == [
        ("controlnet", "edges", [0.25, 0.75]),
        ("ip", "likeness", None),
    ]


@pytest.mark.parametrize(
    ("control", "status", "words"),
    [
        ({"id": "nothing"}, 404, "no such control network"),
        ({"id": "ink"}, 422, "ink is no control network"),
        ({"id": MODEL}, 422, "no control network"),
        ({"image": "AAAAAAAAAAAAAAAA"}, 404, "no such image"),
        ({"start": 0.5, "end": 0.5}, 422, "The start is before the end"),
        ({"id": "likeness", "start": 0.5}, 422, "acts at every step"),
        ({"weight": -1}, 422, "greater than or equal to 0"),
    ],
)
def test_controls_that_cannot_be_drawn_with(steered: Server, seen: Path, control: dict, status: int, words: str):
    given = {"id": "edges", "image": steered.upload(seen.read_bytes())["id"], **control}
    answer = steered.post("/api/v1/jobs", {"model": MODEL, "prompt": "a dog", "controls": [given]})
    assert answer.status_code == status
    assert words in answer.text


def test_a1111(steered: Server, seen: Path, sampled: Callable[[str, float], bytes]):
    """The client's own units, without a preprocessor; anything else that a unit asks is refused."""
    client = webuiapi.WebUIApi(baseurl=f"{steered.address}/sdapi/v1", sampler="DPM++ 2M", steps=4)
    try:
        assert "edges" in client.controlnet_model_list()
        asked = {"prompt": PROMPT, "seed": 7, "cfg_scale": 4, "width": 32, "height": 32}
        unit = webuiapi.ControlNetUnit(image=Image.open(seen), model="edges", weight=0.8)
        drawn = client.txt2img(
            **asked, controlnet_units=[unit], alwayson_scripts={}
        )  # its default is one dict for all calls
        expected = Image.open(io.BytesIO(sampled("controlnet", 0.8))).convert("RGB")
        assert drawn.image.convert("RGB").tobytes() == expected.tobytes()
        edges = webuiapi.ControlNetUnit(image=Image.open(seen), model="edges", module="canny")
        with pytest.raises(RuntimeError, match="not preprocessed here"):
            client.txt2img(**asked, controlnet_units=[edges], alwayson_scripts={})
    finally:
        client.session.close()


def test_the_page_steers_by_an_image(browser: Browser, steered: Server, seen: Path):
    context = browser.new_context(viewport={"width": 1280, "height": 1100}, reduced_motion="reduce")
    one = Visit(context, f"{steered.address}/")
    page = one.open()
    page.fill("#prompt", PROMPT)
    page.fill("#steps", "4")
    page.fill("#seed", "7")
    page.click("#add-control")
    page.click("#draw")
    expect(page.locator(".toast")).to_contain_text("no image yet")
    page.locator("#control-list input[type=file]").set_input_files(seen)
    expect(page.locator("#control-list img")).to_be_visible()
    page.get_by_label("Weight of likeness (IP-Adapter)").or_(page.get_by_label("Weight of edges (ControlNet)")).fill(
        "0.8"
    )
    page.select_option("#control-list select", "likeness")
    expect(page.get_by_label("From of likeness")).to_have_count(0)
    page.select_option("#control-list select", "edges")
    page.click("#draw")
    page.locator("button.tile img").first.wait_for()
    newest = steered.client.get("/api/v1/images?limit=1").json()["images"][0]
    (control,) = newest["request"]["controls"]
    assert (control["id"], control["weight"]) == ("edges", 0.8)
    same = steered.draw(model=MODEL, prompt=PROMPT, seed=7, steps=4, controls=[control])
    assert steered.png(same["images"][0]["id"]) == steered.png(newest["id"])

    page = one.open(f"?recall={newest['id']}")
    expect(page.locator("#control-list img")).to_be_visible()
    page = one.open(f"canvas?image={newest['id']}&task=image")
    page.click("#add-control")
    expect(page.locator("#control-list img")).to_be_visible()
    page.fill("#steps", "4")
    page.click("#draw")
    page.locator("#result-bar").wait_for()
    newest = steered.client.get("/api/v1/images?limit=1").json()["images"][0]
    assert newest["request"]["task"] == "image"
    assert len(newest["request"]["controls"]) == 1
    assert one.faults == []
    context.close()
