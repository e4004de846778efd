"""Files of strangers: inside their folder, bounded, and never waited for."""

from __future__ import annotations

from pathlib import Path

from terminus.bounded_files import read_bounded
from terminus.images import Dropped


def test_read_stays_inside_its_folder_and_its_limit(tmp_path: Path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"s")
    (root / "inside").symlink_to(root / "file")
    (root / "outside").symlink_to(tmp_path / "secret")
    assert read_bounded(root / "file", root, 5) == b"12345"
    assert read_bounded(root / "inside", root, 5) == b"12345"
    for name, limit, expected in (
        ("outside", 5, "link out of the folder"), ("file", 4, "file too large"), ("nothing", 5, "cannot be read"),
        (".", 5, "not a regular file"),
    ):  # fmt: skip
        refused = read_bounded(root / name, root, limit)
        assert isinstance(refused, Dropped)
        assert refused.reason == expected
