from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.data.versions import listing, show_versions
from terminus.errors import UserError

from .conftest import noise, save


def test_every_version_is_listed_and_can_be_read_again(images: Path, config: Callable[..., DataConfig]):
    data = config(images)
    (images / "bad.png").write_text("no image")
    prepare(data, None, Console(file=StringIO()))
    store = Store(data.store)
    first = store.images.version()
    rows = store.images.at(first).scan(["key", "captions"]).to_pylist()
    save(images / "new.png", Image.fromarray(noise(70, 100, 100)))
    prepare(data, None, Console(file=StringIO()))

    found = listing(store)
    table, rejected = found.tables
    assert [(version.number, version.rows) for version in table.versions] == [(1, 8), (2, 9)]
    assert table.versions[1].size > table.versions[0].size > 0
    assert (table.sources, sum(table.parts.values())) == ({"folder": 9}, 9)
    assert table.transforms == {data.transform.spec: 9}
    assert rejected.parts == {"no caption": 1}
    assert store.images.at(first).scan(["key", "captions"]).to_pylist() == rows
    assert json.loads(found.json)["tables"][0]["versions"][1]["rows"] == 9

    metadata = StringIO()
    show_versions(found, Console(file=metadata, width=100))
    assert "folder 9" in metadata.getvalue()
    assert "+1" in metadata.getvalue()


def test_an_empty_place(tmp_path: Path):
    with pytest.raises(UserError, match="no prepared data here"):
        listing(Store(str(tmp_path)))
