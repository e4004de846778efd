from __future__ import annotations

import hashlib
import json
import shutil
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from terminus.data import curate as curate_module
from terminus.data import worker
from terminus.data.curate import curate
from terminus.data.fetch import download
from terminus.data.fetch.download import Policy
from terminus.data.filters import Classifier
from terminus.data.prepare import PrepareReport, prepare
from terminus.data.record import Candidate
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.data.sources.laion import LaionSource
from terminus.data.store import Store, Table
from terminus.errors import UserError

from .children import Children
from .conftest import noise, save
from .loopback import Answer, Loopback, anywhere, redirect
from .test_classify import classifier

Build = Callable[..., DataConfig]
PATIENCE = Policy(timeout=2.0, retries=0)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as running:
        yield running


def jpeg(seed: int, height: int = 80, width: int = 100, camera: str | None = None, quality: int = 90) -> bytes:
    image, file = Image.fromarray(noise(seed, height, width)), BytesIO()
    exif = Image.Exif()
    if camera is not None:
        exif[0x0110] = camera
    image.save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


def table(path: Path, rows: list[dict[str, object]]) -> LaionSource:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return LaionSource(kind="laion", name="laion", path=str(path))


def settings(folder: Path, source: object, **changes: object) -> DataConfig:
    plain: dict[str, object] = {
        "store": str(folder / "store"), "sources": (source,), "resolution": 64, "download": PATIENCE,
        "validation_fraction": 0.3,
    }  # fmt: skip
    return DataConfig.model_validate(plain | changes)


def quiet(data: DataConfig) -> PrepareReport:
    report = prepare(data, None, Console(file=StringIO()), anywhere)
    assert report.candidates == report.kept + sum(report.dropped.values())
    for tally in report.sources.values():
        assert tally.candidates == tally.kept + sum(tally.dropped.values())
    assert sum(tally.candidates for tally in report.sources.values()) == report.candidates
    return report


def rows(table: Table, *columns: str) -> list[dict[str, object]]:
    view = table.latest()
    return view.scan(columns or table.schema.names).to_pylist() if view else []


def reasons(data: DataConfig) -> dict[str, str]:
    return {str(row["url"]).rpartition("/")[2]: str(row["reason"]) for row in rows(Store(data.store).rejected)}


def test_what_lies_in_the_web_is_prepared_to_the_end(tmp_path: Path, server: Loopback):
    good = jpeg(1)
    served = {
        "good.jpg": Answer(good), "same.jpg": Answer(good), "moved.jpg": redirect("/elsewhere.jpg"),
        "page.jpg": Answer(b"<html>sorry</html>"), "gone.jpg": Answer(status=404), "half.jpg": Answer(jpeg(2)[:900]),
        "noai.jpg": Answer(jpeg(3), headers=(("X-Robots-Tag", "noai"),)), "busy.jpg": Answer(status=503),
        "wrong.jpg": Answer(jpeg(4)), "right.jpg": Answer(jpeg(5)), "small.jpg": Answer(jpeg(6, 50, 50)),
        "claimed.jpg": Answer(jpeg(7)), "slow.jpg": Answer(jpeg(8), wait=30), "plain.jpg": Answer(jpeg(9)),
    }  # fmt: skip
    listed: list[dict[str, object]] = []
    for name, answer in served.items():
        server.serve(f"/{name}", answer)
        listed.append({"URL": server.url(f"/{name}"), "TEXT": f"an image called {name}", "md5": None, "WIDTH": None})
    server.serve("/elsewhere.jpg", Answer(jpeg(10)))
    by_name = {str(row["URL"]).rpartition("/")[2]: row for row in listed}
    by_name["wrong.jpg"]["md5"] = hashlib.md5(b"another file").hexdigest()
    by_name["right.jpg"]["md5"] = hashlib.md5(jpeg(5)).hexdigest()
    by_name["claimed.jpg"] |= {"WIDTH": 40, "HEIGHT": 40}
    by_name["plain.jpg"]["TEXT"] = None
    listed.append({"URL": "file:///etc/passwd", "TEXT": "no web address"})
    data = settings(tmp_path, table(tmp_path / "rows.parquet", listed))
    report = quiet(data)
    assert reasons(data) == {
        "same.jpg": "exact duplicate", "page.jpg": "not a JPEG, PNG or WebP image", "gone.jpg": "not found",
        "half.jpg": "truncated", "noai.jpg": "opted out", "busy.jpg": "server error", "wrong.jpg": "checksum differs",
        "small.jpg": "smaller than its bucket", "claimed.jpg": "smaller than its bucket", "slow.jpg": "timed out",
        "plain.jpg": "no caption", "passwd": "not a web address",
    }  # fmt: skip
    kept = {str(row["url"]).rpartition("/")[2]: row for row in rows(Store(data.store).images)}
    assert set(kept) == {"good.jpg", "moved.jpg", "right.jpg"}
    assert kept["good.jpg"]["data"] == good
    assert server.hits["/claimed.jpg"] == server.hits["/plain.jpg"] == 0, "never asked for"
    assert report.holdings.hosts == {"127.0.0.1": 3}


def test_only_what_may_pass_is_asked_for_again(tmp_path: Path, server: Loopback):
    server.serve("/good.jpg", Answer(jpeg(1)))
    server.serve("/noai.jpg", Answer(jpeg(2), headers=(("X-Robots-Tag", "noai"),)))
    server.serve("/gone.jpg", Answer(status=404))
    server.serve("/busy.jpg", Answer(status=503), Answer(status=503), Answer(jpeg(3)))
    names = ("good", "noai", "gone", "busy")
    listed: list[dict[str, object]] = [{"URL": server.url(f"/{name}.jpg"), "TEXT": name} for name in names]
    data = settings(tmp_path, table(tmp_path / "rows.parquet", listed))
    assert quiet(data).dropped == {"opted out": 1, "not found": 1, "server error": 1}
    store = Store(data.store)
    before = store.rejected.version()
    assert quiet(data).dropped == {"opted out": 1, "not found": 1, "server error": 1}
    assert store.rejected.version() == before, "the same reason is not written twice"
    third = quiet(data)
    assert (third.kept, third.added, third.dropped) == (2, 1, {"opted out": 1, "not found": 1})
    assert quiet(data).added == 0
    assert dict(server.hits) == {"/good.jpg": 1, "/noai.jpg": 1, "/gone.jpg": 1, "/busy.jpg": 3}


def test_private_addresses_are_not_connected_to_by_default(tmp_path: Path, server: Loopback):
    save(tmp_path / "folder" / "a.png", Image.fromarray(noise(1, 80, 80)))
    source = table(tmp_path / "rows.parquet", [{"URL": server.serve("/a.jpg", Answer(jpeg(1))), "TEXT": "a"}])
    folder = FolderSource(kind="folder", name="folder", path=tmp_path / "folder")
    data = settings(tmp_path, source, sources=(source, folder))
    report = prepare(data, None, Console(file=StringIO()))
    assert (report.kept, report.dropped) == (1, {"address not allowed": 1})
    assert server.connections == 0


def test_every_filter_counts_and_shows_what_it_drops(tmp_path: Path):
    def row(name: str, seed: int, **metadata: object) -> dict[str, object]:
        plain: dict[str, object] = {
            "image": jpeg(seed, camera="Box Brownie"), "TEXT": f"a fine image of {name}", "key": name,
            "pwatermark": 0.1, "punsafe": 0.0, "AESTHETIC_SCORE": 6.0, "similarity": 0.33, "tags": ["photo"],
        }  # fmt: skip
        return plain | metadata

    listed = [
        row("kept", 0), row("mark", 1, pwatermark=0.9), row("unsafe", 2, punsafe=0.8),
        row("ugly", 3, AESTHETIC_SCORE=2.0), row("unlike", 4, similarity=0.1), row("silent", 5, pwatermark=None),
        row("untagged", 6, tags=["drawing"]), row("barred", 7, tags=["photo", "logo"]), row("short", 8, TEXT="hm"),
        row("plain", 9, image=jpeg(9)), row("listed", 10), row("twin", 0, image=jpeg(0, camera="X", quality=80)),
    ]  # fmt: skip
    (tmp_path / "block.txt").write_text(hashlib.sha256(jpeg(10, camera="Box Brownie")).hexdigest())
    source = table(tmp_path / "rows.parquet", listed).model_copy(update={"columns": {"id": "key"}})
    filters = {
        "max_watermark": 0.5, "max_unsafe": 0.5, "min_aesthetic": 5.0, "min_similarity": 0.2, "duplicates": "near",
        "require_tags": ("photo",), "exclude_tags": ("logo",), "captions": {"min_words": 3},
        "require_exif_camera": True, "blocklists": (str(tmp_path / "block.txt"),),
    }  # fmt: skip
    data = settings(tmp_path, source, filters=filters)
    report = quiet(data)
    assert {str(row["source_id"]): row["reason"] for row in rows(Store(data.store).rejected)} == {
        "mark": "watermark", "unsafe": "unsafe content", "ugly": "low aesthetic score",
        "unlike": "text and image differ", "silent": "no watermark score", "untagged": "no required tag",
        "barred": "excluded tag", "short": "caption too short", "plain": "no camera in EXIF",
        "listed": "on a block-list", "twin": "near duplicate",
    }  # fmt: skip
    assert (report.kept, report.holdings.cameras) == (1, 1)
    found = report.holdings.histograms
    assert found["watermark score"].limits == (0.5,)
    assert (sum(found["watermark score"].counts), sum(found["watermark score"].dropped)) == (1, 10)
    assert sum(found["luminance (mean Rec.601 luma)"].dropped) == 3, "of what was decoded"
    [twin] = [row for row in rows(Store(data.store).rejected) if row["reason"] == "near duplicate"]
    assert twin["twin"] == rows(Store(data.store).images)[0]["key"]
    assert quiet(data).dropped == report.dropped


def test_a_source_may_have_filters_of_its_own(tmp_path: Path, images: Path):
    """In place of those of all; what compares images of all sources stays common, and the store keeps to its choice."""
    twice = tmp_path / "twice"
    shutil.copytree(images, twice)
    sources = tuple(FolderSource(kind="folder", name=name, path=path) for name, path in (("a", images), ("b", twice)))
    common: dict[str, object] = {"store": str(tmp_path / "store"), "sources": sources, "resolution": 64}
    none_of_all = {"filters": {"require_exif_camera": True}}
    data = DataConfig.model_validate(common | none_of_all | {"filters_of": {"b": {"max_luminance": 1.0}}})
    report = quiet(data)
    assert (report.kept, report.dropped) == (8, {"no camera in EXIF": 8})
    assert {row["source"] for row in rows(Store(data.store).images)} == {"b"}
    with pytest.raises(UserError, match="filters_of"):
        quiet(DataConfig.model_validate(common | none_of_all))
    for wrong, metadata in (({"c": {}}, "names c"), ({"a": {"duplicates": "near"}}, "all sources share")):
        with pytest.raises(ValueError, match=metadata):
            DataConfig.model_validate(common | {"filters_of": wrong})


def test_a_url_beside_the_bytes_is_recorded_and_judged_but_not_fetched(tmp_path: Path, server: Loopback):
    listed: list[dict[str, object]] = [
        {
            "URL": server.serve(f"/{name}.jpg", Answer(jpeg(9))),
            "image": jpeg(seed),
            "TEXT": name,
            "WIDTH": 5,
            "HEIGHT": 5,
        }
        for seed, name in enumerate(("good", "blocked"))
    ]
    (tmp_path / "list.txt").write_text(server.url("/blocked.jpg"))
    filters = {"blocklists": (str(tmp_path / "list.txt"),)}
    data = settings(tmp_path, table(tmp_path / "rows.parquet", listed), filters=filters)
    report = quiet(data)
    assert (report.kept, report.dropped) == (1, {"on a block-list": 1})
    [row] = rows(Store(data.store).images)
    assert (row["url"], row["data"]) == (server.url("/good.jpg"), jpeg(0))
    assert server.hits.total() == 0


def test_large_downloads_wait_for_each_other(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch):
    """Their bytes at any time stay within the budget, and the rows come in order all the same."""
    monkeypatch.setattr(worker, "DOWNLOADED_BYTES", 60_000)
    monkeypatch.setattr(curate_module, "DOWNLOADED_BYTES", 60_000)
    bodies = [jpeg(seed) + bytes(20_000 if seed % 3 else 0) for seed in range(24)]
    listed: list[dict[str, object]] = []
    for index, body in enumerate(bodies):
        url = server.serve(f"/{index}.jpg", Answer(body, wait=0.05 if index % 5 == 0 else 0.0))
        listed.append({"URL": url, "TEXT": f"image {index}"})
    held: list[int] = []
    real = download._fetch_all

    async def watched(*arguments: Any) -> list[Any]:
        found = await real(*arguments)
        held.append(arguments[3].bytes - min(purse.left for purse in download._purses.values()))
        return found

    monkeypatch.setattr(download, "_fetch_all", watched)
    data = settings(tmp_path, table(tmp_path / "rows.parquet", listed), filters={"max_file_bytes": 50_000})
    report = quiet(data)
    assert (report.kept, report.dropped) == (24, {})
    assert [row["captions"] for row in rows(Store(data.store).images)] == [[f"image {index}"] for index in range(24)]
    assert 30_000 < max(held) <= 60_000
    assert server.hits.total() < 24 * 4, "what did not fit is asked for again, and not much else"


def test_a_classifier_gives_the_scores_that_a_source_does_not(tmp_path: Path):
    model = classifier(tmp_path / "classifier")
    listed: list[dict[str, object]] = [
        {"image": jpeg(1), "TEXT": "scored", "pwatermark": 0.25}, {"image": jpeg(2), "TEXT": "not", "pwatermark": None},
    ]  # fmt: skip
    source = table(tmp_path / "rows.parquet", listed)
    judge = Classifier(score="watermark", model=str(model), labels=("marked", "clean", "stamped"))
    asked = {"max_watermark": 0.5, "classifiers": (judge.model_dump(),)}
    data = settings(tmp_path, source, filters=asked)
    report = quiet(data)
    assert (report.kept, report.dropped) == (1, {"watermark": 1}), "all labels together are certain"
    [row] = rows(Store(data.store).rejected)
    assert row["watermark"] == pytest.approx(1.0)
    wrong = Classifier(score="watermark", model=str(model), labels=("absent",)).model_dump()
    with pytest.raises(UserError, match="no class named absent"):
        quiet(settings(tmp_path, source, store=str(tmp_path / "other"), filters={"classifiers": (wrong,)}))
    assert not (tmp_path / "other").exists()


def test_what_is_offered_twice_in_one_run_counts_once(tmp_path: Path):
    listed: list[dict[str, object]] = [
        {"image": jpeg(1), "TEXT": "first", "key": "a"}, {"image": jpeg(1), "TEXT": "other", "key": "a"},
        {"image": jpeg(2), "TEXT": "third", "key": "a"}, {"image": jpeg(3), "TEXT": "fourth", "key": "b"},
    ]  # fmt: skip
    source = table(tmp_path / "rows.parquet", listed).model_copy(update={"columns": {"id": "key"}})
    data = settings(tmp_path, source)
    for added in (2, 0, 0):
        report = quiet(data)
        assert (report.kept, report.added, report.revised, report.dropped) == (2, added, 0, {"offered twice": 2})
    assert [row["captions"] for row in rows(Store(data.store).images, "captions")] == [["first"], ["fourth"]]


def test_the_books_balance_for_every_kind_of_source(tmp_path: Path, server: Loopback):
    """Good and bad of each kind, in one recipe; prepared, grown, prepared again, and once more."""
    folder, broken = tmp_path / "folder", b"no image"
    for seed in range(3):
        save(folder / f"{seed}.png", Image.fromarray(noise(seed, 80, 80)))
    save(folder / "mute.png", Image.fromarray(noise(3, 80, 80)), caption=None)
    images = [{"id": seed, "file_name": f"{seed}.jpg"} for seed in range(10, 14)]
    notes = [{"image_id": seed, "id": seed, "caption": f"image {seed}"} for seed in (10, 11, 12, 99)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": notes}))
    (tmp_path / "photos").mkdir()
    for seed, data in ((10, jpeg(10)), (11, broken), (13, jpeg(13))):
        (tmp_path / "photos" / f"{seed}.jpg").write_bytes(data)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.jpg", jpeg(20)), ("a.txt", b"one"), ("b.jpg", broken), ("b.txt", b"two")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    hub = [{"image": {"bytes": jpeg(30), "path": "x"}, "text": "a hub"}, {"image": {"bytes": broken}, "text": "bad"}]
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(hub), tmp_path / "hub" / "train-0.parquet")
    url = server.serve("/40.jpg", Answer(jpeg(40)))
    table(tmp_path / "mid.parquet", [{"url": url, "prompt": "a fox --ar 1:1"}, {"url": url + "x", "prompt": "a dog"}])
    laion = table(tmp_path / "laion.parquet", [{"URL": url + "y", "TEXT": "gone"}, {"URL": url, "TEXT": "again"}])
    sources = (
        {"kind": "folder", "name": "folder", "path": folder},
        {"kind": "embedded", "limit": 2, "backgrounds": 1},
        {"kind": "coco", "name": "coco", "path": str(tmp_path / "coco.json"), "images": str(tmp_path / "photos")},
        {"kind": "webdataset", "name": "tar", "path": str(tmp_path / "0.tar")},
        {"kind": "huggingface", "name": "hub", "path": str(tmp_path / "hub")},
        {"kind": "midjourney", "name": "mid", "path": str(tmp_path / "mid.parquet")},
        laion.model_dump(),
    )
    data = settings(tmp_path, None, sources=sources)
    first = quiet(data)
    found = {name: (tally.candidates, tally.kept) for name, tally in first.sources.items()}
    assert found == {
        "folder": (4, 3), "embedded": (2, 2), "coco": (5, 1), "tar": (2, 1), "hub": (2, 1), "mid": (2, 1),
        "laion": (2, 0),
    }  # fmt: skip
    assert first.sources["laion"].dropped == {"not found": 1, "exact duplicate": 1}
    save(folder / "00-new.png", Image.fromarray(noise(90, 80, 80)))
    for added in (1, 0):
        again = quiet(data)
        assert (again.added, again.kept, again.dropped) == (added, first.kept + 1, first.dropped)
    assert [row["source_id"] for row in rows(Store(data.store).images, "source_id")][-1] == "00-new.png"


def test_masks_must_fit(tmp_path: Path):
    def png(height: int, width: int) -> bytes:
        file = BytesIO()
        Image.fromarray(np.zeros((height, width), np.uint8)).save(file, "PNG")
        return file.getvalue()

    masks = {"fits": png(80, 100), "other": png(80, 99), "broken": b"no image"}

    class Masked(FolderSource):
        def candidates(self, seed: int) -> Iterator[Candidate]:
            from dataclasses import replace

            for candidate in super().candidates(seed):
                yield replace(candidate, mask=masks.get(Path(candidate.source_id).stem))

    for seed, name in enumerate((*masks, "none")):
        save(tmp_path / "folder" / f"{name}.png", Image.fromarray(noise(seed, 80, 100)))
    source = Masked(kind="folder", name="folder", path=tmp_path / "folder")
    data = settings(tmp_path, source).model_copy(update={"sources": (source,)})
    counts = curate(data, Store(data.store), lambda _: None)
    assert (counts.added, dict(counts.dropped)) == (2, {"mask cannot be used": 2})
    assert {row["source_id"]: row["mask"] for row in rows(Store(data.store).images)} == {
        "fits.png": masks["fits"], "none.png": None,
    }  # fmt: skip


def test_a_full_disk_is_one_paragraph_and_the_same_command_continues(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """A limit on the size of files stops writing as a full disk does."""
    for index in range(6):
        save(tmp_path / "folder" / f"{index}.png", Image.fromarray(noise(index, 200, 200)))
    data = settings(tmp_path, FolderSource(kind="folder", name="folder", path=tmp_path / "folder"))
    with Children() as children:  # after `capfd`, which is to read what it says
        assert children.run(data, group=2, largest=1000) == 2
    assert "make room" in capfd.readouterr().err
    assert Store(data.store).images.count() == 0
    assert quiet(data).kept == 6


def killed_again_and_again(folder: Path, server: Loopback, children: Children, count: int, kills: int) -> None:
    """All kinds of trouble, and kills at random moments; the end must be that of an undisturbed run."""
    generator = np.random.default_rng(kills)
    listed: list[dict[str, object]] = []
    for index in range(count):
        kind = index % 10
        body = jpeg(index if kind else index // 20, 70, 70)
        answer = Answer(status=404) if kind == 1 else Answer(body[:300]) if kind == 2 else Answer(body, wait=0.01)
        url = server.serve(f"/{index}.jpg", answer)
        listed.append({"URL": url, "TEXT": None if kind == 3 else f"image {index}", "WIDTH": 20 if kind == 4 else 70})
        listed[-1]["HEIGHT"] = 70
    source = table(folder / "rows.parquet", listed)
    # Nothing may time out on a busy machine: then the web itself would have answered otherwise.
    same = {"filters": {"duplicates": "near", "min_edge": 60}, "download": Policy(timeout=120.0)}
    straight = settings(folder, source, store=str(folder / "straight"), **same)
    killed = settings(folder, source, store=str(folder / "killed"), **same)
    assert children.run(straight, group=10) == 0
    final = Store(straight.store).images.count()
    seen: list[int] = []
    for share in generator.uniform(0.0, 2.0, kills):
        asked, pause = server.hits.total() + share * 0.7 * count / kills, generator.uniform(0.0, 0.1)

        def now(asked: float = asked, pause: float = pause) -> bool:
            if server.hits.total() < asked:
                return False
            time.sleep(pause)
            return True

        if children.run(killed, 10, kill_when=now) == -signal.SIGKILL:
            seen.append(Store(killed.store).images.count())
    assert children.run(killed, 10) == 0
    for name in ("images", "rejected"):
        assert rows(getattr(Store(killed.store), name)) == rows(getattr(Store(straight.store), name))
    assert seen == sorted(seen)
    assert any(0 < value < final for value in seen), f"no kill hit the work: {seen} of {final}"
    assert 0 < final < count


def test_three_kills_change_nothing(tmp_path: Path, server: Loopback, children: Children):
    killed_again_and_again(tmp_path, server, children, count=120, kills=3)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path, server: Loopback, children: Children):
    killed_again_and_again(tmp_path, server, children, count=600, kills=20)
