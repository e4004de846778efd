"""pydantic's errors retold in the user's words: their keys, their lines, and the nearest right answer."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from terminus.config.errors import Origin, Problem, did_you_mean
from terminus.config.outline import kind_of_model, models, type_name
from terminus.config.source import Items, MappingTree, Node, Path

RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
}


def problems(error: ValidationError, schema: type[BaseModel], tree: MappingTree) -> list[Problem]:
    """One problem for each thing that is wrong, with its place in the user's text."""
    found: dict[tuple[Path, str], Problem] = {}
    details = error.errors(include_url=False)
    for detail in details:
        place = _Place.of(detail["loc"], schema, tree)
        if detail["type"] == "too_short" and detail["input"] and any(_inside(one, detail) for one in details):
            continue  # pydantic counts the valid entries; what is wrong with the others is said already
        problem = _problem(detail, place)
        # the members of a union all say the same of one value: once is enough
        found.setdefault((place.path, problem.what), problem)
    return list(found.values())


@dataclass(frozen=True)
class _Place:
    """A pydantic location without its tags: the user's path, and what the schema allows there."""

    path: Path
    parent: Any
    """The annotation of the mapping that holds the last key."""

    key_origin: Origin
    """Where the last key stands; the mapping around it if the key is missing."""

    value_origin: Origin
    node: Node
    choices: tuple[str, ...]
    """The words that may stand here: kinds of a tagged choice, or the values of a literal."""

    union: Any
    """The innermost union of plain types around the value, if there is one."""

    @classmethod
    def of(cls, location: Sequence[str | int], schema: type[BaseModel], tree: MappingTree) -> _Place:
        path: list[str | int] = []
        annotation: Any = schema
        parent: Any = schema
        node: Node = tree
        key_origin = value_origin = tree.origin
        union: Any = None
        for part in location:
            # Down the location, in the schema and in the user's text at once.
            annotation = _bare(annotation)
            if _is_union(annotation):
                # pydantic names the kind of a tagged choice here, or a plain type: neither is a key of the user's.
                variant = _variant(annotation, part)
                union = None if variant else annotation
                annotation = variant or object
                continue
            path.append(part)
            parent, annotation = annotation, _child(annotation, part)
            entry = _entry(node, part)
            if entry is not None:
                key_origin, node = entry
                value_origin = node.origin
        return cls(tuple(path), parent, key_origin, value_origin, node, _choices(annotation), union)


def _variant(union: Any, kind: str | int) -> type[BaseModel] | None:
    return next((variant for variant in models(union) if kind_of_model(variant) == kind), None)


def _entry(node: Node, part: str | int) -> tuple[Origin, Node] | None:
    """The entry of this key or number, after the origin of its key; None if the user's text has none."""
    key = str(part)
    if isinstance(node, MappingTree) and key in node.entries:
        return node.keys[key], node.entries[key]
    if isinstance(node, Items) and isinstance(part, int) and part < len(node.entries):
        entry = node.entries[part]
        return entry.origin, entry
    return None


def _problem(detail: ErrorDetails, place: _Place) -> Problem:
    name, inside = dotted(place.path), dotted(place.path[:-1])
    holder = f" in `{inside}`" if inside else ""
    last = str(place.path[-1]) if place.path else ""
    # None of the types fits, of which pydantic tells each by itself.
    if place.union is not None:
        what = f"`{name}` must be {type_name(place.union)}, and this is {_shown(detail['input'])}."
        return Problem(place.value_origin, what)
    match detail["type"]:
        case "extra_forbidden":
            keys = _keys(place.parent)
            rule = did_you_mean(last, keys) or f"Valid here: {_quoted(keys)}."
            return Problem(place.key_origin, f"Unknown key `{last}`{holder}.", rule)
        # A tuple of fixed length that is too short.
        case "missing" if isinstance(place.path[-1], int):
            what = f"`{inside}` needs {type_name(place.parent)}, and this has {last} entries."
            return Problem(place.value_origin, what)
        case "missing":
            return Problem(place.key_origin, f"The key `{last}` is missing{holder}.", "It has no default.")
        case "union_tag_not_found" | "union_tag_invalid" | "literal_error":
            return _wrong_choice(detail, place, name)
        case _:
            return _other(detail, place, name, detail.get("ctx", {}))


def _wrong_choice(detail: ErrorDetails, place: _Place, name: str) -> Problem:
    one_of = _one_of(place.choices)
    if detail["type"] == "union_tag_not_found":
        return Problem(place.key_origin, f"`{name}` has no `kind`.", f"Say which: `kind` is {one_of}.")
    if detail["type"] == "union_tag_invalid":
        origin = place.node.entries["kind"].origin if isinstance(place.node, MappingTree) else place.value_origin
        tag = str(detail.get("ctx", {}).get("tag"))
        rule = f"{did_you_mean(tag, place.choices)} `kind` is {one_of}."
        return Problem(origin, f"`{name}` has no kind `{tag}`.", rule.strip())
    rule = f"{did_you_mean(str(detail['input']), place.choices)} It is {one_of}."
    return Problem(place.value_origin, f"`{name}` is {_shown(detail['input'])}.", rule.strip())


def _other(detail: ErrorDetails, place: _Place, name: str, context: Mapping[str, Any]) -> Problem:
    kind, message = detail["type"], detail["msg"]
    # In our words where we have some, else in pydantic's.
    if kind in RULES:
        what = f"`{name}` {RULES[kind]}, and this is {_shown(detail['input'])}."
        return Problem(place.value_origin, what, _remedy(kind, detail["input"]))
    if kind == "too_short":
        return Problem(place.value_origin, f"`{name}` must have at least {context['min_length']} entry.")
    if kind in ("value_error", "assertion_error"):
        reason = f"{str(context.get('error', message)).rstrip('.')}."
        return Problem(place.value_origin, f"`{name}`: {reason}" if name else reason)
    # Its "Input should be ..." as the rest of a sentence.
    rule = message[0].lower() + message[1:]
    rule = rule.removeprefix("input ")
    return Problem(place.value_origin, f"`{name}` {rule}, and this is {_shown(detail['input'])}.")


def _remedy(kind: str, value: object) -> str:
    if kind in ("string_type", "path_type"):
        return "Quote it if it is meant as text."
    if kind in ("int_type", "int_from_float") and isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}."
    return ""


def dotted(path: Path) -> str:
    """The path as users write it: `data.sources.0.path`."""
    return ".".join(str(part) for part in path)


def _bare(annotation: Any) -> Any:
    """The annotation without `Annotated` and without `| None`, which add nothing to a location."""
    while True:
        arguments = get_args(annotation)
        if get_origin(annotation) is Annotated:
            annotation = arguments[0]
        elif _is_union(annotation) and type(None) in arguments and len(arguments) == 2:
            annotation = next(argument for argument in arguments if argument is not type(None))
        else:
            return annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _child(annotation: Any, part: str | int) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else object
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is dict:
        return arguments[1]
    if origin is tuple and Ellipsis not in arguments:
        return arguments[part] if isinstance(part, int) and part < len(arguments) else object
    return arguments[0] if origin in (list, tuple) else object


def _keys(annotation: Any) -> tuple[str, ...]:
    annotation = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return tuple(annotation.model_fields)
    return ()


def _choices(annotation: Any) -> tuple[str, ...]:
    annotation = _bare(annotation)
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(kind for kind in map(kind_of_model, models(annotation)) if kind)


def _one_of(words: Sequence[str]) -> str:
    return f"always {_quoted(words)}" if len(words) == 1 else f"one of {_quoted(words)}"


def _inside(one: ErrorDetails, other: ErrorDetails) -> bool:
    """Whether `one` is about something within what `other` is about."""
    outer = other["loc"]
    return len(one["loc"]) > len(outer) and one["loc"][: len(outer)] == outer


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _shown(value: object) -> str:
    match value:
        case None:
            return "empty (null)"
        case bool():
            return str(value).lower()
        case str():
            return f'the text "{value if len(value) <= 60 else value[:57] + "..."}"'
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return str(value)
