from __future__ import annotations

from pathlib import Path

import pytest

from terminus.data.blocklist import LONGEST_LINE, REASON, Blocklist
from terminus.errors import UserError


def listed(folder: Path, text: str) -> Blocklist:
    place = folder / "list.txt"
    place.write_text(text)
    return Blocklist([str(place)])


def test_addresses(tmp_path: Path):
    block = listed(tmp_path, "# removed\n\nexample.org   # all of it\nHTTPS://Other.net/A.jpg\n")
    for url in (
        "https://example.org/x",
        "http://img.Example.org:8080/y",
        "https://example.org./",
        "https://a.b.example.org",
    ):
        dropped = block.address(url)
        assert dropped is not None, url
        assert dropped.reason == REASON
    assert block.address("https://other.NET/A.jpg#part") is not None
    for url in ("https://notexample.org/x", "https://example.org.evil.com/", "https://other.net/a.jpg", "http://[", ""):
        assert block.address(url) is None, url


def test_content(tmp_path: Path):
    sha, md5, look = "ab" * 32, "CD" * 16, "0123456789abcdef"
    block = listed(tmp_path, f"{sha}\n{md5}\n{look}\n")
    assert block.content(sha, None, None) is not None
    assert block.content("00" * 32, md5.lower(), None) is not None
    assert block.content("00" * 32, "00" * 16, "0123456789abcde8") is not None, "three bits away"
    assert block.content("00" * 32, "00" * 16, "f123456789abcdef") is None, "four bits away"
    assert block.address("https://example.org") is None


def test_no_list_blocks_nothing():
    assert Blocklist([]).address("https://example.org") is None
    assert Blocklist([]).content("00" * 32, "00" * 16, "00" * 8) is None


@pytest.mark.parametrize("line", ["no entry", "ab" * 20, "localhost", "<script>", "x" * (LONGEST_LINE + 1)])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str):
    with pytest.raises(UserError, match=r"list\.txt"):
        listed(tmp_path, f"example.org\n{line}\n")


def test_a_list_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match="missing"):
        Blocklist([str(tmp_path / "missing.txt")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        Blocklist([str(tmp_path / "binary")])


def test_a_list_in_an_object_store(bucket: Path):
    (bucket / "list.txt").write_text("example.org\n")
    assert Blocklist([f"s3://{bucket.name}/list.txt"]).address("https://example.org/a") is not None
