"""The README's file tree is true in both directions: what it names exists, and no room is left out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "terminus"


def tree_block() -> list[str]:
    """The lines of the one fenced block of the README that shows `src/terminus/`."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    shown = [block for block in blocks if re.search(r"^[\s│├└─]*src/terminus/", block, re.M)]
    assert len(shown) == 1, "README.md shows the file tree in one fenced block, with a line `src/terminus/`"
    return [line for line in shown[0].splitlines() if line.strip(" │├└─")]


def named_paths() -> list[Path]:
    """Indentation, by spaces or by drawn branches, says which folder a name is in; the gloss follows the name."""
    paths: list[Path] = []
    open_folders: list[tuple[int, Path]] = []
    for line in tree_block():
        plain = re.sub("[│├└─]", " ", line)
        indent, name = len(plain) - len(plain.lstrip()), plain.split()[0]
        while open_folders and open_folders[-1][0] >= indent:
            open_folders.pop()
        path = (open_folders[-1][1] if open_folders else ROOT) / name
        open_folders.append((indent, path))
        paths.append(path)
    return paths


def test_everything_that_the_tree_names_exists():
    assert [str(path.relative_to(ROOT)) for path in named_paths() if not path.exists()] == []


def test_every_room_and_top_level_module_is_named():
    rooms = {path for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    modules = {path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    missing = (rooms | modules) - {path.resolve() for path in named_paths()}
    assert sorted(path.name for path in missing) == []


def test_a_gloss_is_short():
    long = [line for line in tree_block() if len(re.sub("[│├└─]", " ", line).split()[1:]) > 10]
    assert long == []


def test_news_for_users_has_a_place():
    assert (ROOT / "CHANGELOG.md").is_file()
