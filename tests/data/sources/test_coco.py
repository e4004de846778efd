"""COCO's captions: good, broken and hostile files."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from terminus.conditioning import Size
from terminus.data.caption import Caption
from terminus.data.record import Candidate, SourceMetadata
from terminus.data.sources import coco
from terminus.data.sources.coco import CocoSource
from terminus.errors import UserError

LICENCES = [
    {
        "url": "http://creativecommons.org/licenses/by-nc-sa/2.0/",
        "id": 1,
        "name": "Attribution-NonCommercial-ShareAlike",
    },
    {"url": "http://flickr.com/commons/usage/", "id": 7, "name": "No known copyright restrictions"},
]


def image(number: object, **changes: object) -> dict[str, object]:
    name = f"{number:012}.jpg" if isinstance(number, int) else f"{number}.jpg"
    plain = {
        "license": 1, "file_name": name, "coco_url": f"http://images.test/{name}", "height": 480, "width": 640,
        "flickr_url": f"http://flickr.test/{name}", "id": number,
    }  # fmt: skip
    return plain | changes


def captions(*pairs: tuple[object, object]) -> list[dict[str, object]]:
    return [{"image_id": key, "id": index, "caption": text} for index, (key, text) in enumerate(pairs)]


def write(folder: Path, images: list[object], annotations: list[object], **more: object) -> Path:
    path = folder / "captions.json"
    path.write_text(
        json.dumps({"info": {"year": 2017}, "licenses": LICENCES, "images": images, "annotations": annotations, **more})
    )
    return path


def source(path: Path | str, images: Path | str | None = None) -> CocoSource:
    return CocoSource(kind="coco", name="coco", path=str(path), images=None if images is None else str(images))


def offered(path: Path | str, images: Path | str | None = None) -> dict[str, Candidate]:
    found = list(source(path, images).candidates(0))
    assert [one.source_id for one in found] == [one.source_id for one in source(path, images).candidates(0)]
    assert len({one.source_id for one in found}) == len(found)
    return {one.source_id: one for one in found}


def reasons(found: dict[str, Candidate]) -> dict[str, str | None]:
    return {key: one.problem.reason if one.problem else None for key, one in found.items()}


def test_images_have_all_their_captions_in_order(tmp_path: Path):
    notes = captions((2, "two a"), (1, " one\n a "), (2, "two b"), (1, "one b"), (1, "one b"))
    path = write(tmp_path, [image(1), image(2, license=7), image(3, license=99)], notes)
    found = offered(path)
    assert list(found) == ["1", "2", "3"]
    assert found["1"] == Candidate(
        "coco", "1", (Caption("one a", "coco"), Caption("one b", "coco")), url="http://images.test/000000000001.jpg",
        metadata=SourceMetadata(size=Size(480, 640)), licence="CC-BY-NC-SA-2.0",
    )  # fmt: skip
    assert [caption.text for caption in found["2"].captions] == ["two a", "two b"]
    assert (found["2"].licence, found["3"].licence) == ("No known copyright restrictions", None)
    assert found["3"].captions == ()  # curation then says "no caption"
    assert source(path).count() == 3


def test_images_of_a_folder(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000000000001.jpg").write_bytes(b"image")
    path = write(tmp_path, [image(1), image(2)], captions((1, "a"), (2, "b")))
    found = offered(path, tmp_path / "train")
    assert (found["1"].path, found["1"].root) == (tmp_path / "train" / "000000000001.jpg", tmp_path / "train")
    assert found["1"].url is None
    assert reasons(found) == {"1": None, "2": "image is missing"}
    before = found["1"].state((0, 0, 0))
    os.utime(tmp_path / "train" / "000000000001.jpg", (1, 1))
    assert offered(path, tmp_path / "train")["1"].state((0, 0, 0)) != before
    with pytest.raises(UserError, match="there is no such folder"):
        source(path, tmp_path / "nowhere").count()


@pytest.mark.parametrize(
    "name",
    ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "\\\\host\\share\\x.jpg", "C:\\x.jpg", "c:x.jpg", "x\0.jpg", "\ud800"],
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str):
    path = write(tmp_path, [image(1, file_name=name), image(2)], captions((1, "a"), (2, "b")))
    for folder in (tmp_path, f"s3://bucket/{tmp_path.name}"):
        chosen = source(path, folder)._image(0, image(1, file_name=name), coco._Notes())
        assert chosen.problem is not None
        assert chosen.problem.reason == "name leads out of the folder"
        assert chosen.problem.detail.isprintable()


def test_what_is_wrong_with_an_entry_costs_that_entry(tmp_path: Path):
    images = [
        image(1), image(1, file_name="again.jpg"), image("2"), image(3.0), "text", {"file_name": "x"}, image(True),
        image(4, coco_url=None), image(5, coco_url=None, flickr_url=7), image(6, height="480", license=[1]),
    ]  # fmt: skip
    notes: list[object] = [
        *captions((1, "a"), (2, "b"), ("3", "c"), (4, "d"), (5, "e"), (6, "f"), (77, "orphan"), (77, "second")),
        {"image_id": 1}, {"caption": "x"}, None, {"image_id": 1, "caption": 5}, {"image_id": 1, "caption": "\ud800"},
        {"image_id": 1, "caption": "x" * 65537}, {"image_id": 1, "caption": " \x00\t"},
    ]  # fmt: skip
    found = offered(write(tmp_path, images, notes))
    bad = {f"annotations[{index}]": "caption cannot be read" for index in range(8, 14)}
    assert reasons(found) == bad | {
        "1": None, "1 (images[1])": "two images have this id", "2": None, "3": None,
        "images[4]": "image entry cannot be read", "images[5]": "image entry cannot be read",
        "images[6]": "image entry cannot be read", "4": None, "5": "row names no image", "6": None,
        "annotations of 77": "caption without image",
    }  # fmt: skip
    assert [caption.text for one in "123456" for caption in found[one].captions] == list("abcdef")
    assert found["4"].url == "http://flickr.test/000000000004.jpg"
    assert (found["6"].metadata, found["6"].licence) == (SourceMetadata(), None)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "ends too early"), (b"[]", "no '{'"), (b'{"images": [', "ends too early"),
        (b"{}", "no images and no annotations"),
        (b'{"images": [{"id": 1}]}', "no annotations"), (b'{"images": [1 2]}', "no ','"), (b'{"images" 1}', "no ':'"),
        ('{"images": []}'.encode("utf-16"), "decode"), (b'{"images": [' + b"[" * 200_000, "recursion|Expecting|ends"),
        (b'{"annotations": [{"image_id": 1, "bbox": [1]}], "images": [{"id": 1}]}', "are no captions"),
        (b'{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "cut', "Unterminated string"),
        (b"\x89PNG\r\n", "decode"),
    ],
)  # fmt: skip
def test_files_that_are_no_captions_are_said_before_any_work(tmp_path: Path, content: bytes, what: str):
    (tmp_path / "x.json").write_bytes(content)
    for call in (CocoSource.count, lambda one: list(one.candidates(0))):
        with pytest.raises(UserError, match=rf"data\.sources \(coco\): .*({what}).*captions_train2017"):
            call(source(tmp_path / "x.json"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=60)
@example({"a": [3.5e-07, -1, "x"], "b": 1e30}, 1, False)
@given(st.dictionaries(st.text(), json_values | st.lists(json_values), max_size=4), st.integers(1, 9), st.booleans())
def test_a_stream_gives_what_the_whole_file_gives(document: dict[str, object], window: int, spaced: bool):
    text = json.dumps(document, indent=1 if spaced else None, ensure_ascii=spaced)

    class Few:
        data = text.encode()

        def read(self, size: int) -> bytes:
            taken, self.data = self.data[:window], self.data[window:]
            return taken

    expected = [
        (key, at, one)
        for key, value in json.loads(text).items()
        if isinstance(value, list)
        for at, one in enumerate(value)
    ]
    assert list(coco._Json(Few()).entries()) == expected


def test_memory_is_that_of_the_captions_and_not_of_the_file(tmp_path: Path):
    count = 400
    notes = captions(*((n % count, f"caption {n} of an image") for n in range(5 * count)))
    path = write(tmp_path, [image(n, padding="x" * 20_000) for n in range(count)], notes)
    assert path.stat().st_size > 7 << 20
    tracemalloc.start()
    assert sum(len(one.captions) for one in source(path).candidates(0)) == 5 * count
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < 6 << 20


def test_an_object_store_holds_captions_and_images(bucket: Path):
    path = write(bucket, [image(1), image(2), image(3, file_name="../x.jpg")], captions((1, "a"), (2, "b"), (3, "c")))
    (bucket / "train").mkdir()
    (bucket / "train" / "000000000001.jpg").write_bytes(b"image")
    found = offered(f"s3://{bucket.name}/{path.name}", f"s3://{bucket.name}/train/")
    assert (found["1"].data, found["1"].url, found["1"].problem) == (b"image", None, None)
    assert reasons(found) == {"1": None, "2": "cannot be read", "3": "name leads out of the folder"}
