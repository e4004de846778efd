"""The reader of archives against archives of every kind, most of them hostile."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from terminus.data import tar
from terminus.data.tar import TarSample

KEEP = {"jpg": 1000, "txt": 100}


def archive(*members: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A well-formed archive; a `TarInfo` is a member without content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as writer:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                writer.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            writer.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def special(kind: bytes, name: str = "b.jpg", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """One block with any size field and a right checksum."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[:100], block[124:136], block[156:157] = name.ljust(100, b"\0"), size.ljust(12, b"\0"), kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", b"%o" % len(records), kind) + records.ljust(-(-len(records) // 512) * 512, b"\0")


def read(data: bytes, tmp_path: Path) -> list[TarSample]:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pa.OSFile(str(path)) as file:
        return list(tar.samples(file, lambda ending: KEEP.get(ending, 0)))


GOOD = [("a.jpg", b"A" * 700), ("a.txt", b"one"), ("b.jpg", b"B"), ("b.txt", b"two")]
READ = [("a", {"jpg": b"A" * 700, "txt": b"one"}), ("b", {"jpg": b"B", "txt": b"two"})]


def plain(samples: list[TarSample]) -> list[tuple[str, dict[str, bytes]]]:
    assert [sample.problem for sample in samples] == [None] * len(samples)
    return [(sample.key, sample.fields) for sample in samples]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_reads_every_format(format: int, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    long = "folder/" * 30 + "x" * 99 if format != tarfile.USTAR_FORMAT else "f/" * 60 + "x" * 90
    members = [*GOOD, (f"{long}.jpg", b"L"), ("é/ü.JPG", b"U"), ("é/ü.b.txt", b"-")]
    expected = [*READ, (long, {"jpg": b"L"}), ("é/ü", {"jpg": b"U"})]
    if format == tarfile.GNU_FORMAT:
        members.append((f"{'y' * 200}.jpg", b"Y"))
        expected.append(("y" * 200, {"jpg": b"Y"}))
    assert plain(read(pack(archive(*members, format=format)), tmp_path)) == expected


def test_the_key_ends_at_the_first_dot_of_the_last_part(tmp_path: Path) -> None:
    names = ["v1.0/cat.0.jpg", "./v1.0/dog.jpg", "._cat.jpg", "__MACOSX/x.jpg", ".git/x.jpg", "README", "x."]
    samples = read(archive(*[(name, b"x") for name in names]), tmp_path)
    assert plain(samples) == [("v1.0/cat", {}), ("v1.0/dog", {"jpg": b"x"})]


def test_archives_behind_each_other_are_all_read(tmp_path: Path) -> None:
    assert plain(read(archive(*GOOD) + archive(("c.jpg", b"C")), tmp_path)) == [*READ, ("c", {"jpg": b"C"})]


def test_an_empty_archive_is_no_samples(tmp_path: Path) -> None:
    assert read(archive(), tmp_path) == []


A, B = archive(*GOOD[:2])[:2560], archive(*GOOD[2:])
ATTACKS = [
    ("leads upwards", archive(("../../b.jpg", b"x")), "unsafe name"),
    ("leads upwards later", archive(("a/../../b.jpg", b"x")), "unsafe name"),
    ("absolute", archive(("/etc/b.jpg", b"x")), "unsafe name"),
    ("a drive", archive(("C:\\b.jpg", b"x")), "unsafe name"),
    ("a drive without backslash", archive(("C:/b.jpg", b"x")), "unsafe name"),
    ("NUL in a PAX name", pax(b"17 path=b\0/x.jpg\n") + header(b"y", b"0") + bytes(1024), "unsafe name"),
    ("symbolic link", archive(special(tarfile.SYMTYPE)), "not a regular file"),
    ("hard link", archive(special(tarfile.LNKTYPE)), "not a regular file"),
    ("character device", archive(special(tarfile.CHRTYPE)), "not a regular file"),
    ("block device", archive(special(tarfile.BLKTYPE)), "not a regular file"),
    ("FIFO", archive(special(tarfile.FIFOTYPE)), "not a regular file"),
    ("unknown type", header(b"b.jpg", b"3", b"Z") + bytes(1536), "not a regular file"),
    ("member too large", archive(("b.jpg", b"x" * 1001)), "file too large"),
    ("member twice", archive(("b.jpg", b"x"), ("b.jpg", b"y")), "member occurs twice"),
    ("65 members", archive(*[(f"b.{i}", b"") for i in range(65)]), "too many members"),
]
BROKEN = [
    ("a size of 2^40", header(b"b.jpg", b"\x80" + (1 << 40).to_bytes(11, "big")), "truncated archive"),
    ("a size of 2^87", header(b"b.bin", b"\x80" + b"\xff" * 11), "truncated archive"),
    ("a negative size", header(b"b.jpg", b"\xff" * 12), "damaged archive"),
    ("a size that is no number", header(b"b.jpg", b"+77"), "damaged archive"),
    ("a PAX size of 2^60", pax(b"28 size=1152921504606846976\n") + header(b"b.jpg", b"1"), "truncated archive"),
    ("a negative PAX size", pax(b"11 size=-5\n") + header(b"b.jpg", b"1"), "damaged archive"),
    ("a PAX header of 8 GiB", header(b"p", b"77777777777", b"x"), "damaged archive"),
    ("a PAX record of length 0", pax(b"0 path=x\n") + header(b"b.jpg", b"0"), "damaged archive"),
    ("a PAX record beyond its header", pax(b"999 path=x\n") + header(b"b.jpg", b"0"), "damaged archive"),
    ("a long name of 1 MiB", header(b"n", b"4000000", b"L"), "damaged archive"),
    ("a name of 2 kB", pax(b"2013 path=" + b"n" * 2002 + b"\n") + header(b"b.jpg", b"0"), "damaged archive"),
    ("GNU sparse", header(b"b.jpg", b"0", b"S"), "damaged archive"),
    ("PAX sparse", pax(b"22 GNU.sparse.major=1\n") + header(b"b.jpg", b"0"), "damaged archive"),
    ("2,000 headers in a chain", pax(b"10 path=x\n") * 2000, "truncated archive"),
    ("garbage", b"\x07" * 1024, "damaged archive"),
    ("a wrong checksum", b"c" + B[1:], "damaged archive"),
    ("a link that claims content", header(b"b.jpg", b"77777777777", b"2"), "truncated archive"),
    ("nothing", b"", "truncated archive"),
    ("half a header", b"\0" * 100, "truncated archive"),
]


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_a_bad_member_costs_its_sample(data: bytes, reason: str, tmp_path: Path) -> None:
    first, *bad = read(A + data, tmp_path)
    assert (first.key, first.fields, first.problem) == (*READ[0], None)
    assert bad
    assert bad[0].problem is not None
    assert bad[0].problem.reason == reason
    assert bad[0].fields == {}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_damage_keeps_what_came_before(
    data: bytes, reason: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    before = archive(*GOOD[:2], ("done.jpg", b"x"))[:3584]
    tracemalloc.start()
    samples = read(pack(before + data), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert (samples[0].key, samples[0].fields, samples[0].problem) == (*READ[0], None)
    assert samples[-1].key == ""
    assert samples[-1].problem is not None
    claims = {"a size of 2^40", "a size of 2^87", "a PAX size of 2^60"} & {row[0] for row in BROKEN if row[1] == data}
    assert samples[-1].problem.reason == ("archive too large" if claims and pack is gzip.compress else reason)


def test_cut_anywhere_it_never_gives_half_a_member(tmp_path: Path) -> None:
    whole = archive(*GOOD, format=tarfile.USTAR_FORMAT)[: 512 * 9 + 1024]
    for length in itertools.chain(range(0, len(whole) - 512, 512), range(300, len(whole) - 512, 509)):
        samples = read(whole[:length], tmp_path)
        used = [(sample.key, sample.fields) for sample in samples if sample.problem is None]
        assert used == READ[: len(used)]
        if length < 512 * 9:
            assert samples[-1].problem is not None
            assert samples[-1].problem.reason == "truncated archive"


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_cut_compressed_archives_are_damaged(method: str, tmp_path: Path) -> None:
    noise = os.urandom(900)
    whole = (
        pa.compress(archive(*GOOD, ("c.jpg", noise)), method, asbytes=True)
        if method == "zstd"
        else gzip.compress(archive(*GOOD, ("c.jpg", noise)))
    )
    for length in range(8, len(whole) - 1, 37):
        samples = read(whole[:length], tmp_path)
        assert samples[-1].problem is not None, length
        assert [sample.fields for sample in samples if sample.problem is None] == [
            fields for _, fields in READ[: sum(sample.problem is None for sample in samples)]
        ]


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_a_bomb_is_left_before_it_costs_anything(method: str, tmp_path: Path) -> None:
    zeros = bytes(16 << 20)
    path = tmp_path / "x.tar"
    with open(path, "wb") as raw, pa.CompressedOutputStream(raw, method) as file:
        file.write(A + header(b"b.bin", b"%o" % (100 << 30)))
        for _ in range(12):
            file.write(zeros)
    with pa.OSFile(str(path)) as file:
        samples = list(tar.samples(file, lambda ending: KEEP.get(ending, 0)))
    assert [sample.problem and sample.problem.reason for sample in samples] == [None, *["archive too large"] * 2]


def test_end_blocks_without_end_are_bounded_too(tmp_path: Path) -> None:
    with open(tmp_path / "x.tar", "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as file:
        for _ in range(8):
            file.write(bytes(16 << 20))
    with pa.OSFile(str(tmp_path / "x.tar")) as file:
        (rest,) = tar.samples(file, lambda _: 1)
    assert rest.problem is not None
    assert rest.problem.reason == "archive too large"


def test_what_is_not_wanted_is_neither_read_nor_judged(tmp_path: Path) -> None:
    evil = [("b.pkl", b"cos\nsystem\n"), ("b.pyd", b"x" * 5000), special(tarfile.SYMTYPE, "b.bin")]
    assert plain(read(archive(*evil, ("b.jpg", b"B")), tmp_path)) == [("b", {"jpg": b"B"})]


def test_members_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBERS", 3)
    samples = read(archive(*GOOD), tmp_path)
    assert [sample.problem and sample.problem.reason for sample in samples] == [None, *["archive too large"] * 2]
