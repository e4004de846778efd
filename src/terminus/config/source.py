"""YAML text as a tree that remembers where every key and value was written.

ruamel.yaml parses and resolves YAML 1.2; values are then built here from its nodes, so that nothing in a
file can construct an object, a duplicate key is never silently the last one, and each leaf keeps its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode

from terminus.config.errors import ConfigError, Origin, Problem

MAX_NODES = 20_000
"""Values after aliases are expanded: a page of `&a [*b, *b]` can stand for billions."""

MAX_DEPTH = 32

Scalar: TypeAlias = bool | int | float | str | None
Plain: TypeAlias = "Scalar | list[Plain] | dict[str, Plain]"
Path: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the root of the settings to one of them."""

Locate: TypeAlias = Callable[[int, int], Origin]
"""(line, column), both from 0, to the origin that a user can read."""


@final
@dataclass(frozen=True)
class Leaf:
    """A single value of the user's text, with its origin."""

    value: Scalar
    origin: Origin


@final
@dataclass(frozen=True)
class Items:
    """A list of the user's text, with its origin."""

    entries: tuple[Node, ...]
    origin: Origin


@final
@dataclass(frozen=True)
class MappingTree:
    """A mapping; `keys` are the places of the keys, for a problem with a key and not with its value."""

    entries: Mapping[str, Node]
    keys: Mapping[str, Origin]
    origin: Origin


Node: TypeAlias = Leaf | Items | MappingTree


def parse_yaml(text: str, locate: Locate) -> Node:
    """The tree of one YAML document; an empty one is a null leaf. Raises `ConfigError`."""
    try:
        # Nodes alone are asked of ruamel, never values: the loaders that build objects are not used.
        yaml = YAML(typ="safe", pure=True)
        yaml.Composer = _BoundedComposer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # an anchor may be set again, says YAML 1.2
            root = yaml.compose(text)
    except MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(error, text, locate)]) from None
    except YAMLError as error:
        what = f"This is not valid YAML: {' '.join(str(error).split())}."
        raise ConfigError([Problem(locate(0, 0), what)]) from None
    except _Unbounded as error:
        at = locate(error.line, error.column)
        raise ConfigError([_too_deep(at) if error.deep else _too_many(at)]) from None
    # An empty text, or values that are built here from its nodes.
    if root is None:
        return Leaf(None, locate(0, 0))
    builder = _Builder(locate)
    tree = builder.build(root, 0)
    if builder.problems:
        raise ConfigError(builder.problems)
    return tree


def plain_tree(node: Node) -> Plain:
    """The tree without its places: what `json.dumps` takes."""
    match node:
        case Leaf(value):
            return value
        case Items(entries):
            return [plain_tree(entry) for entry in entries]
        case MappingTree(entries):
            return {key: plain_tree(entry) for key, entry in entries.items()}


def leaf_values(node: Node, path: Path = ()) -> Iterator[tuple[Path, Origin]]:
    """Each value and its place. An empty list or mapping counts as one value."""
    match node:
        case Items(entries) if entries:
            for index, entry in enumerate(entries):
                yield from leaf_values(entry, (*path, index))
        case MappingTree(entries) if entries:
            for key, entry in entries.items():
                yield from leaf_values(entry, (*path, key))
        case _:
            yield path, node.origin


def merge_trees(below: Node, above: Node) -> Node:
    """`above` laid over `below`: mappings are merged key by key, everything else is replaced.

    A mapping that names another `kind` replaces the whole one below it: the settings of the old kind are
    not settings of the new one.
    """
    # A list over a list replaces it: which entry should meet which, nobody can say.
    if not (isinstance(below, MappingTree) and isinstance(above, MappingTree)) or _kind_changes(below, above):
        return above
    entries = dict(below.entries)
    for key, entry in above.entries.items():
        entries[key] = merge_trees(entries[key], entry) if key in entries else entry
    return MappingTree(entries, {**below.keys, **above.keys}, above.origin)


def _kind_changes(below: MappingTree, above: MappingTree) -> bool:
    if "kind" not in below.entries or "kind" not in above.entries:
        return False
    return plain_tree(below.entries["kind"]) != plain_tree(above.entries["kind"])


class _Unbounded(Exception):
    """Raised for text with too many values, or values nested too deep."""

    def __init__(self, line: int, column: int, deep: bool) -> None:
        self.line, self.column, self.deep = line, column, deep


class _BoundedComposer(Composer):
    """Stops at once where `_Builder` would stop later: ruamel needs 10 seconds for 100 kB of `[`."""

    _depth = _nodes = 0

    def compose_node(self, parent: object, index: object) -> object:
        """A node of ruamel's, and all below it."""
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._depth > MAX_DEPTH + 1 or self._nodes > 2 * MAX_NODES:  # keys are nodes, too
            mark = self.parser.peek_event().start_mark
            raise _Unbounded(mark.line, mark.column, self._depth > MAX_DEPTH + 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Builder:
    """Turns ruamel's nodes into ours and collects what a recipe may not contain."""

    def __init__(self, locate: Locate) -> None:
        self.problems: list[Problem] = []
        self._locate = locate
        self._count = 0

    def build(self, node: YamlNode, depth: int) -> Node:
        # An alias is built again at each use, so the count is of values as they would lie in memory.
        origin = self._origin(node)
        self._count += 1
        if depth > MAX_DEPTH:
            raise ConfigError([_too_deep(origin)])
        if self._count > MAX_NODES:
            raise ConfigError([_too_many(origin)])
        if isinstance(node, ScalarNode):
            return Leaf(self._scalar(node, origin), origin)
        self._refuse_tag(node, origin)
        if isinstance(node, SequenceNode):
            return Items(tuple(self.build(entry, depth + 1) for entry in node.value), origin)
        assert isinstance(node, MappingNode)
        return self._table(node, origin, depth)

    def _table(self, node: MappingNode, origin: Origin, depth: int) -> MappingTree:
        entries: dict[str, Node] = {}
        keys: dict[str, Origin] = {}
        for key_node, value_node in node.value:
            at = self._origin(key_node)
            # A key may be a number, a date or a whole list in YAML, and is none of these here.
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None or _tag(key_node) != "str":
                self._report(at, "This key is not a name.", _key_rule(key))
            elif key in entries:
                self._report(at, f"The key `{key}` is here twice.", f"It is already set at {keys[key]}; remove one.")
            else:
                entries[key], keys[key] = self.build(value_node, depth + 1), at
        return MappingTree(entries, keys, origin)

    def _scalar(self, node: ScalarNode, origin: Origin) -> Scalar:
        text = str(node.value)
        try:
            # A lone surrogate, which can be written as an escape, is no text.
            text.encode()
            match _tag(node):
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return _integer(text)
                case "float":
                    return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
                case "str" | "timestamp" | "value" | "merge":
                    return text
                case _:
                    self._refuse_tag(node, origin)
        except OverflowError:
            self._report(
                origin, "This number is too large.", "Whole numbers are below 2**63 = 9,223,372,036,854,775,808."
            )
        except (ValueError, KeyError):
            self._report(origin, "This value cannot be read as its type.", "Quote it if it is a text.")
        return None

    def _refuse_tag(self, node: YamlNode, origin: Origin) -> None:
        expected = {"map"} if isinstance(node, MappingNode) else {"seq"}
        if _tag(node) not in expected:
            rule = "A recipe holds plain values only, no objects: remove the tag."
            self._report(origin, f"The tag `{node.tag}` is not allowed.", rule)

    def _origin(self, node: YamlNode) -> Origin:
        return self._locate(node.start_mark.line, node.start_mark.column)

    def _report(self, origin: Origin, what: str, rule: str) -> None:
        self.problems.append(Problem(origin, what, rule))


def _tag(node: YamlNode) -> str:
    """`int` for ruamel's `tag:yaml.org,2002:int`; a foreign tag stays whole."""
    return str(node.tag).removeprefix("tag:yaml.org,2002:")


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    # As YAML 1.2 has it: 010 is ten, and 0o10 and 0x10 say their base.
    number = int(digits) if digits.lstrip("+-").isdigit() else int(digits, 0)
    if not -(2**63) <= number < 2**63:  # nothing that is counted needs more, and programs below stumble over it
        raise OverflowError
    return number


def _key_rule(key: str | None) -> str:
    if key == "<<":
        return "Merge keys are not part of YAML 1.2: name the other file under `extends`."
    return "Keys are plain words; quote it if it must be one."


def _too_deep(origin: Origin) -> Problem:
    return Problem(origin, f"Values are nested more than {MAX_DEPTH} deep.")


def _too_many(origin: Origin) -> Problem:
    return Problem(origin, f"More than {MAX_NODES} values, aliases counted each time they are used.")


def _syntax_problem(error: MarkedYAMLError, text: str, locate: Locate) -> Problem:
    lines = text.splitlines()
    mark = error.problem_mark or error.context_mark
    if mark and mark.line >= len(lines):
        mark = error.context_mark or mark  # the text ends inside something: where that begins says more
    line, column = (mark.line, mark.column) if mark else (0, 0)
    reason = " ".join(f"{error.context or ''} {error.problem or ''}".split())
    has_tab = line < len(lines) and "\t" in lines[line][: column + 1]
    rule = "YAML is indented with spaces: replace the tab." if has_tab else ""
    return Problem(locate(line, column), f"This is not valid YAML: {reason}.", rule)
