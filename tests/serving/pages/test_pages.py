"""The pages in a real browser, on a real server: what somebody who draws does, and what no page may do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from .conftest import Client, Visit

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
PAGES = ("", "canvas", "grid", "compare", "gallery", "models", "runs")
PHONE = {"width": 390, "height": 844, "touch": True}
Begin = Callable[..., Visit]


def draw(page: Page, prompt: str, **fields: object) -> None:
    """Writes a prompt and settings and presses Draw."""
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#draw")


def shown_image(page: Page) -> dict[str, Any]:
    """The finished image in the centre: its address and its size in pixels."""
    image = page.locator("button.tile img").first
    image.wait_for()
    return image.evaluate("one => ({url: one.getAttribute('src'), width: one.naturalWidth, height: one.naturalHeight})")


def marked(page: Page) -> float:
    """The share of the canvas's mask that is marked."""
    return page.evaluate(
        """() => {
          const layer = document.getElementById("mask-layer");
          const {data} = layer.getContext("2d").getImageData(0, 0, layer.width, layer.height);
          let count = 0;
          for (let at = 3; at < data.length; at += 4) count += data[at] >= 128;
          return 4 * count / data.length;
        }"""
    )


def drag(page: Page, selector: str, start: tuple[float, float], *ways: tuple[float, float]) -> None:
    """Drags from one place of an element over others; places are shares of its width and height."""
    box = page.locator(selector).bounding_box()
    assert box is not None

    def at(place: tuple[float, float]) -> tuple[float, float]:
        return box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"]

    page.mouse.move(*at(start))
    page.mouse.down()
    for way in ways:
        page.mouse.move(*at(way), steps=6)
    page.mouse.up()


def test_an_image_takes_shape_and_stays(visit: Begin, client: Client):
    page = visit().open()
    draw(page, "a flat drawing of a dog", steps=12, seed=5)
    page.wait_for_selector(".tile.preview img")
    image = shown_image(page)
    assert (image["width"], image["height"]) == (64, 64)
    expect(page.locator("#announcer")).to_have_text("The image is drawn")
    assert page.locator("#strip img").count() >= 1
    newest = client.ask("images?limit=1")["images"][0]
    assert (newest["prompt"], newest["seed"], newest["steps"]) == ("a flat drawing of a dog", 5, 12)
    assert newest["id"] in image["url"]


def test_escape_cancels_what_is_drawn(visit: Begin, client: Client):
    page = visit().open()
    draw(page, "a flat drawing of a cat", steps=100, count=8)
    page.wait_for_selector(".tile.preview img")
    page.keyboard.press("Escape")
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#announcer")).to_have_text("Cancelled")
    newest = max(client.ask("jobs")["jobs"], key=lambda job: job["created"])
    assert newest["state"] == "cancelled"
    assert newest["step"] < 100


def test_batches_wait_with_their_places(visit: Begin, client: Client):
    page = visit().open()
    draw(page, "a flat drawing of a star", steps=60, seed=1, batches=3)
    page.click("#queue-button")
    expect(page.locator("#queue-list .how", has_text="step")).to_have_count(1)
    expect(page.locator("#queue-list .how", has_text=re.compile("place|waits"))).to_have_count(2)
    for _ in range(3):
        page.locator("#queue-list").get_by_role("button", name="Cancel this job").first.click()
        page.wait_for_timeout(150)
    expect(page.locator("#queue-summary")).to_contain_text("Nothing waits")
    newest = sorted(client.ask("jobs")["jobs"], key=lambda job: job["created"])[-3:]
    assert sorted(job["request"]["seed"] for job in newest) == [1, 2, 3]


def test_what_cannot_be_drawn_is_said_beside_the_prompt(visit: Begin):
    one = visit()
    page = one.open()
    draw(page, "a dog", width=65, height=64, steps=2)
    expect(page.locator("#form-error")).to_contain_text(re.compile("65|multiple"))
    one.faults = [fault for fault in one.faults if "422" not in fault]


def test_marks_in_a_prompt_are_coloured_and_tokens_counted(visit: Begin):
    page = visit().open()
    page.fill("#prompt", "a (red:1.3) [small] {apple|pear} BREAK on black")
    classes = page.locator("#prompt-mirror span").evaluate_all(
        "all => all.map(one => [one.className, one.textContent])"
    )
    assert ["span-up", "(red:1.3)"] in classes
    assert ["span-down", "[small]"] in classes
    assert ["span-wildcard", "{apple|pear}"] in classes
    assert ["span-break", "BREAK"] in classes
    expect(page.locator("#tokens")).to_contain_text("in chunk 2")
    page.fill("#prompt", "a red apple")
    page.evaluate("document.getElementById('prompt').setSelectionRange(2, 5)")
    page.keyboard.press("Control+ArrowUp")
    expect(page.locator("#prompt")).to_have_value("a (red:1.1) apple")
    page.fill("#prompt", "[cat:dog:0.5]")
    expect(page.locator("#prompt-problems")).not_to_be_empty()


def test_all_settings_are_recalled(visit: Begin, client: Client):
    image = client.draw("a flat drawing of a fish", seed=77, steps=5, guidance=3.5, solver="euler", negative="blue")
    page = visit().open(f"?recall={image['id']}")
    values = {
        name: page.input_value(f"#{name}") for name in ("prompt", "negative", "seed", "steps", "guidance", "solver")
    }
    assert values == {
        "prompt": "a flat drawing of a fish", "negative": "blue", "seed": "77", "steps": "5", "guidance": "3.5",
        "solver": "euler",
    }  # fmt: skip


def test_a_file_tells_its_settings(visit: Begin, client: Client, tmp_path: Path, apple: dict[str, Any]):
    page = visit().open("gallery")
    with page.expect_download() as download:
        page.locator(f"[data-image='{apple['id']}'] .open").click()
        page.get_by_role("link", name="Download").click()
    path = tmp_path / "somewhere.png"
    download.value.save_as(path)
    page.click("#viewer-close")
    page.set_input_files("#read-file", path)
    expect(page.locator("dialog.sheet")).to_contain_text("a 3d render of a red apple on a black background")
    page.get_by_role("button", name="Recall all").click()
    page.wait_for_selector("body[data-page=draw][data-ready]")
    assert page.input_value("#prompt") == apple["prompt"]
    assert page.input_value("#seed") == str(apple["seed"])


def test_drawn_again_every_pixel_is_equal(visit: Begin, apple: dict[str, Any]):
    page = visit().open(f"gallery?image={apple['id']}")
    page.locator("#viewer").get_by_role("button", name="Draw again").click()
    expect(page.locator(".toast").last).to_contain_text("every pixel is equal")


def test_only_what_the_brush_marks_is_drawn_anew(visit: Begin, client: Client, apple: dict[str, Any]):
    page = visit().open(f"canvas?image={apple['id']}&task=inpaint")
    page.fill("#prompt", "a green apple on a white background")
    page.fill("#steps", "8")
    page.fill("#feather", "0")
    drag(page, "#image-layer", (0.2, 0.25), (0.8, 0.25))
    assert 0.04 < marked(page) < 0.4
    page.click("#draw")
    page.locator("#result-bar").wait_for()
    result = client.ask("images?limit=1")["images"][0]
    before, after = client.pixels(apple["url"]), client.pixels(result["url"])
    changed = np.any(before != after, axis=2)
    assert changed[12:20, 20:44].mean() > 0.5, "the marked stretch is drawn anew"
    assert not changed[40:].any(), "nothing else is touched"
    expect(page.locator("#before-after")).to_be_visible()
    page.click("#keep")
    expect(page.locator("#result-bar")).to_be_hidden()
    assert page.locator("body").get_attribute("data-image") == result["id"]


def test_marks_are_undone_inverted_and_drawn_by_lasso(visit: Begin, apple: dict[str, Any]):
    page = visit().open(f"canvas?image={apple['id']}")
    drag(page, "#image-layer", (0.3, 0.5), (0.7, 0.5))
    brushed = marked(page)
    page.keyboard.press("Control+z")
    assert marked(page) == 0
    page.keyboard.press("Control+y")
    assert marked(page) == pytest.approx(brushed)
    page.click("#invert-mask")
    assert marked(page) == pytest.approx(1 - brushed, abs=0.05)
    page.click("#clear-mask")
    page.keyboard.press("Escape")
    page.click("[data-tool=lasso]")
    drag(page, "#image-layer", (0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))
    assert marked(page) == pytest.approx(0.25, abs=0.06)
    page.click("[data-tool=eraser]")
    drag(page, "#image-layer", (0.2, 0.5), (0.8, 0.5))
    assert 0.05 < marked(page) < 0.24


def test_the_frame_is_dragged_outwards(visit: Begin, client: Client, apple: dict[str, Any]):
    page = visit().open(f"canvas?image={apple['id']}&task=outpaint")
    handle = page.locator("#frame [data-side=right]")
    box = handle.bounding_box()
    assert box is not None
    board = page.locator("#board").bounding_box()
    assert board is not None
    scale = board["width"] / 64
    page.mouse.move(box["x"] + 15, box["y"] + 15)
    page.mouse.down()
    page.mouse.move(box["x"] + 15 + 17 * scale, box["y"] + 15, steps=5)
    page.mouse.up()
    assert page.input_value("#margin-right") == "16"
    page.fill("#steps", "6")
    page.click("#draw")
    page.locator("#result-bar").wait_for()
    result = client.ask("images?limit=1")["images"][0]
    assert (result["width"], result["height"]) == (80, 64)
    assert np.array_equal(client.pixels(result["url"])[:, :64], client.pixels(apple["url"]))


@pytest.mark.parametrize(("task", "size"), [("image", 64), ("upscale", 128)])
def test_an_image_becomes_another(visit: Begin, client: Client, apple: dict[str, Any], task: str, size: int):
    page = visit().open(f"canvas?image={apple['id']}&task={task}")
    page.fill("#steps", "4")
    page.click("#draw")
    page.locator("#result-bar").wait_for()
    result = client.ask("images?limit=1")["images"][0]
    assert (result["width"], result["height"]) == (size, size)
    assert result["request"]["task"] == task
    assert not np.array_equal(client.pixels(result["url"]), client.pixels(apple["url"]))


def test_a_grid_fills_its_sheet(visit: Begin):
    page = visit().open("grid")
    page.fill("#prompt", "a flat drawing of a tree")
    page.fill("#steps", "3")
    page.get_by_label("Columns: values").fill("2, 5")
    page.get_by_label("Rows: values").fill("1..2")
    page.click("#draw")
    expect(page.locator(".sheet-table td img")).to_have_count(4)
    heads = page.locator(".sheet-table th").all_inner_texts()
    assert [text for text in heads if text] == ["Guidance 2", "Guidance 5", "Seed 1", "Seed 2"]
    with page.expect_download() as download:
        page.click("#sheet-file")
    assert download.value.path().stat().st_size > 1000


def test_a_vote_is_stored_and_tells_the_models(visit: Begin, server: str):
    page = visit().open("compare")
    page.fill("#prompts", "a flat drawing of a house")
    page.fill("#steps", "3")
    page.click("#draw")
    expect(page.locator(".duel-image img")).to_have_count(2)
    expect(page.locator("#left figcaption")).to_have_text("told after your vote")
    page.locator("[data-vote=left]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#left figcaption")).to_have_text(re.compile("nano|other"))
    captions = page.locator(".pair figcaption").all_inner_texts()
    assert sorted(captions) == ["nano", "other"]
    votes = page.request.get(f"{server}api/v1/votes").text().strip().splitlines()
    assert len(votes) == 1
    expect(page.locator("#tally")).to_contain_text(captions[0])


def test_the_gallery_is_searched_starred_and_sorted(visit: Begin, client: Client):
    fox = client.draw("a flat drawing of a fox", seed=9)
    client.draw("a flat drawing of a bee", seed=9)
    page = visit().open("gallery")
    page.fill("#query", "fox")
    expect(page.locator("#wall li")).to_have_count(1)
    page.locator("#wall .star").click()
    expect(page.locator("#wall .star")).to_have_attribute("aria-pressed", "true")
    page.fill("#query", "")
    page.click("#starred")
    expect(page.locator("#wall li")).to_have_count(1)
    page.click("#boards-button")
    page.get_by_label("Name of a new board").fill("animals")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("dialog.sheet li")).to_contain_text("animals")
    page.get_by_role("button", name="Close", exact=True).click()
    page.locator("#wall .open").click()
    page.get_by_role("button", name="animals").click()
    page.click("#viewer-close")
    page.click("#starred")
    page.select_option("#board", label=page.locator("#board option", has_text="animals").inner_text())
    expect(page.locator("#wall li")).to_have_count(1)
    assert len(client.ask(f"images/{fox['id']}")["boards"]) == 1


def test_a_deleted_image_comes_back(visit: Begin, client: Client):
    owl = client.draw("a flat drawing of an owl", seed=4)
    page = visit().open("gallery")
    page.fill("#query", "owl")
    expect(page.locator("#wall li")).to_have_count(1)
    page.locator("#wall .open").focus()
    page.keyboard.press("Delete")
    expect(page.locator("#wall li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#wall li")).to_have_count(1)
    assert client.ask(f"images/{owl['id']}")["prompt"] == "a flat drawing of an owl"


def test_words_are_never_markup(visit: Begin, client: Client):
    hostile = '<img src=x onerror="document.title=1"> a dog <script>document.title=2</script> &amp;'
    client.draw(re.sub(r"[<>]", lambda found: "\\" + found[0], hostile), seed=2, steps=2)
    for path in ("gallery", ""):
        page = visit().open(path)
        expect(page).not_to_have_title(re.compile("^[12]$"))
        assert page.locator("img[src=x]").count() == 0
    page = visit().open("gallery?")
    page.fill("#query", "onerror")
    page.locator("#wall .open").first.click()
    expect(page.locator("#viewer .words")).to_contain_text("onerror=")
    assert page.locator("img[src=x], #viewer script").count() == 0


def test_models_say_what_they_are(visit: Begin):
    page = visit().open("models")
    card = page.locator("#models .card").first
    expect(card).to_contain_text("zero terminal SNR")
    expect(card).to_contain_text("scheduler/scheduler_config.json")
    expect(card).to_contain_text("apache-2.0")
    card.get_by_role("button", name="All findings").click()
    expect(page.locator("pre.report")).to_contain_text("native_pixels")


def test_a_run_shows_its_loss_by_band(visit: Begin):
    page = visit().open("runs")
    expect(page.locator("#run h2").first).to_have_text("teal")
    bands = page.locator(".chart", has_text="Loss by band")
    expect(bands.locator("path.line:not(.faint)")).to_have_count(3)
    expect(bands.locator("svg")).to_have_attribute("aria-label", re.compile("t 900 to 999 0[.]"))


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_scrolls_one_way_alone(visit: Begin, apple: dict[str, Any], path: str):
    page = visit(**PHONE).open(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = page.evaluate(
        """() => [...document.querySelectorAll("nav.rail a, #draw, #theme-button, #queue-button")]
          .filter(one => one.offsetParent && one.getBoundingClientRect().height < 36).map(one => one.outerHTML)"""
    )
    assert small == []


def test_a_phone_draws(visit: Begin):
    page = visit(**PHONE).open()
    page.click("#open-settings")
    expect(page.locator("#settings")).to_be_visible()
    page.fill("#steps", "3")
    page.click("#close-settings")
    expect(page.locator("#settings")).to_be_hidden()
    draw(page, "a flat drawing of a boat")
    assert shown_image(page)["width"] == 64


def test_the_keyboard_alone_draws_and_paints(visit: Begin, apple: dict[str, Any]):
    page = visit().open()
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a flat drawing of a moon")
    for _ in range(4):  # past the negative prompt's button to Draw, and on to the settings
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "draw":
            break
    expect(page.locator("#draw")).to_be_focused()
    page.fill("#steps", "3")
    page.locator("#draw").focus()
    page.keyboard.press("Enter")
    assert shown_image(page)["width"] == 64

    page = visit().open(f"canvas?image={apple['id']}")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.locator("#viewport").focus()
    page.keyboard.press("Space")
    stamped = marked(page)
    page.keyboard.press("Shift+ArrowRight")
    assert marked(page) > stamped > 0
    page.locator("#tasks [aria-checked=true]").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#frame [data-side=bottom]").focus()
    page.keyboard.press("ArrowDown")
    assert page.input_value("#margin-bottom") == "8"


def test_colours_follow_the_system_and_the_reader(visit: Begin):
    light, dark = visit(light=True), visit()
    background = "getComputedStyle(document.body).backgroundColor"
    assert light.open().evaluate(background) == "rgb(245, 244, 241)"
    page = dark.open()
    assert page.evaluate(background) == "rgb(11, 11, 13)"
    page.click("#theme-button")
    assert page.evaluate(background) == "rgb(245, 244, 241)"
    assert dark.open("gallery").evaluate(background) == "rgb(245, 244, 241)"


@pytest.mark.parametrize("light", [False, True], ids=["dark", "light"])
def test_no_page_shuts_anybody_out(visit: Begin, apple: dict[str, Any], light: bool):
    """axe-core finds nothing serious on any page."""
    one = visit(light=light)
    found: list[str] = []
    for path in (*PAGES, f"canvas?image={apple['id']}", f"gallery?image={apple['id']}"):
        page = one.open(path)
        page.evaluate(AXE)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            f"/{path}: {issue['id']}: {node['html']}"
            for issue in result["violations"]
            if issue["impact"] in ("serious", "critical")
            for node in issue["nodes"]
        ]
    assert found == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_light_and_quick(visit: Begin, path: str):
    one = visit()
    sizes: dict[str, int] = {}

    def weigh(response: Any) -> None:
        if "/api/" not in response.url:
            sizes[response.url] = response.request.sizes()["responseBodySize"]

    one.page.on("requestfinished", lambda request: weigh(request.response()))
    page = one.open(path)
    page.wait_for_timeout(100)
    assert len(sizes) > 5
    assert sum(sizes.values()) < 300_000
    assert sum(sizes.values()) < 100_000, "what it is now; a large addition should be noticed"
    paints: list[float] = []
    for _ in range(3):
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 1e9"))
        if paints[-1] < 1000:
            break
        time.sleep(1)
        page.reload()
        page.wait_for_selector("body[data-ready]")
    assert min(paints) < 1000
