"""`key.path=value` arguments: one more layer over the recipe, read by the same YAML parser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from terminus.config.errors import ConfigError, Origin, Problem
from terminus.config.source import Items, Leaf, MappingTree, Node, merge_trees, parse_yaml

KEY_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")


@dataclass(frozen=True)
class _Override:
    keys: tuple[str, ...]
    places: tuple[Origin, ...]
    value: Node


def apply_overrides(tree: MappingTree, overrides: Sequence[str]) -> MappingTree:
    """`tree` with each override laid over it. Raises `ConfigError` with every malformed one.

    A `kind` is laid first, since it clears the settings of the kind before it; otherwise
    `w.gamma=5 w.kind=min_snr` would lose gamma and the other order would not.
    """
    # All are read before any is laid, so that every malformed one is told at once.
    parsed: list[_Override] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            parsed.append(_parse(text))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    for override in sorted(parsed, key=lambda one: one.keys[-1] != "kind"):
        laid = _lay(tree, override, 0)
        assert isinstance(laid, MappingTree)
        tree = laid
    return tree


def _parse(text: str) -> _Override:
    key, equals, value = text.partition("=")
    whole = f"command line: {text}"
    if not equals or not KEY_PATH.fullmatch(key):
        rule = "It is `key.path=value`: `training.seed=7`, or `data.sources.0.path=x` for a list's entry."
        raise ConfigError([Problem(Origin(whole, text, 0), "This is not an override.", rule)])
    keys = tuple(key.split("."))
    # Column of each key in the argument, for the caret of a message.
    starts = [sum(len(part) + 1 for part in keys[:index]) for index in range(len(keys))]
    indent = len(key) + 1
    node = parse_yaml(value, lambda line, column: Origin(whole, text, indent + column if line == 0 else indent))
    return _Override(keys, tuple(Origin(whole, text, start) for start in starts), node)


def _lay(node: Node | None, override: _Override, depth: int) -> Node:
    # Behind the last key: the value itself, which merges if it is a mapping.
    if depth == len(override.keys):
        return override.value if node is None else merge_trees(node, override.value)
    key, place = override.keys[depth], override.places[depth]
    # In a list: only an entry that is there.
    if isinstance(node, Items):
        index = _index(node, override, depth)
        entry = _lay(node.entries[index], override, depth + 1)
        return replace(node, entries=(*node.entries[:index], entry, *node.entries[index + 1 :]))
    if key.isdigit():
        named = ".".join(override.keys[:depth])
        raise ConfigError(
            [
                Problem(
                    place,
                    f"`{named}` is not a list in the recipe.",
                    "Only an entry that exists can be changed.",
                )
            ]
        )
    # In a mapping: a layer with this one key, down to the value, laid over what is there.
    below = node.entries.get(key) if isinstance(node, MappingTree) else None
    layer = MappingTree({key: _lay(below, override, depth + 1)}, {key: place}, place)
    return layer if node is None or isinstance(node, Leaf) else _put(node, layer, key)


def _put(node: MappingTree, layer: MappingTree, key: str) -> MappingTree:
    """The layer's one entry in its place, clearing the siblings that belonged to another kind."""
    if key == "kind":
        merged = merge_trees(node, layer)
        assert isinstance(merged, MappingTree)
        return merged
    return replace(node, entries={**node.entries, **layer.entries}, keys={**node.keys, **layer.keys})


def _index(node: Items, override: _Override, depth: int) -> int:
    key, named = override.keys[depth], ".".join(override.keys[:depth])
    if key.isdigit() and int(key) < len(node.entries):
        return int(key)
    rule = f"Its entries are 0 to {len(node.entries) - 1}." if node.entries else "It is empty."
    what = f"`{named}` is a list and has no entry `{key}`."
    raise ConfigError([Problem(override.places[depth], what, f"{rule} To replace it whole: `{named}=[...]`.")])
