"""Tables as LAION, COYO, DataComp and img2dataset write them."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terminus.conditioning import Size
from terminus.data.caption import Caption
from terminus.data.record import Candidate, SourceMetadata
from terminus.data.sources.laion import LaionSource
from terminus.errors import UserError

from ..conftest import noise

LAION: dict[str, list[object]] = {
    "URL": ["http://x.test/1.jpg"], "TEXT": ["  A  photo\n of a cat "], "WIDTH": [640.0], "HEIGHT": [480],
    "similarity": [0.33], "hash": [-42], "punsafe": [0.02], "pwatermark": [0.9], "AESTHETIC_SCORE": [6.5],
    "LICENSE": ["?"], "NSFW": ["NSFW"],
}  # fmt: skip
COYO: dict[str, list[object]] = {
    "id": [7], "url": ["http://x.test/1.jpg"], "text": ["A photo of a cat"], "width": [640], "height": [480],
    "clip_similarity_vitb32": [0.1], "clip_similarity_vitl14": [0.33], "nsfw_score_opennsfw2": [0.02],
    "watermark_score": [0.9], "aesthetic_score_laion_v2": [6.5],
}  # fmt: skip
DATACOMP: dict[str, list[object]] = {
    "uid": ["u"], "url": ["http://x.test/1.jpg"], "text": ["A photo of a cat"], "original_width": [640],
    "original_height": [480], "clip_l14_similarity_score": [0.33], "sha256": ["AB" * 32],
}  # fmt: skip
SAID = SourceMetadata(watermark=0.9, unsafe=0.02, aesthetic=6.5, similarity=0.33, size=Size(480, 640))


def write(path: Path, columns: dict[str, list[object]] | pa.Table) -> Path:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


def source(path: Path | str, **columns: str) -> LaionSource:
    return LaionSource.model_validate({"kind": "laion", "name": "web", "path": str(path), "columns": columns})


def one(tmp_path: Path, changes: dict[str, object], **columns: str) -> Candidate:
    row = LAION | {key: [value] for key, value in changes.items()}
    (found,) = source(write(tmp_path / "x.parquet", row), **columns).candidates(0)
    return found


def test_the_columns_of_each_family_are_known(tmp_path: Path):
    for name, columns in (("laion", LAION), ("coyo", COYO), ("datacomp", DATACOMP)):
        (found,) = source(write(tmp_path / f"{name}.parquet", columns)).candidates(0)
        assert found.source_id == f"{name}.parquet#0"
        assert found.url == "http://x.test/1.jpg"
        assert found.captions[0].text == "A photo of a cat"
        expected = SourceMetadata(similarity=0.33, size=SAID.size) if name == "datacomp" else SAID
        assert found.metadata == expected
        assert found.checksum == ("sha256:" + "ab" * 32 if name == "datacomp" else None)
        assert (found.licence, found.problem, found.stamp) == (None, None, "")


@pytest.mark.parametrize(
    ("changes", "unsafe"),
    [
        ({}, 0.02), ({"punsafe": None}, 1.0), ({"punsafe": math.nan}, 1.0), ({"punsafe": None, "NSFW": "UNSURE"}, 0.5),
        ({"punsafe": None, "NSFW": "unlikely"}, 0.0), ({"punsafe": None, "NSFW": None}, None),
        ({"punsafe": None, "NSFW": "None"}, None), ({"punsafe": None, "NSFW": True}, 1.0),
        ({"punsafe": None, "NSFW": 0.25}, 0.25),
    ],
)  # fmt: skip
def test_what_is_not_safe_for_work(tmp_path: Path, changes: dict[str, object], unsafe: float | None):
    assert one(tmp_path, changes).metadata.unsafe == unsafe


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"WIDTH": "wide"}, "WIDTH is 'wide', not a number"),
        ({"punsafe": 1.5}, "punsafe is 1.5, not within 0 and 1"),
        ({"pwatermark": -1}, "pwatermark is -1, not within 0 and 1"),
        ({"similarity": "x"}, "similarity is 'x', not a number"),
        ({"NSFW": "maybe", "punsafe": None}, "NSFW is 'maybe', not a number"),
        ({"TEXT": b"bytes"}, "TEXT is b'bytes', not text"),
        ({"URL": True}, "URL is True, not text"),
        ({"md5": "xyz"}, "md5 is not 32 hexadecimal digits"),
        ({"LICENSE": [1]}, "LICENSE is [1], not text"),
    ],
)
def test_a_value_of_the_wrong_type_drops_its_row(tmp_path: Path, changes: dict[str, object], detail: str):
    problem = one(tmp_path, changes).problem
    assert problem is not None
    assert (problem.reason, problem.detail) == ("value of the wrong type", detail)


def test_nothing_said_is_none_and_not_zero(tmp_path: Path):
    nothing = dict.fromkeys(("WIDTH", "similarity", "punsafe", "pwatermark", "AESTHETIC_SCORE", "LICENSE", "NSFW"))
    assert one(tmp_path, dict(nothing)).metadata == SourceMetadata()
    assert one(tmp_path, {"WIDTH": 0, "HEIGHT": -1}).metadata.size is None
    assert one(tmp_path, {"TEXT": None}).captions == ()  # curation then says "no caption"
    for missing in (None, "", "  "):
        problem = one(tmp_path, {"URL": missing}).problem
        assert problem is not None
        assert problem.reason == "row names no image"


def test_an_unchanged_row_stays_in_its_state_even_if_the_file_is_written_again(tmp_path: Path):
    before = one(tmp_path, {})
    assert one(tmp_path, {}).state((0, 0, 0)) == before.state((0, 0, 0))
    for changes in ({"URL": "http://x.test/2.jpg"}, {"TEXT": "a dog"}, {"punsafe": 0.5}, {"md5": "0" * 32}):
        assert one(tmp_path, dict(changes)).state((0, 0, 0)) != before.state((0, 0, 0))


def test_columns_chosen_by_the_recipe(tmp_path: Path):
    found = one(tmp_path, {"alt": "better", "label": "Cat, PET ,cat"}, caption="ALT", id="hash", tags="label")
    assert found.captions == (Caption("better", "alt"),)
    assert found.source_id == "-42"
    assert found.metadata.tags == ("cat", "pet")
    with pytest.raises(UserError, match=r"no column for missing.*URL, TEXT"):
        one(tmp_path, {}, caption="missing")
    with pytest.raises(ValueError, match=r"columns\.colour"):
        source(tmp_path, colour="x")


def test_images_inside_the_table(tmp_path: Path):
    data = noise(0, 8, 8).tobytes()
    struct = pa.array([{"bytes": data, "path": "../../etc/passwd"}, {"bytes": None, "path": "/etc/passwd"}])
    texts = pa.array(["a", "b"])
    write(tmp_path / "0.parquet", pa.table({"image": struct, "caption": texts}))
    write(tmp_path / "1.parquet", pa.table({"jpg": pa.array([data, b""], pa.binary()), "caption": texts}))
    write(tmp_path / "2.parquet", pa.table({"image": ["http://x.test/1.jpg", "/etc/passwd"], "caption": texts}))
    found = list(source(tmp_path).candidates(0))
    assert [(one.data, one.url, one.path) for one in found[::2]] == [
        (data, None, None), (data, None, None), (None, "http://x.test/1.jpg", None),
    ]  # fmt: skip
    reasons = [one.problem.reason for one in found[1::2] if one.problem]
    assert reasons == ["row names no image", "row names no image", "value of the wrong type"]


def test_wrong_tables_are_known_before_any_work(tmp_path: Path):
    write(tmp_path / "x.parquet", {"photo": ["u"]})
    with pytest.raises(
        UserError, match=r"no column for url or image, caption.*are: photo.*columns: {caption: alt_text}"
    ):
        source(tmp_path).count()


def test_the_same_candidates_in_an_object_store(bucket: Path):
    for index, language in enumerate(("en", "de")):
        (bucket / "set" / f"language={language}").mkdir(parents=True)
        write(bucket / "set" / f"language={language}" / f"{index}.parquet", LAION)
    uri = f"s3://{bucket.name}/set"
    assert source(uri).count() == 2
    assert list(source(uri).candidates(0)) == list(source(bucket / "set").candidates(0))
    assert [one.source_id for one in source(uri).candidates(0)] == [
        "language=de/1.parquet#0",
        "language=en/0.parquet#0",
    ]
