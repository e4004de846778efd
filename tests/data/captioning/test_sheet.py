"""The page and the facts of captioning: complete, self-contained, and harmless whatever a model says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from terminus.data.captioning import sheet
from terminus.data.captioning.settings import Captioner
from terminus.data.settings import DataConfig
from terminus.data.store import Store

from .conftest import Server, ask, completion

Make = Callable[..., Captioner]
HOSTILE = '<script>alert(1)</script> {{ 7 * 7 }} & a \u202e"dog"'


def test_the_page_shows_both_sides_and_loads_nothing(prepared: DataConfig, captioner: Make, server: Server):
    answers = [completion(HOSTILE), completion("I'm sorry, I can't."), completion("A <b>cut", "length")]
    server.behave = lambda number, body: (200, answers[number]) if number < 3 else None
    place = ask(prepared, captioner(prompt="What <i>is</i> it?", weight=3.0, model={"concurrency": 1})).sheet
    page = Path(place).read_text()
    assert "own 0" in page
    assert "a pattern of red" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} &amp; a " in page
    assert "What &lt;i&gt;is&lt;/i&gt; it?" in page
    assert "<script" not in page
    assert "75 %" in page
    assert page.count("<article") == 10 + 1 + 2, "ten captioned, a heading, two answers of no use"
    assert "see: refused" in page
    assert "see: cut short" in page
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">)]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_the_sample_is_the_same_every_time(prepared: DataConfig, captioner: Make):
    names = re.compile(r"<figcaption>([^<]*)")
    first = names.findall(Path(ask(prepared, captioner()).sheet).read_text())
    second = names.findall(Path(ask(prepared, captioner(name="other", prompt="x")).sheet).read_text())
    assert len(first) == 12
    assert first == second


def test_the_facts_add_up(prepared: DataConfig, captioner: Make, server: Server):
    server.behave = lambda number, body: (200, completion("")) if number == 0 else None
    ask(prepared, captioner(model={"concurrency": 1}))
    server.behave = lambda number, body: (422, {}) if number == 12 else None
    ask(prepared, captioner(prompt="again", model={"concurrency": 1}))
    content = json.loads(Path(prepared.store, "captions.json").read_text())
    old, new = content["captioners"]
    assert content["failed"] == {"HTTP 422": 1}
    assert (old["captions"], old["in_force"], old["useless"]) == (11, 0, {"empty": 1})
    assert (new["captions"], new["in_force"], new["useless"]) == (11, 11, {})
    assert (old["settings"]["model"], old["served_by"], old["prompt_tokens"]) == ("see-1", ["see-1-fp8"], 1200)
    assert old["first"] <= old["last"] <= new["first"]
    assert [one.name for one in sheet.facts(Store(prepared.store))] == ["see", "see"]
