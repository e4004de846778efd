from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from terminus.data.filters import Filters
from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig

from .conftest import save


class Page(HTMLParser):
    """What a browser would fetch or run, and whether tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def bars(page: str, kind: str) -> list[str]:
    """Their widths; a legend's has none."""
    return re.findall(rf'<i class="{kind}" style="width: ([^"]*)">', page)


def test_nothing_dropped_is_no_bar(images: Path, config: Callable[..., DataConfig]):
    """A bar is at least two pixels wide, so one of width 0 is seen."""
    data = config(images)
    assert prepare(data, None, Console(file=StringIO())).dropped == {}
    page = Path(data.store, "report.html").read_text()
    assert bars(page, "drop") == []
    assert "width: 0.00%" not in page


def test_the_report_says_what_was_kept_and_dropped_and_is_safe(images: Path, config: Callable[..., DataConfig]):
    save(images / "white.png", Image.fromarray(np.full((90, 90, 3), 255, np.uint8)))
    (images / "<script>alert(1)<").mkdir()
    (images / "<script>alert(1)<" / "script>.png").write_text("no image")
    (images / "<script>alert(1)<" / "script>.txt").write_text("{{ 7 * 7 }}")
    (images / "0.txt").write_text("<img src=x onerror=alert(2)> {{ 7 * 7 }}")
    metadata = StringIO()
    data = config(images, filters=Filters(max_luminance=0.9))
    report = prepare(data, None, Console(file=metadata, width=400))
    assert report.dropped == {"not a JPEG, PNG or WebP image": 1, "too bright": 1}
    assert "10 candidates: 8 kept (8 new), 2 dropped" in metadata.getvalue()

    stored = json.loads(Path(data.store, "report.json").read_text())
    assert stored["candidates"] == stored["kept"] + sum(stored["dropped"].values()) == 10
    assert stored["holdings"]["images"] == stored["kept"] == 8
    for histogram in stored["holdings"]["histograms"].values():
        assert sum(histogram["counts"]) == 8
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    for name in ("buckets", "sources", "splits", "licences"):
        assert sum(stored["holdings"][name].values()) == 8

    page = Path(data.store, "report.html").read_text()
    parsed = Page()
    parsed.feed(page)
    assert not any(tag in {"script", "link", "iframe", "object"} for tag, _ in parsed.tags)
    images_shown = [attributes["src"] for tag, attributes in parsed.tags if tag == "img"]
    assert len(images_shown) == 9, "eight kept and the one that is too bright"
    assert all(source and source.startswith("data:image/jpeg;base64,") for source in images_shown)
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert not re.search(r"https?://", page)
    assert "&lt;img src=x onerror=alert(2)&gt; {{ 7 * 7 }}" in page
    assert "prefers-color-scheme: dark" in page
    assert bars(page, "drop")
