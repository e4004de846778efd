"""Local folders and an object store on loopback, read in the same way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from terminus.data import storage
from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.errors import UserError

from .conftest import object_server

TREE = ("b.parquet", "a.PARQUET", "year=2024/part-0.parquet", "year=2023/é x%20?.parquet", "note.txt")
HIDDEN = ("_temporary/0.parquet", ".cache/1.parquet", "year=2023/_half.parquet", "year=2023/.hidden.parquet")
LISTED = ["a.PARQUET", "b.parquet", "year=2023/é x%20?.parquet", "year=2024/part-0.parquet"]


def plant(folder: Path) -> None:
    for name in (*TREE, *HIDDEN):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder, and the name of the same place."""
    if request.param == "local":
        return tmp_path, str(tmp_path)
    bucket: Path = request.getfixturevalue("bucket")
    return bucket, f"s3://{bucket.name}"


def test_lists_whole_trees_sorted_without_what_others_keep_for_themselves(place: tuple[Path, str]) -> None:
    folder, uri = place
    plant(folder / "data")
    for root in (f"{uri}/data", f"{uri}/data/"):
        assert storage.files(root, (".parquet",)) == [f"{uri}/data/{name}" for name in LISTED]
    assert storage.files(f"{uri}/data/note.txt", (".txt",)) == [f"{uri}/data/note.txt"]
    assert storage.files(f"{uri}/data", (".tar",)) == []


def test_reads_any_part(place: tuple[Path, str]) -> None:
    folder, uri = place
    plant(folder / "data")
    for name in LISTED:
        with storage.open_input(f"{uri}/data/{name}") as file:
            file.seek(2)
            assert file.read() == name.encode()[2:]
        assert storage.size(f"{uri}/data/{name}") == len(name.encode())


def test_the_stamp_changes_with_the_file_and_only_with_it(place: tuple[Path, str]) -> None:
    folder, uri = place
    (folder / "x.tar").write_bytes(b"one")
    before = storage.stamp(f"{uri}/x.tar")
    assert storage.stamp(f"{uri}/x.tar") == before
    (folder / "x.tar").write_bytes(b"two")
    assert storage.stamp(f"{uri}/x.tar") != before


@pytest.mark.parametrize(
    "call", [storage.open_input, storage.size, storage.stamp, lambda uri: storage.files(uri, ("",))]
)
def test_what_is_not_there_is_one_sentence(place: tuple[Path, str], call: Callable[[str], object]) -> None:
    _, uri = place
    with pytest.raises(UserError, match=r"nowhere: there is nothing under this name|cannot be read") as caught:
        call(f"{uri}/nowhere")
    assert "\n" not in str(caught.value)
    assert "errno" not in str(caught.value).lower()


def test_an_account_without_rights_is_said_and_a_new_one_works_at_once(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "x.tar").write_bytes(b"one")
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        with pytest.raises(UserError, match=r"cannot be read .*The account in the environment"):
            storage.files(f"s3://{bucket.name}", (".tar",))
    assert storage.files(f"s3://{bucket.name}", (".tar",)) == [f"s3://{bucket.name}/x.tar"]


def test_a_public_bucket_is_read_without_an_account(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")  # the account of the environment would be let in
    (bucket / "x.tar").write_bytes(b"one")
    with pytest.raises(UserError, match=r"cannot be read \(UNKNOWN: No response body"):
        storage.files(f"s3://{bucket.name}", (".tar",))
    (tmp_path / "public" / "open").mkdir(parents=True)
    (tmp_path / "public" / "open" / "x.tar").write_bytes(b"two")
    with object_server(tmp_path / "public", account=None) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert storage.files("s3://open", (".tar",)) == ["s3://open/x.tar"]
        with storage.open_input("s3://open/x.tar") as file:
            assert file.read() == b"two"


def test_a_bucket_that_is_missing(bucket: Path) -> None:
    with pytest.raises(UserError, match="nothing under this name in this bucket"):
        storage.files(f"s3://{bucket.name}-other/x", ("",))
    with pytest.raises(UserError, match="the bucket is missing"):
        storage.files("s3:///x", ("",))


@pytest.mark.parametrize("uri", ["http://127.0.0.1/x.tar", "file:///etc/passwd", "pipe://x", "hf://datasets/a/b"])
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read through \w+://"):
        storage.files(uri, ("",))


def test_links_that_stay_inside_are_read_and_those_that_leave_are_an_error(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret.tar").write_bytes(b"secret")
    (folder / "real.tar").write_bytes(b"real")
    (folder / "inside.tar").symlink_to("real.tar")
    (folder / "loop").symlink_to(".")
    (folder / "dangling.tar").symlink_to("gone.tar")
    assert storage.files(str(folder), (".tar",)) == [f"{folder}/inside.tar", f"{folder}/real.tar"]
    for name, target in (("leaves.tar", outside / "secret.tar"), ("leaves", outside)):
        (folder / name).symlink_to(target)
        with pytest.raises(UserError, match=f"{name}: this link leads out of the folder"):
            storage.files(str(folder), (".tar",))
        (folder / name).unlink()


def test_never_waits_for_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    assert storage.files(str(tmp_path), (".tar",)) == []
    with pytest.raises(UserError, match="not a regular file"):
        storage.open_input(str(tmp_path / "x.tar"))


def test_a_name_that_is_no_unicode_can_be_read(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar")
    Path(name).write_bytes(b"x")
    assert storage.files(str(tmp_path), (".tar",)) == [name]
    with storage.open_input(name) as file:
        assert file.read() == b"x"


def test_a_whole_store_in_a_bucket(bucket: Path, images: Path, config: Callable[..., DataConfig]) -> None:
    location = f"s3://{bucket.name}/store"
    first = prepare(config(images, store=location), None)
    assert first.added == 8
    assert Store(location).images.required().count == 8
    (images / "0.txt").write_text("another caption")
    (images / "1.jpg").unlink()
    second = prepare(config(images, store=location), None)
    assert (second.added, second.revised, second.kept) == (0, 1, 7)
    row = Store(location).images.required().scan(["captions", "data"], "source_id = '0.jpg'")
    assert row.column("captions").to_pylist() == [["another caption"]]
    assert row.column("data").to_pylist() == [(images / "0.jpg").read_bytes()]
    assert Store(location).images.at(1).count == 8
