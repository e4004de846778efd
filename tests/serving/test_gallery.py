"""Images after they are drawn, what other programs' clients ask besides, and what the server's own process holds."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
import webuiapi
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.serving.conftest import MODEL, STEPS, Server


@pytest.fixture(scope="module")
def image(server: Server) -> dict:
    return server.draw(prompt="a teal 100%_cat", negative="yellow", seed=11)["images"][0]


def found(server: Server, **query: object) -> list[str]:
    return [one["id"] for one in server.client.get("/api/v1/images", params=query).json()["images"]]


def test_search(server: Server, image: dict):
    for query in ({"query": "teal cat"}, {"query": "yellow"}, {"query": "100%_"}, {"query": "Seed: 11"}):
        assert image["id"] in found(server, **query), query
    assert found(server, query="teal nothing") == []
    assert image["id"] in found(server, model=MODEL, after=image["created"], before=image["created"] + 1)
    assert image["id"] not in found(server, before=image["created"])
    assert found(server, model="another") == []


def test_pages_of_a_search_hold_everything_once(server: Server, image: dict):
    for number in range(3):
        server.draw(prompt=f"a page {number}", steps=1)
    seen: list[str] = []
    cursor = None
    while True:
        answer = server.client.get("/api/v1/images", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        seen += [one["id"] for one in answer.json()["images"]]
        cursor = answer.json()["cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) >= 4
    assert seen == found(server, limit=200)


def test_stars_and_boards(server: Server, image: dict):
    url = f"/api/v1/images/{image['id']}"
    board = server.post("/api/v1/boards", {"name": "cats"}).json()
    changed = server.client.patch(url, json={"starred": True, "boards": [board["id"]]}).json()
    assert (changed["starred"], changed["boards"]) == (True, [board["id"]])
    assert found(server, starred=True) == found(server, board=board["id"]) == [image["id"]]
    assert server.client.patch(url, json={"boards": ["nothing"]}).status_code == 404
    assert server.client.get("/api/v1/boards").json()["boards"][0]["images"] == 1
    assert server.client.delete(f"/api/v1/boards/{board['id']}").status_code == 204
    assert server.client.get(url).json()["boards"] == []
    server.client.patch(url, json={"starred": False})


def test_delete_and_undo(server: Server, image: dict):
    url, data = f"/api/v1/images/{image['id']}", server.png(image["id"])
    assert server.client.delete(url).status_code == 204
    assert server.client.delete(url).status_code == 404
    assert server.client.get(f"{url}.png").status_code == 404
    assert image["id"] not in found(server)
    assert server.client.post(f"{url}/restore").json()["id"] == image["id"]
    assert server.png(image["id"]) == data
    assert server.client.post(f"{url}/restore").status_code == 404


def test_again_says_that_every_pixel_is_equal(server: Server, image: dict):
    job = server.client.post(f"/api/v1/images/{image['id']}/again").json()
    done = server.until(job["id"], "finished", "failed")
    assert done["again"] == {"image": image["id"], "equal": True, "difference": None}
    assert server.png(done["images"][0]["id"]) == server.png(image["id"])


def test_read_ours_and_others(server: Server, image: dict):
    read = server.client.post("/api/v1/read", files={"file": ("x", server.png(image["id"]))}).json()
    assert read["source"] == "terminus"
    request = {name: read["request"][name] for name in ("model", "prompt", "negative", "seed", "steps", "width")}
    assert request == {name: (image | {"model": MODEL})[name] for name in request}
    again = server.draw(**read["request"])
    assert server.png(again["images"][0]["id"]) == server.png(image["id"])
    file, info = io.BytesIO(), PngInfo()
    settings = "Steps: 9, Sampler: Euler a, CFG scale: 5.5, Seed: 3, Size: 64x64"
    info.add_text("parameters", f"a fox\nNegative prompt: red\n{settings}")
    Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=info)
    read = server.client.post("/api/v1/read", files={"file": ("x", file.getvalue())}).json()
    assert read["source"] == "a1111"
    assert read["request"] == {
        "prompt": "a fox", "negative": "red", "steps": 9, "solver": "euler_ancestral", "guidance": 5.5, "seed": 3,
        "width": 64, "height": 64, "adapters": [],
    }  # fmt: skip


def test_openai_errors_and_formats(server: Server, image: dict):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError, match="There is no model"):
            client.images.generate(prompt="a", model="dall-e-9")
        with pytest.raises(openai.BadRequestError, match="transparent background"):
            client.images.generate(prompt="a", background="transparent")
        with pytest.raises(openai.BadRequestError, match="Weights"):
            client.images.generate(prompt="a (dog:99)", extra_body={"steps": 1})
        drawn = client.images.generate(
            prompt="a", n=2, size="64x96", output_format="webp", extra_body={"steps": 1}
        )  # fmt: skip
        import base64

        shown = [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in drawn.data]
        assert [(one.format, one.size) for one in shown] == [("WEBP", (64, 96))] * 2
        with pytest.warns(DeprecationWarning, match="deprecated"):
            varied = client.images.create_variation(image=("x.png", server.png(image["id"])), n=1)
        assert len(varied.data) == 1


def test_a1111_besides_drawing(server: Server, image: dict):
    api = webuiapi.WebUIApi(baseurl=f"{server.address}/sdapi/v1", sampler="Euler", steps=STEPS)
    try:
        assert "DPM++ 2M" in api.util_get_sampler_names()
        assert "karras" in api.util_get_scheduler_names()
        (title,) = api.util_get_model_names()
        api.util_set_model(title)
        assert api.util_get_current_model() == title
        shown = Image.open(io.BytesIO(server.png(image["id"])))
        assert api.png_info(shown).info.startswith("a teal 100%_cat")
        assert api.extra_single_image(shown, upscaling_resize=2).image.size == (shown.width * 2, shown.height * 2)
        with pytest.raises(RuntimeError, match="Sampler not found"):
            api.txt2img(prompt="a", sampler_name="DPM adaptive", width=64, height=64)
        _interrupted(server, api)
    finally:
        api.session.close()


def _interrupted(server: Server, api: webuiapi.WebUIApi) -> None:
    """Progress with a preview of what is drawn, then an end to it; its client has its answer."""
    answers: list[webuiapi.WebUIApiResult] = []

    def draw() -> None:
        answers.append(api.txt2img(prompt="a bird", steps=150, width=64, height=64, cfg_scale=4))

    thread = threading.Thread(target=draw)
    thread.start()
    deadline = time.monotonic() + 30
    while True:
        told = server.client.get("/sdapi/v1/progress").json()
        if told["progress"] > 0 and told["current_image"]:
            break
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    assert told["state"]["sampling_steps"] == 150
    assert server.client.post("/sdapi/v1/interrupt").status_code == 200
    thread.join(20)
    assert answers[0].images == []
    assert server.client.get("/sdapi/v1/progress").json()["progress"] == 0


def test_metrics(server: Server, image: dict):
    lines = server.client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(values["terminus_images_total"]) >= 1
    assert int(values['terminus_jobs_total{state="finished"}']) >= 1
    assert values["terminus_ready"] == "1"
    assert values['terminus_job_seconds_bucket{le="+Inf"}'] == values["terminus_job_seconds_count"]


def test_the_process_that_answers_holds_no_torch(server: Server, image: dict):
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in mapped
    assert "libtorch" in Path(f"/proc/{server.workers()[0]}/maps").read_text(), "where it is, it is seen"


def test_below_a_root_path(serve: Callable[..., Server]):
    """A proxy may send the prefix or take it off."""
    server = serve("--root-path", "/terminus")
    assert server.address.endswith("/terminus")
    origin = server.address.removesuffix("/terminus")
    for base in (server.address, origin):
        answer = server.client.get(f"{base}/api/v1/options")
        assert answer.status_code == 200
        page = server.client.get(f"{base}/")
        assert page.status_code == 200
        found = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert found
        assert [link for link in found if link.startswith(("/", "http"))] == [], "relative, so that any prefix will do"
        script = next(link for link in found if link.endswith(".js"))
        assert server.client.get(f"{base}/{script}").status_code == 200
