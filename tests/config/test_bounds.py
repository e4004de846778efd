"""Recipes that would keep the reader busy, or that the system cannot open: one paragraph each, and at once."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from terminus.config.errors import ConfigError, Origin
from terminus.config.load import load
from terminus.config.recipes import find_recipe
from terminus.config.source import parse_yaml
from terminus.errors import UserError

SECONDS = 6.0
"""Of processor time for any text of 100 kB; `[` alone took 10 before it was bounded."""
SIZE = 100_000
REPEATED = [
    "[", "{", "- ", "? ", "a: ", "{a: ", "&a ", "!!a ", '"', "'", "|", ">", "*a ", "a: 1\n", "- 1\n", "? a\n", "[a, ",
    "a: [b]\n", "# c\n", "%", "\t", "\n  ", "---\n", "&a [*a, ", "0x", "\\", "é",
]  # fmt: skip


def at(line: int, column: int) -> Origin:
    return Origin(f"x:{line + 1}:{column + 1}", "", column)


@pytest.mark.parametrize("text", REPEATED)
def test_any_text_is_read_or_refused_in_bounded_time(text: str):
    begun = time.process_time()
    with contextlib.suppress(ConfigError):  # anything else fails the test
        parse_yaml((text * SIZE)[:SIZE], at)
    assert time.process_time() - begun < SECONDS


def test_deep_nesting_is_refused_where_it_gets_deep():
    with pytest.raises(ConfigError, match=r"x:1:3\d: Values are nested more than 32 deep"):
        parse_yaml("[" * 1_000_000, at)


def test_an_anchor_may_be_set_again():
    """As YAML 1.2 says; ruamel warns of it, and here warnings are errors."""
    parse_yaml("a: &x 1\nb: &x 2\nc: *x\n", at)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "/".join(["a" * 200] * 30)])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str, schema):
    with pytest.raises(UserError, match=r"cannot be followed|no such recipe") as caught:
        find_recipe(name)
    assert len(str(caught.value)) < 1000
    path = tmp_path / "r.yaml"
    path.write_text(f"extends: {name}\n")
    with pytest.raises(ConfigError, match=r"r\.yaml:1:10: `extends: a") as caught:
        load(path, schema)
    assert len(str(caught.value)) < 1500


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_entered(tmp_path: Path):
    inside = tmp_path / "closed"
    inside.mkdir()
    inside.chmod(0)
    with pytest.raises(UserError, match="cannot be followed"):
        find_recipe(inside / "x.yaml")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str, schema):
    import socket

    path = tmp_path / "r.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {path}\n")
    for recipe in (path, child):
        with pytest.raises(UserError, match="this is not a regular file"):
            load(recipe, schema)
    if kind == "socket":
        listening.close()


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "9" * 4000, str(2**63), str(-(2**63) - 1), "0x8000000000000000"])
def test_numbers_that_no_computer_counts_to(read, number: str):
    with pytest.raises(ConfigError, match="This number is too large") as caught:
        read(f"training: {{images: {number}}}\n")
    assert len(str(caught.value)) < 500


def test_the_largest_number(read):
    assert read(f"name: x\ntraining: {{images: {2**63 - 1}}}\n").value.training.images == 2**63 - 1
