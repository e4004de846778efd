"""Less usual ways: a second pass, three axes, two fingers, an adapter, a licence that restricts, a written prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.serving.conftest import Server
from tests.serving.text_model import WRITTEN, TextModel, completion

from .conftest import Visit

MODEL = "random-nano"


@pytest.fixture
def visit(browser: Browser, steered: Server) -> Iterator[Callable[..., Page]]:
    visits: list[Visit] = []

    def begin(path: str = "", touch: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": 1280, "height": 1000}, has_touch=touch, reduced_motion="reduce"
        )
        visits.append(Visit(context, f"{steered.address}/"))
        return visits[-1].open(path)

    yield begin
    faults = [fault for one in visits for fault in one.faults]
    for one in visits:
        one.context.close()
    assert faults == []


def newest(steered: Server) -> dict:
    return steered.client.get("/api/v1/images?limit=1").json()["images"][0]


def test_a_second_pass(visit: Callable[..., Page], steered: Server):
    page = visit()
    page.fill("#prompt", "a dog")
    page.fill("#steps", "2")
    page.locator("details.finer summary").click()
    page.check("#hires")
    page.fill("#hires_factor", "2")
    page.click("#draw")
    image = page.locator("button.tile img").first
    image.wait_for()
    assert image.evaluate("one => one.naturalWidth") == 64
    assert newest(steered)["request"]["hires"] == {"factor": 2, "strength": 0.5}


def test_an_adapter_and_its_weight(visit: Callable[..., Page], steered: Server):
    page = visit()
    page.fill("#prompt", "a dog")
    page.fill("#steps", "2")
    page.click("#add-adapter")
    page.locator("dialog .pick button", has_text="ink").click()
    page.get_by_label("Weight of ink").fill("0.7")
    page.click("#draw")
    page.locator("button.tile img").first.wait_for()
    assert newest(steered)["request"]["adapters"] == [{"id": "ink", "weight": 0.7}]
    assert newest(steered)["metadata"]["adapters"][0]["weight"] == 0.7


def test_a_licence_is_agreed_to_before_the_first_use(visit: Callable[..., Page], steered: Server):
    page = visit()
    page.select_option("#model", "licensed")
    page.fill("#prompt", "a dog")
    page.fill("#steps", "2")
    page.click("#draw")
    dialog = page.locator("dialog.sheet")
    expect(dialog).to_contain_text("openrail++")
    dialog.get_by_role("button", name="Not now").click()
    assert steered.post("/api/v1/jobs", {"model": "licensed", "steps": 2}).status_code == 403
    page.click("#draw")
    page.get_by_role("button", name="I will keep to this").click()
    page.locator("button.tile img").first.wait_for()
    assert newest(steered)["model"] == "licensed"
    page.click("#draw")
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("dialog.sheet")).to_have_count(0)


def test_a_prompt_that_is_written_out(visit: Callable[..., Page], steered: Server, writer: TextModel):
    page = visit()
    page.fill("#prompt", "a dog")
    page.fill("#steps", "2")
    page.click("#expand")
    writer.answer = (200, completion(WRITTEN))
    page.click("#draw")
    expect(page.locator("#written")).to_have_text(f"Written out: {WRITTEN}")
    expect(page.locator("#prompt")).to_have_value("a dog")
    assert newest(steered)["metadata"]["expanded_from"] == "a dog"
    writer.answer = (500, b"")
    page.click("#draw")
    expect(page.locator(".toast")).to_contain_text(
        "Drawn from your own prompt: the text server answers with status 500."
    )
    expect(page.locator("#cancel")).to_be_hidden()


def test_a_grid_of_three_axes(visit: Callable[..., Page], steered: Server):
    page = visit("grid")
    page.fill("#prompt", "a dog")
    page.get_by_label("Columns: values").fill("2, 5")
    page.get_by_label("Rows: values").fill("1..2")
    page.click("#add-axis")
    page.get_by_label("Sheets: values").fill("2, 3")
    expect(page.locator("#grid-size")).to_have_text("8 images")
    page.click("#draw")
    expect(page.locator(".sheet-table td img")).to_have_count(8)
    assert page.locator(".sheet-table caption").all_inner_texts() == ["Steps 2", "Steps 3"]
    grid = steered.client.get(f"/api/v1/grids/{page.url.rpartition('=')[2]}").json()
    drawn = [
        (cell["image"]["request"]["guidance"], cell["image"]["seed"], cell["image"]["steps"]) for cell in grid["cells"]
    ]
    assert drawn == [(guidance, seed, steps) for steps in (2, 3) for seed in (1, 2) for guidance in (2, 5)]


def test_two_fingers_enlarge_the_view_and_paint_nothing(visit: Callable[..., Page], steered: Server):
    steered.draw(model=MODEL, prompt="a dog", steps=2)
    page = visit(f"canvas?image={newest(steered)['id']}", touch=True)
    box = page.locator("#viewport").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = page.locator("#board").bounding_box()
    touches = page.context.new_cdp_session(page)

    def fingers(kind: str, *distances: float) -> None:
        points = [{"x": x + distance, "y": y, "id": number} for number, distance in enumerate(distances)]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", -40)
    fingers("touchStart", -40, 40)
    for distance in range(50, 130, 10):
        fingers("touchMove", -distance, distance)
    fingers("touchEnd")
    after = page.locator("#board").bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 1.5 * before["width"]
    marked = """() => {
      const layer = document.getElementById("mask-layer");
      return layer.getContext("2d").getImageData(0, 0, layer.width, layer.height).data.some((value) => value > 0);
    }"""
    assert page.evaluate(marked) is False
    fingers("touchStart", -20)
    for distance in (-10, 0, 10, 20):
        fingers("touchMove", distance)
    fingers("touchEnd")
    assert page.evaluate(marked) is True, "one finger paints"
