"""Recipe files: found by path or shipped name, read with limits, and laid over those they extend."""

from __future__ import annotations

import difflib
from pathlib import Path

from terminus.config.errors import ConfigError, Origin, Problem
from terminus.config.source import Items, Leaf, Locate, MappingTree, Node, merge_trees, parse_yaml
from terminus.errors import UserError

MAX_BYTES = 1_000_000
SUFFIXES = (".yaml", ".yml")
_LONGEST_NAME = 255
"""Characters of a name that a message repeats."""


def find_recipe(name: Path | str, folder: Path | None = None) -> Path:
    """The file that `name` stands for: a path (relative to `folder`, or to here), or a shipped recipe's name.

    `nano`, `nano.yaml` and `recipes/nano.yaml` all name the shipped recipe where no such file exists.
    """
    try:
        return _find((folder or Path()) / name, name)
    except OSError as error:
        raise UserError(
            f"this path cannot be followed ({error.strerror})",
            where=_clipped(str(name)),
            rule="A recipe is the path of a YAML file, or the name of a shipped one.",
        ) from None


def _find(path: Path, name: Path | str) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError("this is a folder", where=str(name), rule="A recipe is one YAML file.", fix=_offer(path, ""))
    if path.exists():
        raise UserError("this is not a regular file", where=str(name), rule="A recipe is one YAML file.")
    # A shipped recipe, only where no file of that name is: what lies in the folder comes first.
    asked = Path(name)
    if asked.parent in (Path(), Path("recipes")) and asked.suffix in ("", *SUFFIXES):
        shipped = shipped_recipes() / f"{asked.stem if asked.suffix else asked.name}.yaml"
        if shipped.is_file():
            return shipped
    raise UserError(
        "there is no such recipe",
        where=str(name),
        rule="A recipe is the path of a YAML file, or the name of a shipped one.",
        fix=_offer(path.parent, asked.name),
    )


def shipped_recipes() -> Path:
    """The folder of the recipes that come with Terminus: inside the package, or the checkout's `recipes/`."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "assets" / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def read_recipe(path: Path) -> MappingTree:
    """The tree of a recipe file, laid over everything it extends. Raises `ConfigError` or `UserError`."""
    return _read(path, (), {})


def _read(path: Path, chain: tuple[Path, ...], done: dict[Path, MappingTree]) -> MappingTree:
    """`chain` is the way here, to refuse a circle; `done` keeps a file from being read twice."""
    path = path.resolve()
    if path in done:
        return done[path]
    # What it extends, from left to right, each over those before it.
    table = _table(path)
    below: Node | None = None
    for name, origin in _extended(table):
        try:
            parent = find_recipe(name, path.parent)
        except UserError as error:
            raise ConfigError([Problem(origin, f"`extends: {_clipped(name)}`: {error}")]) from None
        # Told with the whole way, since the file that closes a circle need not be the wrong one.
        circle = (*chain, path, parent.resolve())
        if parent.resolve() in circle[:-1]:
            names = " -> ".join(_shown(step) for step in circle)
            raise ConfigError([Problem(origin, f"Recipes extend each other in a circle: {names}.")])
        tree = _read(parent, (*chain, path), done)
        below = tree if below is None else merge_trees(below, tree)
    # The file itself, over all of these.
    own = _without_extends(table)
    merged = own if below is None else merge_trees(below, own)
    assert isinstance(merged, MappingTree)
    done[path] = merged
    return merged


def _table(path: Path) -> MappingTree:
    text = _text(path)
    tree = parse_yaml(text, _locator(_shown(path), text))
    if isinstance(tree, Leaf) and tree.value is None:
        raise UserError("the file is empty", where=_shown(path), rule="A recipe is a YAML mapping, `run: ...`.")
    if not isinstance(tree, MappingTree):
        raise ConfigError([Problem(tree.origin, "This is not a mapping.", "A recipe is `key: value` lines.")])
    return tree


def _text(path: Path) -> str:
    shown = _shown(path)
    try:
        # One byte more than is allowed tells a file that is too large without reading all of it.
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"the recipe cannot be read ({error.strerror})", where=shown) from None
    if len(data) > MAX_BYTES:
        raise UserError(
            "the recipe is larger than 1 MB", where=shown, rule="Recipes are settings; data stays in files."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        fix = "Save it again as UTF-8."
        raise UserError("the text is not UTF-8", where=f"{shown}:{line}", rule="Recipes are UTF-8.", fix=fix) from None


def _locator(shown: str, text: str) -> Locate:
    lines = text.split("\n")

    def locate(line: int, column: int) -> Origin:
        excerpt = lines[line].rstrip("\r") if line < len(lines) else ""
        return Origin(f"{shown}:{line + 1}:{column + 1}", excerpt, column)

    return locate


def _extended(table: MappingTree) -> list[tuple[str, Origin]]:
    node = table.entries.get("extends")
    if node is None:
        return []
    entries = node.entries if isinstance(node, Items) else (node,)
    names: list[tuple[str, Origin]] = []
    for entry in entries:
        if not (isinstance(entry, Leaf) and isinstance(entry.value, str)):
            raise ConfigError([Problem(entry.origin, "`extends` is the name of a recipe, or a list of names.")])
        names.append((entry.value, entry.origin))
    return names


def _without_extends(table: MappingTree) -> MappingTree:
    return MappingTree(
        {key: entry for key, entry in table.entries.items() if key != "extends"}, table.keys, table.origin
    )


def _clipped(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}... ({len(name)} characters)"


def _shown(path: Path) -> str:
    """The path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _offer(folder: Path, name: str) -> str:
    """The nearest recipe names: in the folder that was named, then among the shipped ones."""
    here = [str(folder / file) for file in _recipes_in(folder)]
    shipped = [Path(file).stem for file in _recipes_in(shipped_recipes())]
    # By the name alone: the folder is what was typed.
    near = [path for path in here if difflib.get_close_matches(Path(name).stem, [Path(path).stem])]
    near += difflib.get_close_matches(Path(name).stem, shipped)
    if near:
        return f"Did you mean {' or '.join(f'`{one}`' for one in near[:3])}?"
    return f"Shipped recipes: {', '.join(shipped)}." if shipped else ""


def _recipes_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES) if folder.is_dir() else []
