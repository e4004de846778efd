"""Block-lists that grow: what they name leaves training, and is counted, whenever it was kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from terminus.data.encode import encode_latents
from terminus.data.sources.folder import FolderSource
from terminus.data.store import Store, Table
from terminus.data.waiting import waiting_cuts
from terminus.model.vae import VAE

from .conftest import noise, save
from .loopback import Answer, Loopback
from .test_curate import jpeg, quiet, rows, settings, table


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


def test_what_a_list_names_since_leaves_the_newest_version(tmp_path: Path, server: Loopback, vae: VAE):
    urls = [server.serve(f"/{index}.jpg", Answer(jpeg(index))) for index in range(6)]
    source = table(tmp_path / "rows.parquet", [{"URL": url, "TEXT": "an image"} for url in urls])
    data = settings(tmp_path, source)
    store = Store(data.store)
    assert quiet(data).kept == 6
    encode_latents(store, waiting_cuts(store, data.transform.spec, vae.id), vae, lambda _: None)
    versions = store.images.version(), store.latents.version()
    hits = server.hits.total()
    dhash = next(str(row["dhash"]) for row in rows(store.images) if row["url"] == urls[3])
    md5 = hashlib.md5(jpeg(2)).hexdigest()
    (tmp_path / "list.txt").write_text(f"{urls[1]}\n{md5}\n{dhash}\n")
    listed = settings(tmp_path, source, filters={"blocklists": (str(tmp_path / "list.txt"),)})
    report = quiet(listed)
    assert (report.taken_down, report.kept, report.dropped) == (3, 3, {"on a block-list": 3})
    assert report.holdings.images == 3
    assert {row["url"] for row in rows(store.images)} == {urls[0], urls[4], urls[5]}
    assert len(rows(store.latents)) == 3
    assert {row["image_key"] for row in rows(store.latents)} == {row["key"] for row in rows(store.images)}
    assert {row["url"]: row["detail"] for row in rows(store.rejected)} == {
        urls[1]: "its URL; kept until it was listed", urls[2]: f"md5 {md5}; kept until it was listed",
        urls[3]: f"dhash {dhash}; kept until it was listed",
    }  # fmt: skip
    assert server.hits.total() == hits, "nothing is fetched to be thrown away"
    again = quiet(listed)
    assert (again.taken_down, again.kept, again.dropped) == (0, 3, {"on a block-list": 3})
    assert store.images.at(versions[0]).count == store.latents.at(versions[1]).count == 6, "old versions keep them"
    # The rows that stay can be added to, and are found where they are said to be.
    assert len(waiting_cuts(store, data.transform.spec, vae.id)) == 0
    (tmp_path / "list.txt").write_text(f"{urls[1]}\n{md5}\n{dhash}\n{urls[0]}\n{urls[4]}\n{urls[5]}\n")
    folder = FolderSource(kind="folder", name="folder", path=tmp_path / "folder")
    save(tmp_path / "folder" / "a.png", Image.fromarray(noise(50, 80, 80)))
    last = quiet(settings(tmp_path, None, sources=(source, folder), filters=listed.filters.model_dump()))
    assert (last.taken_down, last.kept, last.holdings.images) == (3, 1, 1)
    assert [str(row["source_id"]) for row in rows(store.images)] == ["a.png"]


def test_a_kill_in_between_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for index in range(3):
        save(tmp_path / "folder" / f"{index}.png", Image.fromarray(noise(index, 80, 80)))
    source = FolderSource(kind="folder", name="folder", path=tmp_path / "folder")
    assert quiet(settings(tmp_path, source)).kept == 3
    listed = hashlib.sha256((tmp_path / "folder" / "1.png").read_bytes()).hexdigest()
    (tmp_path / "list.txt").write_text(listed)
    data = settings(tmp_path, source, filters={"blocklists": (str(tmp_path / "list.txt"),)})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Table, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            quiet(data)
    store = Store(data.store)
    assert (store.images.count(), store.rejected.count()) == (3, 1)
    report = quiet(data)
    assert (report.taken_down, report.kept) == (1, 2)
    assert (store.images.count(), store.rejected.count()) == (2, 1), "the reason is not written twice"


def test_what_is_no_longer_listed_comes_back(tmp_path: Path, server: Loopback):
    urls = [server.serve(f"/{index}.jpg", Answer(jpeg(index))) for index in range(6)]
    source = table(tmp_path / "rows.parquet", [{"URL": url, "TEXT": "an image"} for url in urls])
    sha256, md5 = hashlib.sha256(jpeg(1)).hexdigest(), hashlib.md5(jpeg(2)).hexdigest()
    place = tmp_path / "list.txt"
    entries = [urls[0], sha256, md5]
    place.write_text("\n".join(entries))
    data = settings(tmp_path, source, filters={"blocklists": (str(place),)})
    store = Store(data.store)
    assert quiet(data).dropped == {"on a block-list": 3}
    dhash = next(str(row["dhash"]) for row in rows(store.images) if row["url"] == urls[3])
    place.write_text("\n".join([*entries, dhash]))
    assert quiet(data).dropped == {"on a block-list": 4}, "three before they were kept, one afterwards"
    for left in ([sha256, md5, dhash], [md5, dhash], [dhash], []):
        place.write_text("\n".join(left))
        report = quiet(data)
        assert (report.added, report.dropped.get("on a block-list", 0)) == (1, len(left))
    assert {row["url"] for row in rows(store.images)} == set(urls)
    hits = server.hits.total()
    assert (quiet(data).added, server.hits.total()) == (0, hits)
    for entry in (hashlib.sha256(jpeg(5)).hexdigest(), urls[5], urls[5]):
        place.write_text(entry)
        assert quiet(data).dropped == {"on a block-list": 1}
    details = [str(row["detail"]) for row in rows(store.rejected) if row["url"] == urls[5]]
    assert [detail.split(" ")[0] for detail in details] == ["sha256", "its"], "another entry names it now"
